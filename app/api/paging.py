"""Lists in parts: `?limit=` and `?cursor=`, and the next part's address in `Link` (RFC 8288)."""

from __future__ import annotations

import base64
import json
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Query, Request
from starlette.datastructures import URL

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
class Part(Generic[T]):
    """Of a list; the headers have the address of the next part."""

    values: list[T]
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Paging:
    """Which part of a list is asked for, and by which address."""

    limit: int | None
    after: Place | None
    url: URL

    def part(self, values: Iterable[T], place: Callable[[T], Place], *keep: Callable[[T], bool] | None) -> Part[T]:
        """The values that every filter keeps, from the cursor on, up to the limit."""
        rest = rest_of(list(values), place, self.after)
        for test in keep:
            if test is not None:
                rest = filter(test, rest)
        return self.first(rest, place)

    def first(self, rest: Iterable[T], place: Callable[[T], Place]) -> Part[T]:
        """As many as the limit allows."""
        if self.limit is None:
            return Part(list(rest))
        found = list(islice(rest, self.limit + 1))
        if len(found) <= self.limit:
            return Part(found)
        following = self.url.include_query_params(cursor=_encoded(place(found[self.limit - 1])))
        return Part(found[: self.limit], {"Link": f'<{following.path}?{following.query}>; rel="next"'})

    def within(self, networks: list[Network]) -> tuple[Network | None, tuple[int, int]]:
        """The network in whose addresses the cursor stands, and its address as IP version and number."""
        match self.after:
            case [str(), str() as identity, int() as version, int() as number]:
                begun = next((one for one in networks if one.id == identity and by_age(one) == self.after[:2]), None)
                return begun, (version, number)
            case _:
                return None, (0, 0)


WHOLE = Paging(None, None, URL())


def rest_of(values: list[T], place: Callable[[T], Place], after: Place | None) -> Iterable[T]:
    """The values behind a place, which is looked up, not searched for. Raises Invalid for one that was made up."""
    if after is None:
        return values
    try:
        at = bisect_left(values, after, key=place)
        if at < len(values) and place(values[at]) == after:
            return values[at + 1 :]
        # the list is not in its order: the clock was set back, or it was imported so
        at = _index_of(after, values, at) if place is by_age else at
        if at < len(values) and place(values[at]) == after:
            return values[at + 1 :]
        # what the cursor stood at is gone
        places = [place(value) for value in values]
        if after in places:
            return values[places.index(after) + 1 :]
        return [value for value, one in zip(values, places, strict=True) if one > after]
    except TypeError:
        raise _void() from None


def _index_of(after: Place, values: list[Any], otherwise: int) -> int:
    """Where the object stands that a place names: cheaper than to compare its place with each."""
    return next((number for number, one in enumerate(values) if [one.id] == after[1:2]), otherwise)


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
    limit: Annotated[int | None, Query(ge=1, le=1000, description="At most so many; all without it.")] = None,
    cursor: Annotated[
        str | None, Query(max_length=1024, description="From the `Link` header of the part before; never made up.")
    ] = None,
) -> Paging:
    return Paging(limit, _decoded(cursor) if cursor is not None else None, request.url)


PagingDep = Annotated[Paging, Depends(_paging)]
LISTED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The list, or a part of it",
        "headers": {"Link": {"description": '`rel="next"`: the next part, if any.', "schema": {"type": "string"}}},
    }
}
