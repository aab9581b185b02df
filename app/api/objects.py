"""What POST, GET, PATCH and DELETE of one object have in common: tags, preconditions, keys."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from operator import is_
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Header, Request, Response
from pydantic import BaseModel

from app.api.deps import Backend
from app.api.guards import asker
from app.api.paging import Part
from app.model.access import Principal
from app.model.errors import NotFound
from app.services.context import Change, Context, Object, View
from app.services.etags import is_known, matching, tag_of
from app.services.replies import Once, Reply

T = TypeVar("T", bound=Object)
Service = Callable[[Context], Change]


async def _if_match(
    request: Request,
    if_match: Annotated[
        str | None, Header(description="ETags, or `*`: 412 unless the object's is among them when it is changed.")
    ] = None,
) -> list[str] | None:
    return request.headers.getlist("if-match") if if_match is not None else None


async def _if_none_match(
    request: Request,
    if_none_match: Annotated[str | None, Header(description="ETags: 304 where the object's is among them.")] = None,
) -> list[str] | None:
    return request.headers.getlist("if-none-match") if if_none_match is not None else None


IfMatch = Annotated[list[str] | None, Depends(_if_match)]
"""The header's lines."""
IfNoneMatch = Annotated[list[str] | None, Depends(_if_none_match)]
"""The header's lines."""


async def _key(
    request: Request,
    idempotency_key: Annotated[
        str | None,
        Header(
            pattern="^[\x21-\x7e]{1,255}$",
            description="1 to 255 visible characters: for 24 hours, the same request with it has the same answer.",
        ),
    ] = None,
) -> tuple[Principal, str] | None:
    """Whose key it is, and the key."""
    return (asker(request.scope), idempotency_key) if idempotency_key is not None else None


Key = Annotated[tuple[Principal, str] | None, Depends(_key)]


def once(
    path: str, key: tuple[Principal, str] | None, body: BaseModel, reply: Callable[[View, Any], Reply]
) -> Once | None:
    """What the worker needs to carry a request out once, where it has a key."""
    if key is None:
        return None
    asked = json.dumps([path, body.model_dump(mode="json", exclude_unset=True)], sort_keys=True)
    return Once(*key, hashlib.sha256(asked.encode()).hexdigest(), reply)


_KEPT_MAX = 4096
"""Bodies of a kind of object that are kept: some megabytes."""


@dataclass(frozen=True, slots=True)
class Resource(Generic[T]):
    """A kind of object. path: where its objects are; parts: the values that an answer shows; show: the answer of these.

    An answer is kept for as long as its parts, which never change in themselves, are the same ones.
    """

    path: str
    parts: Callable[[View, T], tuple[object, ...]]
    show: Callable[..., BaseModel]
    _kept: dict[str, tuple[tuple[object, ...], str]] = field(default_factory=dict)

    def _body(self, view: View, subject: T) -> str:
        parts = self.parts(view, subject)
        kept = self._kept.get(subject.id)
        if kept is not None and all(map(is_, kept[0], parts)):
            return kept[1]
        body = self.show(*parts).model_dump_json()
        if len(self._kept) >= _KEPT_MAX:
            self._kept.clear()
        self._kept[subject.id] = parts, body
        return body

    def _reply(self, view: View, subject: T, status: int = 200) -> Reply:
        headers = {"ETag": tag_of(view, subject)}
        if status == 201:
            headers["Location"] = f"{self.path}/{subject.id}"
        return Reply(status, self._body(view, subject), headers)

    def listed(self, backend: Backend, part: Part[T]) -> Response:
        """Their answers, without those that go while the list is made."""
        bodies = []
        for one in part.values:
            with suppress(NotFound):
                bodies.append(self._body(backend.catalog, one))
        return json_list(bodies, part.headers)

    async def create(
        self, backend: Backend, key: tuple[Principal, str] | None, service: Service, body: BaseModel
    ) -> Response:
        """201, or the answer that was given to this key before. Raises what refuses it."""
        reply = partial(self._reply, status=201)
        made = await backend.change(service, once(self.path, key, body, reply))
        return _response(made if isinstance(made, Reply) else reply(backend.catalog, made))

    def found(self, backend: Backend, subject: T, known: list[str] | None) -> Response:
        """200, or 304 where the client has it."""
        tag = tag_of(backend.catalog, subject)
        if known is not None and is_known(tag, known):
            return Response(status_code=304, headers={"ETag": tag})
        return _response(self._reply(backend.catalog, subject))

    async def change(
        self, backend: Backend, service: Service, find: Callable[[Context], T], if_match: list[str] | None
    ) -> Response:
        """200 with the object as the change left it. Raises what refuses it."""
        subject = await backend.change(matching(service, find, if_match))
        return _response(self._reply(backend.catalog, subject))


def json_list(bodies: Iterable[str], headers: Mapping[str, str]) -> Response:
    """The answers as they are: what we built ourselves wants no second check."""
    return Response(f"[{','.join(bodies)}]", headers=dict(headers), media_type="application/json")


def _response(reply: Reply) -> Response:
    headers = dict(reply.headers)
    if reply.replayed:
        headers["Idempotency-Replayed"] = "true"
    return Response(reply.body, reply.status, headers, "application/json")


def _header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}


_ETAG = {"ETag": {**_header("Of the object without its status."), "required": True}}
SHOWN: dict[int | str, dict[str, Any]] = {
    200: {"description": "The object", "headers": _ETAG},
    304: {"description": "As the client has it", "headers": _ETAG},
}
CHANGED: dict[int | str, dict[str, Any]] = {200: {"description": "The object", "headers": _ETAG}}
CREATED: dict[int | str, dict[str, Any]] = {
    201: {
        "description": "The object",
        "headers": {
            **_ETAG,
            "Location": {**_header("Its path."), "required": True},
            "Idempotency-Replayed": _header("`true`: the answer to the first request with this key."),
        },
    }
}
