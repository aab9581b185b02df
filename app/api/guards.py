"""Who it is that asks, and whether they may: the unix socket's peers, bearer tokens, the Host header."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import replace
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api import problems
from app.model.access import DAEMON, Peer, Principal, Role
from app.model.errors import BridgeheadError, Forbidden, Misdirected, Unauthorized

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_OPEN_PATHS = ("/healthz", "/openapi.json", "/docs")
"""Answered without a token: they tell nothing of this host."""


class PeerGuard:
    """The unix socket's side: whoever may open it is trusted, and named by its process.

    allow_foreign: users other than root may connect namespaces that are not theirs.
    """

    def __init__(self, app: ASGIApp, *, allow_foreign: bool = False) -> None:
        self._app = app
        self._allow_foreign = allow_foreign

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            state = scope.setdefault("state", {})
            state["principal"] = self._principal(state.get("peer"))
        await self._app(scope, receive, send)

    def _principal(self, peer: Peer | None) -> Principal:
        uid = peer.uid if peer is not None else None
        confined = uid not in (0, os.geteuid()) and not self._allow_foreign
        return Principal(str(peer or "a peer that the kernel does not name"), confined=confined, uid=uid)


def asker(scope: Scope) -> Principal:
    """Who sent a request, as the guards found; the daemon itself where none stands before the application."""
    found = scope.get("state", {}).get("principal", DAEMON)
    if not isinstance(found, Principal):
        raise TypeError("a request's principal is not one")
    return found


def principal_of(scope: Scope, find: Callable[[str], Principal | None]) -> Principal | None:
    """Whose token a request carries; None where it carries none that is known."""
    scheme, _space, token = Headers(scope=scope).get("authorization", "").partition(" ")
    return find(token.strip()) if scheme.lower() == "bearer" else None


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
        principal = principal_of(scope, self._find)
        if principal is None:
            return Unauthorized(
                "this listener wants the header 'Authorization: Bearer TOKEN'; the token is in the file 'token' "
                "of the daemon's state directory; the unix socket needs none"
            )
        state = scope.setdefault("state", {})
        state["principal"] = replace(principal, certificate=state.get("certificate", ""))
        if principal.role is Role.READ and scope["method"] not in SAFE_METHODS:
            return Forbidden(
                f"{principal.name} has the role 'read', which may look, not {scope['method']}; "
                "use a token with the role 'write'"
            )
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
                f"Host '{host[:200]}' is not this daemon: ask by the address that it listens on, or start it with "
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
        server = str((scope.get("server") or ("",))[0])
        try:
            asked, address = ip_address(name), ip_address(server)
        except ValueError:
            return name in self._names or (name == "localhost" and _is_loopback(server))
        return asked == address or (asked.is_loopback and address.is_loopback) or name in self._names


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
