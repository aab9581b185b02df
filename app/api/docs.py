"""The OpenAPI document, and /docs from files of our own: no script from elsewhere."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, HTMLResponse
from starlette.exceptions import HTTPException

import app as package
from app.api.problems import MEDIA_TYPE
from app.model.errors import BridgeheadError

router = APIRouter(include_in_schema=False)
_FILES = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css", "favicon.png": "image/png"}
_DESCRIPTION = "Container networks on a Linux host: bridges, endpoints in namespaces, addresses, NAT, published ports."


def _static() -> Path:
    # fastapi-offline is only its files: importing it would do no more
    spec = find_spec("fastapi_offline")
    if spec is None or spec.origin is None:
        raise HTTPException(404)
    return Path(spec.origin).parent / "static"


@router.get("/docs")
async def docs() -> HTMLResponse:
    """The operations, to read and to try."""
    return get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="Bridgehead",
        swagger_js_url="/docs/swagger-ui-bundle.js",
        swagger_css_url="/docs/swagger-ui.css",
        swagger_favicon_url="/docs/favicon.png",
    )


@router.get("/docs/{name}")
async def docs_file(name: str) -> FileResponse:
    """One of the page's own files."""
    if name not in _FILES:
        raise HTTPException(404)
    return FileResponse(_static() / name, media_type=_FILES[name])


def errors(*kinds: type[BridgeheadError]) -> dict[int | str, dict[str, Any]]:
    """The errors that an operation may answer, for its declaration."""
    by_status: dict[int | str, list[str]] = {}
    for kind in kinds:
        by_status.setdefault(kind.status, []).append(f"`{kind.code}`")
    return {status: {"description": ", ".join(codes)} for status, codes in by_status.items()}


def install(application: FastAPI) -> None:
    """Makes the application's own schema the one below."""
    application.include_router(router)

    def schema() -> dict[str, Any]:
        if application.openapi_schema is None:
            application.openapi_schema = build(application)
        return application.openapi_schema

    application.openapi = schema  # type: ignore[method-assign]


def build(application: FastAPI) -> dict[str, Any]:
    """The OpenAPI document: every error is a problem document, and the token is the TCP listener's."""
    document = get_openapi(
        title="Bridgehead",
        version=package.__version__,
        description=_DESCRIPTION,
        routes=application.routes,
        tags=[{"name": name} for name in ("networks", "endpoints", "portmaps", "ipam", "system")],
    )
    schemas = document["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas["Problem"] = _problem_schema()
    document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{}, {"token": []}]
    for operations in document["paths"].values():
        for method, operation in operations.items():
            _complete(operation, changes=method != "get")
    return document


_ALWAYS = {
    "408": "`too_slow`",
    "421": "`misdirected` (TCP only)",
    "429": "`too_many_requests`",
    "431": "`invalid`: the headers are too large",
    "503": "`shutting_down`",
}
"""What every operation may answer, with its description."""


def _problem_schema() -> dict[str, Any]:
    from app.api.schemas import Problem  # noqa: PLC0415 - only when the document is built

    return Problem.model_json_schema()


def _complete(operation: dict[str, Any], *, changes: bool) -> None:
    responses = operation["responses"]
    if operation["operationId"] not in ("health",):
        responses.setdefault("401", {"description": "`unauthorized` (TCP only)"})
    if "requestBody" in operation:
        responses.setdefault("413", {"description": "`body_too_large`"})
        responses.setdefault("400", {"description": "`invalid`: the body cannot be read"})
    if changes:
        responses.setdefault("403", {"description": "`forbidden`: not for this token or user"})
    for status, words in _ALWAYS.items():
        described = responses.setdefault(status, {"description": words})
        if words not in described["description"] and operation["operationId"] != "ready":
            described["description"] += f", {words}"
    for status, described in responses.items():
        if int(status) >= 400 and not (operation["operationId"] == "ready" and status == "503"):
            described["content"] = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
