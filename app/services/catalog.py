"""What reads are answered from: the committed objects and their status, in memory.

The worker alone writes, after each commit; readers never wait for it. Values are frozen, and each
dictionary operation is atomic, so that a reader sees every object as some commit left it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from app.model import ipam
from app.model.errors import NotFound
from app.model.spec import (
    AddressPlan,
    Allocation,
    AllocationKind,
    Endpoint,
    IPAddress,
    Network,
    Portmap,
    gateways,
)
from app.model.status import State, Status
from app.services.context import Key, Kind, Object
from app.store.repository import Repository

Holder = Network | Endpoint | Allocation
_NONE: Mapping[str, Any] = {}


class Catalog:
    """The objects by kind and id, oldest first, and their status."""

    def __init__(self) -> None:
        self.networks: dict[str, Network] = {}
        self.endpoints: dict[str, Endpoint] = {}
        self.portmaps: dict[str, Portmap] = {}
        self.reservations: dict[str, Allocation] = {}
        self._statuses: dict[str, Status] = {}
        self._names: dict[tuple[str, str], str] = {}
        self._endpoints_on: dict[str, dict[str, Endpoint]] = {}
        self._reserved_on: dict[str, dict[str, Allocation]] = {}
        """By network; an object never moves to another."""

    # --- the worker's side

    def fill(self, store: Repository) -> list[tuple[Key, Object | None, Object | None]]:
        """Publishes everything that is stored, and nothing else; what changed, as it was and as it is."""
        stored: dict[Key, Object] = {("network", one.id): one for one in store.networks()}
        stored |= {("endpoint", one.id): one for one in store.endpoints()}
        stored |= {("portmap", one.id): one for one in store.portmaps()}
        stored |= {("allocation", one.id): one for one in store.allocations() if one.kind is AllocationKind.RESERVATION}
        kinds: tuple[Kind, ...] = ("network", "endpoint", "portmap", "allocation")
        shown = [(kind, identity) for kind in kinds for identity in getattr(self, _STORES[kind])]
        changed: list[tuple[Key, Object | None, Object | None]] = []
        for key in dict.fromkeys([*stored, *shown]):
            former, value = self.held(key), stored.get(key)
            if former != value:
                changed.append((key, former, value))
            self.put(key, value)
        return changed

    def put(self, key: Key, value: Object | None) -> None:
        """Publishes an object as it is now; None: it is gone. A name that it keeps is known throughout."""
        kind, identity = key
        store: dict[str, Object] = getattr(self, _STORES[kind])
        former = store.get(identity)
        if value is None:
            store.pop(identity, None)
            self._statuses.pop(identity, None)
        else:
            store[identity] = value
        self._index(identity, former, value)
        name = value.name if isinstance(value, Network | Endpoint) else None
        if name is not None:
            self._names[kind, name] = identity
        if isinstance(former, Network | Endpoint) and former.name != name:
            held = (kind, former.name)
            if self._names.get(held) == identity:  # else another has taken it
                del self._names[held]

    def _index(self, identity: str, former: Object | None, value: Object | None) -> None:
        one = value if value is not None else former
        if not isinstance(one, Endpoint | Allocation):
            return
        index: dict[str, dict[str, Any]] = self._endpoints_on if isinstance(one, Endpoint) else self._reserved_on
        if value is not None:
            index.setdefault(one.network_id, {})[identity] = value
        elif members := index.get(one.network_id):
            members.pop(identity, None)
            if not members:
                del index[one.network_id]

    def held(self, key: Key) -> Object | None:
        """The object as it was published last, None where there is none."""
        store: dict[str, Object] = getattr(self, _STORES[key[0]])
        return store.get(key[1])

    def subject(self, identity: str) -> Network | Endpoint | Portmap | None:
        """The object with an id, of those that have a status."""
        return self.networks.get(identity) or self.endpoints.get(identity) or self.portmaps.get(identity)

    def knows(self, identity: str) -> bool:
        """Whether it is the id of an object that is published and has a status."""
        return self.subject(identity) is not None

    def set_status(self, identity: str, state: State, message: str = "") -> None:
        """Publishes how an object fares; `since` moves with the state only."""
        former = self._statuses.get(identity)
        if former is None or (former.state, former.message) != (state, message):
            unchanged = former is not None and former.state == state
            since = former.since if former is not None and unchanged else datetime.now(UTC)
            self._statuses[identity] = Status(state, message, since)

    def is_pending(self, identity: str) -> bool:
        """Whether nobody has said how the object fares; also where it is not published, or has no status."""
        found = self._statuses.get(identity)
        return found is None or found.state is State.PENDING or not self.knows(identity)

    # --- the readers' side

    def status(self, identity: str) -> Status:
        found = self._statuses.get(identity)
        return found if found is not None else Status(State.PENDING, "", datetime.now(UTC))

    def network(self, ref: str) -> Network:
        """By id or name; an id wins. Raises NotFound."""
        found = self.networks.get(ref) or self.networks.get(self._names.get(("network", ref), ""))
        if found is None:
            raise NotFound(f"network '{ref}' does not exist; GET /networks lists those that do")
        return found

    def endpoint(self, ref: str) -> Endpoint:
        """By id or name; an id wins. Raises NotFound."""
        found = self.endpoints.get(ref) or self.endpoints.get(self._names.get(("endpoint", ref), ""))
        if found is None:
            raise NotFound(f"endpoint '{ref}' does not exist; GET /endpoints lists those that do")
        return found

    def portmap(self, ref: str) -> Portmap:
        """Raises NotFound."""
        found = self.portmaps.get(ref)
        if found is None:
            raise NotFound(f"port mapping '{ref}' does not exist; GET /portmaps lists those that do")
        return found

    def allocation(self, ref: str) -> Allocation:
        """Raises NotFound."""
        found = self.reservations.get(ref)
        if found is None:
            raise NotFound(f"allocation '{ref}' does not exist; GET /ipam/allocations lists those that do")
        return found

    def endpoints_on(self, network: Network) -> list[Endpoint]:
        """A network's, oldest first."""
        return list(self._endpoints_on.get(network.id, _NONE).values())

    def allocations(self, network: Network, after: tuple[int, int] = (0, 0)) -> Iterator[Allocation]:
        """The held addresses of a network, ascending; those behind one, given as IP version and number."""
        reserved = self._reserved_on.get(network.id, _NONE)
        held: list[tuple[IPAddress, Holder]] = [(address, network) for address in gateways(network)]
        held += [(address, one) for one in self.endpoints_on(network) for address in one.addresses]
        held += [(one.address, one) for one in list(reserved.values())]
        behind = [one for one in held if _number(one) > after]
        return (_allocation(network, *one) for one in sorted(behind, key=_number))

    def pool(self, network: Network, plan: AddressPlan) -> tuple[int, int, int]:
        """Of one of a network's plans: size, used by endpoints, otherwise reserved."""
        version = plan.version
        used = sum(address.version == version for one in self.endpoints_on(network) for address in one.addresses)
        reserved = list(self._reserved_on.get(network.id, _NONE).values())
        kept = sum(one.address.version == version for one in reserved)
        return ipam.size(plan.subnet), used, kept + (plan.gateway is not None)


def _number(held: tuple[IPAddress, Holder]) -> tuple[int, int]:
    return held[0].version, int(held[0])


def _allocation(network: Network, address: IPAddress, holder: Holder) -> Allocation:
    if isinstance(holder, Allocation):
        return holder
    by_endpoint = isinstance(holder, Endpoint)
    return Allocation(
        id=holder.id,
        network_id=network.id,
        address=address,
        kind=AllocationKind.ENDPOINT if by_endpoint else AllocationKind.GATEWAY,
        endpoint_id=holder.id if by_endpoint else None,
        created_at=holder.created_at,
    )


_STORES: Mapping[str, str] = {
    "network": "networks",
    "endpoint": "endpoints",
    "portmap": "portmaps",
    "allocation": "reservations",
}
