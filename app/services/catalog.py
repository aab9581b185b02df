"""What reads are answered from: the committed objects and their status, in memory.

The worker alone writes, after each commit; readers never wait for it. Values are frozen, and each
dictionary operation is atomic, so that a reader sees every object as some commit left it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from app.model import ipam
from app.model.errors import NotFound
from app.model.spec import AddressPlan, Allocation, AllocationKind, Endpoint, Network, Portmap, gateways
from app.model.status import State, Status
from app.services.context import Key, Kind, Object
from app.store.repository import Repository


class Catalog:
    """The objects by kind and id, oldest first, and their status."""

    def __init__(self) -> None:
        self.networks: dict[str, Network] = {}
        self.endpoints: dict[str, Endpoint] = {}
        self.portmaps: dict[str, Portmap] = {}
        self.reservations: dict[str, Allocation] = {}
        self._statuses: dict[str, Status] = {}
        self._names: dict[tuple[str, str], str] = {}

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
        name = value.name if isinstance(value, Network | Endpoint) else None
        if name is not None:
            self._names[kind, name] = identity
        if isinstance(former, Network | Endpoint) and former.name != name:
            held = (kind, former.name)
            if self._names.get(held) == identity:  # else another has taken it
                del self._names[held]

    def held(self, key: Key) -> Object | None:
        """The object as it was published last, None where there is none."""
        store: dict[str, Object] = getattr(self, _STORES[key[0]])
        return store.get(key[1])

    def knows(self, identity: str) -> bool:
        """Whether it is the id of an object that is published and has a status."""
        return identity in self.networks or identity in self.endpoints or identity in self.portmaps

    def set_status(self, identity: str, state: State, message: str = "") -> None:
        """Publishes how an object fares; `since` moves with the state only."""
        former = self._statuses.get(identity)
        if former is None or (former.state, former.message) != (state, message):
            unchanged = former is not None and former.state == state
            since = former.since if former is not None and unchanged else datetime.now(UTC)
            self._statuses[identity] = Status(state, message, since)

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

    def allocations(self, network: Network) -> list[Allocation]:
        """Every held address of a network, ascending."""
        held = [
            Allocation(
                id=network.id,
                network_id=network.id,
                address=address,
                kind=AllocationKind.GATEWAY,
                created_at=network.created_at,
            )
            for address in gateways(network)
        ]
        held += [
            Allocation(
                id=endpoint.id,
                network_id=network.id,
                address=address,
                kind=AllocationKind.ENDPOINT,
                endpoint_id=endpoint.id,
                created_at=endpoint.created_at,
            )
            for endpoint in list(self.endpoints.values())
            if endpoint.network_id == network.id
            for address in endpoint.addresses
        ]
        held += [one for one in list(self.reservations.values()) if one.network_id == network.id]
        return sorted(held, key=lambda one: (one.address.version, int(one.address)))

    def pools(self, network: Network) -> list[tuple[AddressPlan, int, int, int]]:
        """Of each of a network's plans: size, used by endpoints, otherwise reserved."""
        held = self.allocations(network)
        found = []
        for plan in network.plans:
            kinds = [one.kind for one in held if one.address.version == plan.version]
            used = kinds.count(AllocationKind.ENDPOINT)
            found.append((plan, ipam.size(plan.subnet), used, len(kinds) - used))
        return found


_STORES: Mapping[str, str] = {
    "network": "networks",
    "endpoint": "endpoints",
    "portmap": "portmaps",
    "allocation": "reservations",
}
