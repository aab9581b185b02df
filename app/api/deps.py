"""What the handlers work with, and how they hand a change to the worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Annotated, Any, Protocol

from fastapi import Depends, Query, Request

from app.model.access import DAEMON, Principal
from app.model.errors import Invalid
from app.model.host import FirewallReport, HostFacts
from app.services.catalog import Catalog
from app.services.context import Change, Context


class Submitter(Protocol):
    """The worker, as far as the handlers know it."""

    def submit(self, service: Callable[[Context], Change]) -> Future[Any]:
        """Queues a change; the future yields its subject once it is committed."""

    def describe(self) -> Future[tuple[HostFacts, FirewallReport]]:
        """Looks at the host and its rules."""

    @property
    def alive(self) -> bool:
        """Whether it runs."""

    @property
    def ready(self) -> bool:
        """Whether its first full pass is done."""


@dataclass(frozen=True, slots=True)
class Backend:
    """Reads come from the catalog, changes go to the worker, in the name of whoever asks."""

    catalog: Catalog
    worker: Submitter
    database_writable: Callable[[], bool]
    firewall: str
    principal: Principal = DAEMON

    async def change(self, service: Callable[[Context], Change]) -> Any:
        """The change's subject, once kernel and database have it. Raises what refused it."""
        principal = self.principal

        def asked(context: Context) -> Change:
            return replace(service(replace(context, principal=principal)), by=principal)

        return await asyncio.wrap_future(self.worker.submit(asked))


def _backend(request: Request) -> Backend:
    found = request.app.state.backend
    if not isinstance(found, Backend):
        raise TypeError("the application was made without a backend")
    principal = request.scope.get("state", {}).get("principal")
    return found if principal is None else replace(found, principal=principal)


def known_query(request: Request) -> None:
    """Raises Invalid for a parameter that the operation does not know: a mistyped filter would keep everything."""
    route = request.scope["route"]
    known = {field.alias for field in route.dependant.query_params}
    for name in request.query_params:
        if name not in known:
            hint = f"it knows {', '.join(sorted(known))}" if known else "it takes none"
            raise Invalid(f"query parameter '{name}' is not known here; {hint}")


BackendDep = Annotated[Backend, Depends(_backend)]
Limit = Annotated[int | None, Query(ge=1, le=1000, description="At most so many; all without it.")]
LabelQuery = Annotated[
    list[str] | None, Query(description="`key=value`, or `key` for any value; repeated, all must match.")
]
Force = Annotated[bool, Query(description="Also removes what depends on it.")]


def label_filter(labels: list[str] | None) -> Callable[[Any], bool]:
    """Keeps objects that carry every label asked for. Raises Invalid for an empty key."""
    wanted = [one.partition("=") for one in labels or []]
    if any(not key for key, _equals, _value in wanted):
        raise Invalid("label '=...' has no key; use ?label=key=value")

    def keep(candidate: Any) -> bool:
        return all(
            key in candidate.labels and (not equals or candidate.labels[key] == value) for key, equals, value in wanted
        )

    return keep
