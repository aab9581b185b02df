"""Errors as RFC 9457 problem documents: one place, whatever raised them."""

from __future__ import annotations

import json
import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Match

from app.model import errors
from app.model.errors import BridgeheadError, Invalid

log = logging.getLogger("bridgehead.api")

MEDIA_TYPE = "application/problem+json"
_TITLES = {"not_found": "Not found", "method_not_allowed": "Method not allowed", "invalid": "Invalid request"}
_METHODS = ("GET", "POST", "PATCH", "DELETE")
_SHOWN = 200
"""Characters of a refused value that the answer repeats."""


def document(error: BridgeheadError) -> dict[str, Any]:
    """The problem document of an error."""
    return {
        "type": f"urn:bridgehead:problem:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": _sendable(error.detail),
        "code": error.code,
        **error.extra(),
    }


def _sendable(text: str) -> str:
    """A refused value may hold half a surrogate pair, which no answer can."""
    return text.encode(errors="backslashreplace").decode()


def response(error: BridgeheadError) -> JSONResponse:
    """The answer to a request that failed with an error."""
    headers: dict[str, str] = {}
    if isinstance(error, errors.Unauthorized):
        headers["WWW-Authenticate"] = 'Bearer realm="bridgehead"'
    if isinstance(error, errors.TooManyRequests):
        headers["Retry-After"] = str(error.retry_after)
    return JSONResponse(document(error), error.status, headers, media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Registers the handlers."""
    app.add_exception_handler(BridgeheadError, _expected)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


async def _expected(_request: Request, error: Exception) -> JSONResponse:
    return response(error) if isinstance(error, BridgeheadError) else await _unexpected(_request, error)


async def _invalid(_request: Request, error: Exception) -> JSONResponse:
    found = error.errors() if isinstance(error, RequestValidationError) else []
    return response(Invalid("; ".join(_sentence(one) for one in found[:5]) or "the request is not valid"))


def _sentence(one: Any) -> str:
    place = ".".join(str(part) for part in one["loc"][1:]) or str(one["loc"][0])
    if one["type"] == "json_invalid":
        return f"the body is not JSON: {one.get('ctx', {}).get('error', 'it cannot be read')}"
    if one["type"] == "extra_forbidden":
        return f"{place}: no such field here, or one that cannot be changed"
    if one["type"] == "missing":
        return f"{place}: required"
    words = str(one["msg"]).removeprefix("Value error, ")
    if one["type"] == "value_error":
        return f"{place}: {words}"
    return f"{place}: {words}, not {_shown(one.get('input'))}"


def _shown(value: Any) -> str:
    """A refused value, as a client wrote it: in JSON's words."""
    text = f"'{value}'" if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text[:_SHOWN]


async def _http(request: Request, error: Exception) -> JSONResponse:
    """What the framework itself refuses: unknown paths, methods, unreadable bodies."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    code = {404: "not_found", 405: "method_not_allowed"}.get(status, "invalid")
    words = {404: f"there is nothing at {request.url.path}", 405: f"{request.method} is not possible here"}
    detail = words.get(status, str(getattr(error, "detail", error)))
    body = {
        "type": f"urn:bridgehead:problem:{code}",
        "title": _TITLES[code],
        "status": status,
        "detail": f"{detail}; see GET /openapi.json",
        "code": code,
    }
    headers = dict(getattr(error, "headers", None) or {})
    if status == 405:
        headers["Allow"] = ", ".join(_allowed(request))
    return JSONResponse(body, status, headers, media_type=MEDIA_TYPE)


def _allowed(request: Request) -> list[str]:
    """Every method of the path: the framework names those of one route only."""
    routes, scope = request.app.router.routes, request.scope
    return [
        method
        for method in _METHODS
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in routes)
    ]


async def _unexpected(_request: Request, error: Exception) -> JSONResponse:
    """A bug: its traceback is for the log, never for a client."""
    log.error("a request failed unexpectedly", exc_info=error)
    return response(BridgeheadError("an internal error, which the daemon's log describes"))
