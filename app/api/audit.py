"""Requests to change something that were refused, wherever that was: for the audit log."""

from __future__ import annotations

import json

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.guards import SAFE_METHODS
from app.model.access import with_certificate
from app.services import audit

_KEPT = 16 << 10
"""Bytes of a problem document that are read for its code."""


class AuditRefusals:
    """What was done is written by the worker, where it is committed; this writes what was not."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in SAFE_METHODS:
            await self._app(scope, receive, send)
            return
        status, body = 0, b""

        def tell() -> None:
            nonlocal status
            if status >= 400:
                code, detail = _problem(body)
                audit.refused(_who(scope), scope["method"], scope["path"], code or str(status), detail)
                status = 0

        async def watched(message: Message) -> None:
            nonlocal status, body
            if message["type"] == "http.response.start":
                status = message["status"]
            elif status >= 400:
                body += message.get("body", b"") if len(body) < _KEPT else b""
                if not message.get("more_body", False):
                    tell()  # who has the answer finds the line
            await send(message)

        await self._app(scope, receive, watched)
        tell()


def _who(scope: Scope) -> str:
    state = scope.get("state", {})
    principal = state.get("principal")
    if principal is not None:
        return str(principal.shown)
    return with_certificate(f"address {(scope.get('client') or ('?',))[0]}", state.get("certificate", ""))


def _problem(body: bytes) -> tuple[str, str]:
    """Code and detail of a problem document."""
    try:
        found = json.loads(body)
        return str(found.get("code", "")), str(found.get("detail", ""))
    except (ValueError, AttributeError):
        return "", ""
