"""What stands before the routes: the bound on bodies, and the token of the TCP listener."""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api import problems
from app.model.errors import BodyTooLarge, Unauthorized

BODY_MAX = 1 << 20
"""Bytes."""
IMPORT_MAX = 32 << 20
"""Bytes of a document to import: 50,000 objects and more."""
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
            too_large = BodyTooLarge(f"the body is larger than {_most(scope)} bytes, the most that is taken")
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


def _most(scope: Scope) -> int:
    return IMPORT_MAX if scope["path"] == "/import" else BODY_MAX


async def _read(scope: Scope, receive: Receive) -> bytes | None:
    """The body, None where it is too large."""
    most = _most(scope)
    declared = Headers(scope=scope).get("content-length", "0")
    if declared.isdigit() and int(declared) > most:
        return None
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            break
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            return None
        more = message.get("more_body", False)
    return b"".join(parts)


class TokenGuard:
    """Lets requests pass that carry the token (RFC 6750); compared in constant time."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._allowed(scope):
            refused = Unauthorized(
                "this listener wants the header 'Authorization: Bearer TOKEN'; the token is in the file 'token' "
                "of the daemon's state directory; the unix socket needs none"
            )
            await problems.response(refused)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _allowed(self, scope: Scope) -> bool:
        path = scope["path"]
        if path in _OPEN_PATHS or path.startswith("/docs/"):
            return True
        scheme, _space, token = Headers(scope=scope).get("authorization", "").partition(" ")
        given = token.strip().encode("latin-1", "replace")
        return hmac.compare_digest(given, self._token) and scheme.lower() == "bearer"
