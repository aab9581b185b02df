"""What every service works with, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, Protocol

from app.model.access import DAEMON, Principal
from app.model.contracts import Host
from app.model.errors import Forbidden, NotFound
from app.model.spec import Allocation, Endpoint, IPNetwork, Network, Portmap
from app.model.status import Status
from app.store.repository import Repository

Kind = Literal["host", "network", "endpoint", "namespace", "portmap", "allocation"]
Key = tuple[Kind, str]
"""Names one thing that the planner renders: an object by its id, a namespace by its key, the host."""

HOST: Key = ("host", "")
Object = Network | Endpoint | Portmap | Allocation


class Objects(Protocol):
    """The objects as some transaction sees them. Each raises NotFound."""

    def network(self, ref: str) -> Network:
        """By id or name; an id wins."""

    def endpoint(self, ref: str) -> Endpoint:
        """By id or name; an id wins."""

    def portmap(self, ref: str) -> Portmap:
        """By id."""

    def allocation(self, ref: str) -> Allocation:
        """By id."""


class View(Objects, Protocol):
    """What an answer is made from."""

    def status(self, identity: str) -> Status:
        """How an object fares."""


@dataclass(frozen=True, slots=True)
class Context:
    """One request's transaction, the facts about the host, the pools, and who asks.

    progress: a service that takes long calls it at each step.
    """

    store: Repository
    host: Host
    pools: tuple[tuple[IPNetwork, int], ...]
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    principal: Principal = DAEMON
    progress: Callable[[], None] = lambda: None

    def network(self, ref: str, field_name: str = "network") -> Network:
        """Raises NotFound."""
        found = self.store.network(ref)
        if found is None:
            raise NotFound(f"{field_name} '{ref}' does not exist; GET /networks lists those that do")
        return found

    def endpoint(self, ref: str, field_name: str = "endpoint") -> Endpoint:
        """Raises NotFound."""
        found = self.store.endpoint(ref)
        if found is None:
            raise NotFound(f"{field_name} '{ref}' does not exist; GET /endpoints lists those that do")
        return found

    def portmap(self, ref: str) -> Portmap:
        """Raises NotFound."""
        found = self.store.portmap(ref)
        if found is None:
            raise NotFound(f"port mapping '{ref}' does not exist; GET /portmaps lists those that do")
        return found

    def allocation(self, ref: str) -> Allocation:
        """Raises NotFound."""
        found = self.store.allocation(ref)
        if found is None:
            raise NotFound(f"allocation '{ref}' does not exist; GET /ipam/allocations lists those that do")
        return found

    def require(self, *networks: Network) -> None:
        """Raises Forbidden unless whoever asks may change these networks, their endpoints and ports."""
        for network in networks:
            if not self.principal.may_change(network.id, network.name):
                raise Forbidden(
                    f"{self.principal.name} may not change network '{network.name}', nor what is on it; "
                    f"it may {self._scope()}"
                )

    def require_every_network(self, what: str) -> None:
        """Raises Forbidden unless whoever asks may change whatever there is."""
        if self.principal.networks is not None or not self.principal.may_change():
            raise Forbidden(
                f"{self.principal.name} may not {what}; it may {self._scope()}. Use a token without --network"
            )

    def _scope(self) -> str:
        if not self.principal.may_change(*(self.principal.networks or ())):
            return "look only"
        names = ", ".join(f"'{name}'" for name in sorted(self.principal.networks or ()))
        return f"change {names}, their endpoints, port mappings and reserved addresses"


@dataclass(frozen=True, slots=True)
class Change:
    """What a service changed: the object that the answer shows, all that must be planned again, and who did it."""

    subject: str
    keys: tuple[Key, ...]
    by: Principal = DAEMON


def unique(keys: list[Key]) -> tuple[Key, ...]:
    """The keys once each, in their order."""
    return tuple(dict.fromkeys(keys))
