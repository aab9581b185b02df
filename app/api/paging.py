"""Lists in parts: `?limit=` and `?cursor=`, and the next part's address in `Link` (RFC 8288)."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Query, Request, Response

from app.model.errors import Invalid
from app.model.spec import Allocation, Endpoint, Network, Portmap

T = TypeVar("T")
Place = list[str | int]
"""Where in its list an object stands: the list's order, and stable while others come and go."""


def by_age(one: Network | Endpoint | Portmap) -> Place:
    """The place of an object in a list that has the oldest first."""
    return [one.created_at.isoformat(timespec="microseconds"), one.id]


def by_address(network: Network, one: Allocation) -> Place:
    """The place of an address in a list of networks' addresses."""
    return [*by_age(network), one.address.version, int(one.address)]


@dataclass(frozen=True, slots=True)
class Paging:
    """Which part of a list is asked for; `response` gets the address of the next one."""

    limit: int | None
    after: Place | None
    request: Request
    response: Response

    def part(self, values: Iterable[T], place: Callable[[T], Place], *keep: Callable[[T], bool]) -> list[T]:
        """The values that every filter keeps, from the cursor on, up to the limit."""
        kept = (value for value in self._rest(list(values), place) if all(test(value) for test in keep))
        if self.limit is None:
            return list(kept)
        found = list(islice(kept, self.limit + 1))
        if len(found) > self.limit:
            cursor = _encoded(place(found[self.limit - 1]))
            following = self.request.url.include_query_params(cursor=cursor)
            self.response.headers["Link"] = f'<{following.path}?{following.query}>; rel="next"'
        return found[: self.limit]

    def _rest(self, values: list[T], place: Callable[[T], Place]) -> Iterable[T]:
        if self.after is None:
            return values
        places = [place(value) for value in values]
        if self.after in places:
            return values[places.index(self.after) + 1 :]
        # what the cursor stood at is gone
        try:
            return [value for value, one in zip(values, places, strict=True) if one > self.after]
        except TypeError:
            raise _void() from None


def _encoded(place: Place) -> str:
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


def _decoded(cursor: str) -> Place:
    try:
        found = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except ValueError:
        raise _void() from None
    if not isinstance(found, list):
        raise _void()
    return found


def _void() -> Invalid:
    return Invalid("cursor: it is not one that a list's Link header had; leave it out to begin at the list's beginning")


async def _paging(
    request: Request,
    response: Response,
    limit: Annotated[int | None, Query(ge=1, le=1000, description="At most so many; all without it.")] = None,
    cursor: Annotated[
        str | None, Query(max_length=1024, description="From the `Link` header of the part before; never made up.")
    ] = None,
) -> Paging:
    return Paging(limit, _decoded(cursor) if cursor is not None else None, request, response)


PagingDep = Annotated[Paging, Depends(_paging)]
LISTED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The list, or a part of it",
        "headers": {"Link": {"description": '`rel="next"`: the next part, if any.', "schema": {"type": "string"}}},
    }
}
