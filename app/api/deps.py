"""What the handlers work with, and how they hand a change to the worker."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Annotated, Any, Protocol, get_origin

from fastapi import Depends, Query, Request
from starlette.types import Scope

from app.api.guards import asker
from app.model.access import DAEMON, Principal
from app.model.errors import Invalid
from app.model.host import FirewallReport, HostFacts
from app.services.catalog import Catalog
from app.services.context import Change, Context
from app.services.document import Document
from app.services.replies import Once


class Submitter(Protocol):
    """The worker, as far as the handlers know it."""

    def submit(self, service: Callable[[Context], Change], once: Once | None = None) -> Future[Any]:
        """Queues a change; the future yields its subject, or with a key its answer, once it is committed."""

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
    export: Callable[[], Document]
    principal: Principal = DAEMON

    async def change(self, service: Callable[[Context], Change], once: Once | None = None) -> Any:
        """The change's subject, once kernel and database have it. Raises what refused it."""
        principal = self.principal

        def asked(context: Context) -> Change:
            return replace(service(replace(context, principal=principal)), by=principal)

        return await asyncio.wrap_future(self.worker.submit(asked, once))


def backend_of(scope: Scope) -> Backend:
    """The application's, in the name of whoever sent the request."""
    found = scope["app"].state.backend
    if not isinstance(found, Backend):
        raise TypeError("the application was made without a backend")
    return replace(found, principal=asker(scope))


# these are coroutines because the framework hands a plain function to a thread, which costs more than all else


async def _backend(request: Request) -> Backend:
    return backend_of(request.scope)


async def known_query(request: Request) -> None:
    """Raises Invalid for a parameter that the operation does not know: a mistyped filter would keep everything.

    So does one that is given twice and taken once.
    """
    if not request.query_params:
        return
    known = _query_names(request.scope["route"].dependant)
    for name, times in Counter(name for name, _value in request.query_params.multi_items()).items():
        if name not in known:
            hint = f"it knows {', '.join(sorted(known))}" if known else "it takes none"
            raise Invalid(f"query parameter '{name}' is not known here; {hint}")
        if times > 1 and not known[name]:
            raise Invalid(f"query parameter '{name}' is given {times} times; give it once")


def _query_names(dependant: Any) -> dict[str, bool]:
    """Those of an operation and of what it depends on, and whether there may be several of each."""
    names = {field.alias: get_origin(field.field_info.annotation) is list for field in dependant.query_params}
    for one in dependant.dependencies:
        names |= _query_names(one)
    return names


BackendDep = Annotated[Backend, Depends(_backend)]
LabelQuery = Annotated[
    list[str], Query(default_factory=list, description="`key=value`, or `key` for any; repeated, all must match.")
]
Force = Annotated[bool, Query(description="Also removes what depends on it.")]


def label_filter(labels: list[str]) -> Callable[[Any], bool] | None:
    """Keeps objects that carry every label asked for; None: keeps all. Raises Invalid for an empty key."""
    if not labels:
        return None
    wanted = [one.partition("=") for one in labels]
    if any(not key for key, _equals, _value in wanted):
        raise Invalid("label '=...' has no key; use ?label=key=value")

    def keep(candidate: Any) -> bool:
        return all(
            key in candidate.labels and (not equals or candidate.labels[key] == value) for key, equals, value in wanted
        )

    return keep
