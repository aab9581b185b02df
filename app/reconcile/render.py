"""From keys to what the kernel shall hold for them: reads a change's own objects, not a thousand others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from app.model.spec import Allocation, AllocationKind, Endpoint, Network, Portmap
from app.model.state import Item, ItemKey, state_of
from app.planner import desired
from app.services.context import HOST, Key
from app.store.repository import Repository

Subject = Network | Endpoint | Portmap | Allocation | None


@dataclass(frozen=True, slots=True)
class Rendered:
    """An object as the store has it, None for none, and the items it wants.

    trouble: why it cannot be as it was asked for, known before anything is tried; empty for nothing.
    """

    subject: Subject
    items: dict[ItemKey, Item]
    trouble: str = ""


_NOTHING = Rendered(None, {})
_NOBODY: Mapping[str, str] = MappingProxyType({})


def render(store: Repository, key: Key, dead: Mapping[str, str] = _NOBODY) -> Rendered:
    """What one key wants. dead: endpoints whose namespace is gone, by id, and how; nothing is forwarded to them."""
    kind, identity = key
    match kind:
        case "host":
            return Rendered(None, state_of(*desired.host_items(store.routed_versions())))
        case "network":
            network = store.network_by_id(identity)
            return _NOTHING if network is None else _network(store, network)
        case "endpoint":
            endpoint = store.endpoint_by_id(identity)
            return _NOTHING if endpoint is None else _endpoint(store, endpoint)
        case "portmap":
            portmap = store.portmap(identity)
            return _NOTHING if portmap is None else _portmap(store, portmap, dead)
        case "namespace":
            return _namespace(store, identity)
        case "allocation":
            return Rendered(store.allocation(identity), {})


def subject_of(store: Repository, key: Key) -> Subject:
    """The object that a key names, None where there is none, or the key names something else."""
    kind, identity = key
    match kind:
        case "network":
            return store.network_by_id(identity)
        case "endpoint":
            return store.endpoint_by_id(identity)
        case "portmap":
            return store.portmap(identity)
        case "allocation":
            return store.allocation(identity)
        case "host" | "namespace":
            return None


def _namespace(store: Repository, namespace_key: str) -> Rendered:
    endpoints = store.endpoints_in(namespace_key)
    networks = {one.network_id: network_of(store, one) for one in {one.network_id: one for one in endpoints}.values()}
    members = [(one, networks[one.network_id]) for one in endpoints]
    return Rendered(None, state_of(*desired.namespace_items(members)))


def network_of(store: Repository, endpoint: Endpoint) -> Network:
    """The endpoint's network, which a foreign key guarantees."""
    network = store.network_by_id(endpoint.network_id)
    if network is None:
        raise LookupError(f"endpoint {endpoint.id} without its network {endpoint.network_id}")
    return network


def _network(store: Repository, network: Network) -> Rendered:
    local_ports = [plan.version for plan in network.plans if store.has_local_ports(network, plan.version)]
    items = desired.network_items(network, local_ports=local_ports, beside=store.networks_beside(network))
    return Rendered(network, state_of(*items))


def _endpoint(store: Repository, endpoint: Endpoint) -> Rendered:
    published = store.has_portmaps(endpoint)
    items = desired.endpoint_items(network_of(store, endpoint), endpoint, published=published)
    return Rendered(endpoint, state_of(*items))


def _portmap(store: Repository, portmap: Portmap, dead: Mapping[str, str]) -> Rendered:
    endpoint = store.endpoint_by_id(portmap.endpoint_id)
    if endpoint is None:
        raise LookupError(f"port mapping {portmap.id} without its endpoint {portmap.endpoint_id}")
    if endpoint.id in dead:
        return Rendered(portmap, {}, f"endpoint '{endpoint.name}' is not there: {dead[endpoint.id]}")
    return Rendered(portmap, state_of(*desired.portmap_items(network_of(store, endpoint), endpoint, portmap)))


def all_keys(store: Repository) -> list[Key]:
    """Every key there is: for a full pass only."""
    endpoints = store.endpoints()
    keys: list[Key] = [HOST]
    keys += [("network", network.id) for network in store.networks()]
    keys += [("endpoint", endpoint.id) for endpoint in endpoints]
    keys += [("namespace", key) for key in dict.fromkeys(endpoint.namespace_key for endpoint in endpoints)]
    keys += [("portmap", portmap.id) for portmap in store.portmaps()]
    reservations = (one for one in store.allocations() if one.kind is AllocationKind.RESERVATION)
    return keys + [("allocation", one.id) for one in reservations]
