"""The short way for plain requests, past the framework's routing and dependencies, which cost more than the rest.

A request is plain where it has no query and none of the headers that an operation looks at, and its body is valid:
every parameter is then the body, the path's reference, or what it is by default. All others, and whatever is wrong,
go the framework's way, which leads to the same handlers.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, get_type_hints

from fastapi import Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api import problems
from app.api.deps import BackendDep, LabelQuery, backend_of
from app.api.middleware import body_of
from app.api.objects import IfMatch, IfNoneMatch, Key
from app.api.paging import WHOLE, PagingDep
from app.model.errors import BridgeheadError

_HEADERS = frozenset({b"idempotency-key", b"if-match", b"if-none-match"})
_PLAIN: tuple[tuple[Any, Any], ...] = ((Key, None), (IfMatch, None), (IfNoneMatch, None), (PagingDep, WHOLE))
"""What the dependencies are of a request that has neither query nor such headers."""


@dataclass(frozen=True, slots=True)
class _Operation:
    """A handler, and by which names it takes what."""

    handler: Callable[..., Awaitable[Response]]
    fixed: dict[str, Any]
    backend: str
    labels: str | None
    reference: str | None
    body: tuple[str, type[BaseModel]] | None

    def arguments(self, scope: Scope, reference: str) -> dict[str, Any] | None:
        """The handler's; None where the body is not valid."""
        found = self.fixed | {self.backend: backend_of(scope)}
        if self.labels is not None:
            found[self.labels] = []
        if self.reference is not None:
            found[self.reference] = reference
        if self.body is not None:
            name, model = self.body
            try:
                found[name] = model.model_validate(_members(body_of(scope)))
            except ValueError:  # pydantic's own is one
                return None
        return found


def _members(body: bytes) -> dict[str, Any]:
    """Raises ValueError."""
    found = json.loads(body)
    if not isinstance(found, dict):
        raise ValueError("not an object")  # noqa: TRY004 - as for any other body that is not valid
    return found


class Direct:
    """Answers plain requests, and hands on the others."""

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        self._operations: dict[tuple[str, str], _Operation] = {}
        """By method and path; the path of an object ends with a slash there."""
        for route in routes:
            operation = _operation(route) if isinstance(route, APIRoute) else None
            if operation is not None and isinstance(route, APIRoute):
                path = route.path[: route.path.index("{")] if operation.reference is not None else route.path
                self._operations.update({(method, path): operation for method in route.methods or ()})

    @property
    def operations(self) -> list[tuple[str, str]]:
        """Methods and paths that it answers; that of an object ends with a slash."""
        return sorted(self._operations)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = await self._answer(scope) if scope["type"] == "http" and _is_plain(scope) else None
        await (answer or self._app)(scope, receive, send)

    async def _answer(self, scope: Scope) -> Response | None:
        method, path = scope["method"], scope["path"]
        reference = ""
        operation = self._operations.get((method, path))
        if operation is None:
            parent, _slash, reference = path.rpartition("/")
            operation = self._operations.get((method, f"{parent}/"))
        if operation is None or (operation.reference is None) is bool(reference):
            return None
        try:
            arguments = operation.arguments(scope, reference)
            return await operation.handler(**arguments) if arguments is not None else None
        except BridgeheadError as refusal:
            return problems.response(refusal)


def _is_plain(scope: Scope) -> bool:
    return not scope["query_string"] and _HEADERS.isdisjoint([name for name, _value in scope["headers"]])


def _operation(route: APIRoute) -> _Operation | None:
    """None for a handler that wants something else, or leaves its answer to the framework."""
    hints = get_type_hints(route.endpoint, include_extras=True)
    if hints.pop("return", None) is not Response or route.path.count("{") > 1:
        return None
    fixed: dict[str, Any] = {}
    backend = labels = reference = body = None
    for name, parameter in inspect.signature(route.endpoint).parameters.items():
        hint = hints[name]
        plain = [value for kind, value in _PLAIN if kind == hint]
        if plain:
            fixed[name] = plain[0]
        elif hint == BackendDep:
            backend = name
        elif hint == LabelQuery:
            labels = name
        elif route.path.endswith(f"{{{name}}}") and hint is str:
            reference = name
        elif isinstance(hint, type) and issubclass(hint, BaseModel):
            body = (name, hint)
        elif parameter.default is not parameter.empty:
            fixed[name] = parameter.default
        else:
            return None
    return _Operation(route.endpoint, fixed, backend, labels, reference, body) if backend is not None else None
