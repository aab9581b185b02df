"""Bounds on what clients may make us do: bodies, rates, how many requests at once; and the gate of a shutdown."""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api import problems
from app.api.bodies import require_single_keys
from app.api.guards import SAFE_METHODS, asker, principal_of
from app.model.access import Principal
from app.model.errors import BodyTooLarge, BridgeheadError, Invalid, ShuttingDown, TooManyRequests, TooSlow

BODY_MAX = 1 << 20
"""Bytes."""
IMPORT_MAX = 32 << 20
"""Bytes of a document to import: 50,000 objects and more."""
BODY_WITHIN = 30.0
"""Seconds that a client has for its body."""
IMPORT_WITHIN = 300.0
"""Seconds for a document to import: a slow line takes that long."""
DEPTH_MAX = 32
"""Arrays and objects of a body's JSON within one another."""
_BUCKETS_MAX = 1024
_NO_STRUCTURE = bytes(set(range(256)) - set(b'"[]{}'))
_TOKENS = re.compile(rb'"[^"]*"?|[\[\]{}]')
"""A string, also one that has no end; or a bracket."""


class BodyLimit:
    """Reads the body, up to the bounds, before the application sees the request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most, within = (IMPORT_MAX, IMPORT_WITHIN) if _may_import(scope) else (BODY_MAX, BODY_WITHIN)
        try:
            async with asyncio.timeout(within):
                body = await _read(scope, receive, most)
            _check_depth(scope, body)
            if scope["method"] not in SAFE_METHODS:
                require_single_keys(body)
        except TimeoutError:
            await _refuse(TooSlow(f"the body was not there within {within:g} seconds"), scope, receive, send)
            return
        except BridgeheadError as refusal:
            await _refuse(refusal, scope, receive, send)
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


async def _refuse(refusal: BridgeheadError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers, and closes: the rest of a body is not waited for."""
    answer = problems.response(refusal)
    answer.headers["Connection"] = "close"
    await answer(scope, receive, send)


def _may_import(scope: Scope) -> bool:
    """Others need no larger body there: they are refused, and must not fill the memory before."""
    return scope["path"] == "/import" and asker(scope).unlimited


async def _read(scope: Scope, receive: Receive, most: int) -> bytes:
    """The body. Raises BodyTooLarge."""
    too_large = BodyTooLarge(f"the body is larger than {most} bytes, the most that is taken")
    declared = Headers(scope=scope).get("content-length", "0")
    if declared.isdigit() and int(declared) > most:
        raise too_large
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            break
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            raise too_large
        more = message.get("more_body", False)
    return b"".join(parts)


def _check_depth(scope: Scope, body: bytes) -> None:
    """Raises Invalid for JSON that is nested too deeply; where it is no JSON at all, the application says so."""
    if body.count(b"[") + body.count(b"{") <= DEPTH_MAX or scope["method"] in SAFE_METHODS:
        return
    # each step takes what no later one needs, and none of them is slow with megabytes
    unescaped = body.replace(rb"\\", b"").replace(rb"\"", b"")
    structure = unescaped.translate(None, _NO_STRUCTURE).replace(b'""', b"")
    depth = 0
    for token in _TOKENS.finditer(structure):
        first = structure[token.start()]
        depth += (first in b"[{") - (first in b"]}")
        if depth > DEPTH_MAX:
            raise Invalid(f"the body has more than {DEPTH_MAX} arrays and objects within one another")


Client = Callable[[Scope], str | None]
"""Who a request counts for; None: for nobody, it is not bounded."""


class RateLimit:
    """A token bucket for each client.

    rate: requests a second in the long run; burst: how many at once.
    """

    def __init__(
        self, app: ASGIApp, client: Client, rate: float, burst: int, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._app, self._client = app, client
        self._rate, self._burst, self._now = rate, burst, now
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            client = self._client(scope)
            if client is not None and not self._take(client):
                words = f"more than {self._rate:g} requests a second, or {self._burst} at once; try again in a second"
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


def user(scope: Scope) -> str | None:
    """The unix socket's: each user; root is not bounded."""
    peer = scope.get("state", {}).get("peer")
    return None if peer is not None and peer.uid == 0 else f"uid {getattr(peer, 'uid', '?')}"


def holder(find: Callable[[str], Principal | None]) -> Client:
    """The TCP listener's: each token, and each address for whoever comes without one."""

    def client(scope: Scope) -> str:
        principal = principal_of(scope, find)
        return principal.name if principal is not None else f"address {(scope.get('client') or ('?',))[0]}"

    return client


class Admission:
    """Lets so many requests in at once; and none once the daemon stops, while those that are in finish."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._most = most
        self._running = 0
        self._stopping = False
        self._left = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refused = self._refused()
        if refused is not None:
            await _refuse(refused, scope, receive, send)
            return
        self._running += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._running -= 1
            self._left.set()

    def _refused(self) -> BridgeheadError | None:
        if self._stopping:
            return ShuttingDown("the daemon is shutting down; try again once it is back")
        if self._running >= self._most:
            return TooManyRequests(f"{self._most} requests are being answered, the most at once; try again in a second")
        return None

    async def drain(self, seconds: float) -> None:
        """From now on nothing is let in; returns when all that is in has been answered, or the time is over."""
        self._stopping = True
        try:
            async with asyncio.timeout(seconds):
                while self._running:
                    self._left.clear()
                    await self._left.wait()
        except TimeoutError:
            pass  # the server ends what is left, and the worker finishes what it has begun
