"""What stands before the routes: bounds on bodies and rates, the Host header, and who it is that asks."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from ipaddress import ip_address

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api import problems
from app.model.access import Principal, Role
from app.model.errors import (
    BodyTooLarge,
    BridgeheadError,
    Forbidden,
    Misdirected,
    TooManyRequests,
    Unauthorized,
)

BODY_MAX = 1 << 20
"""Bytes."""
_BUCKETS_MAX = 1024
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_OPEN_PATHS = ("/healthz", "/openapi.json", "/docs")
"""Answered without a token: they tell nothing of this host."""


class BodyLimit:
    """Reads the body, up to the bound, before the application sees the request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = await _read(scope, receive)
        if body is None:
            too_large = BodyTooLarge(f"the body is larger than {BODY_MAX} bytes, the most that is taken")
            await problems.response(too_large)(scope, receive, send)
            return
        if body:
            # every body is JSON, whatever `curl -d` calls it
            MutableHeaders(scope=scope)["content-type"] = "application/json"
        replayed = False

        async def replay() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)


async def _read(scope: Scope, receive: Receive) -> bytes | None:
    """The body, None where it is too large."""
    declared = Headers(scope=scope).get("content-length", "0")
    if declared.isdigit() and int(declared) > BODY_MAX:
        return None
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            break
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > BODY_MAX:
            return None
        more = message.get("more_body", False)
    return b"".join(parts)


class PeerGuard:
    """The unix socket's side: whoever may open it is trusted, and named by its process."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            peer = scope.get("state", {}).get("peer")
            named = Principal("socket") if peer is None else Principal(f"uid {peer.uid} pid {peer.pid}", peer=peer)
            scope.setdefault("state", {})["principal"] = named
        await self._app(scope, receive, send)


class TokenGuard:
    """The TCP listener's side: lets requests pass that carry a token (RFC 6750) whose role allows them."""

    def __init__(self, app: ASGIApp, find: Callable[[str], Principal | None]) -> None:
        self._app = app
        self._find = find

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            refused = self._refused(scope)
            if refused is not None:
                await problems.response(refused)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refused(self, scope: Scope) -> BridgeheadError | None:
        path = scope["path"]
        if path in _OPEN_PATHS or path.startswith("/docs/"):
            return None
        scheme, _space, token = Headers(scope=scope).get("authorization", "").partition(" ")
        principal = self._find(token.strip()) if scheme.lower() == "bearer" else None
        if principal is None:
            return Unauthorized(
                "this listener wants the header 'Authorization: Bearer TOKEN'; the token is in the file 'token' "
                "of the daemon's state directory; the unix socket needs none"
            )
        if principal.role is Role.READ and scope["method"] not in _SAFE_METHODS:
            return Forbidden(f"{principal.name} has the role 'read': it may look and not {scope['method']}")
        scope.setdefault("state", {})["principal"] = principal
        return None


class HostGuard:
    """Refuses what a browser sends under a name that somebody else points at us (DNS rebinding).

    names: which the Host header may carry beside the address that the client connected to, and localhost there.
    """

    def __init__(self, app: ASGIApp, names: Collection[str] = ()) -> None:
        self._app = app
        self._names = frozenset(name.lower().rstrip(".") for name in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._ours(scope):
            host = Headers(scope=scope).get("host", "")
            refused = Misdirected(
                f"Host '{host}' is not this daemon: ask by the address that it listens on, or start it with "
                "--host-name for each name that leads here"
            )
            await problems.response(refused)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _ours(self, scope: Scope) -> bool:
        given = Headers(scope=scope).getlist("host")
        if len(given) != 1:
            return False
        name = _without_port(given[0])
        try:
            asked = ip_address(name)
            address = ip_address((scope.get("server") or ("",))[0])
        except ValueError:
            loopback = _is_loopback((scope.get("server") or ("",))[0])
            return name in self._names or (name == "localhost" and loopback)
        return asked == address or (asked.is_loopback and address.is_loopback)


def _without_port(host: str) -> str:
    name = host.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0].rstrip(".")


def _is_loopback(text: str) -> bool:
    try:
        return ip_address(text).is_loopback
    except ValueError:
        return False


class RateLimit:
    """A token bucket for each client: a token's holder, a user of the socket, or an address without one.

    rate: requests a second in the long run; burst: how many at once.
    """

    def __init__(self, app: ASGIApp, rate: float, burst: int, now: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._rate, self._burst, self._now = rate, burst, now
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._take(_client(scope)):
            words = f"more than {self._rate:g} requests a second, and a burst of {self._burst}; try again in a second"
            await problems.response(TooManyRequests(words))(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _take(self, client: str) -> bool:
        now = self._now()
        level, at = self._buckets.pop(client, (float(self._burst), now))
        level = min(float(self._burst), level + (now - at) * self._rate)
        self._buckets[client] = (level - 1 if level >= 1 else level, now)
        while len(self._buckets) > _BUCKETS_MAX:
            self._buckets.popitem(last=False)
        return level >= 1


def _client(scope: Scope) -> str:
    peer = scope.get("state", {}).get("peer")
    if peer is not None:
        return f"uid {peer.uid}"
    return str((scope.get("client") or ("?",))[0])
