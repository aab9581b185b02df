"""The objects in memory, by all that they are looked up with: nothing is read from the database to answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from app.model.spec import Allocation, Endpoint, IPAddress, IPNetwork, Network, Portmap, Protocol, Version
from app.store.indexed import Grouped, Intervals, Journal, Sorted, Table, Unique
from app.store.neighbours import Neighbours

_VERSIONS: tuple[Version, ...] = (4, 6)
T = TypeVar("T")


class Memory:
    """Every look-up. Belongs to one thread."""

    def __init__(self) -> None:
        self._journal = Journal()
        self._cursors: dict[tuple[str, Version], int] = {}
        self._floors: dict[tuple[Protocol, IPAddress], int] = {}
        self._index_networks()
        self._index_endpoints()
        self._index_portmaps()
        self._holders = Grouped[Allocation](lambda one: (one.id,))
        self._addresses = Sorted[Allocation](
            lambda one: (one.network_id, one.address.version), lambda one: int(one.address)
        )
        self._allocations = Table[Allocation](
            self._journal, lambda one: (one.network_id, one.address), self._holders, self._addresses
        )

    def _index_networks(self) -> None:
        self._network_names = Unique[Network](lambda one: one.name)
        self._bridges = Unique[Network](lambda one: one.bridge)
        self._routed = Grouped[Network](_routed_versions)
        self._subnets = {version: _subnets(version) for version in _VERSIONS}
        self._networks = Table[Network](
            self._journal,
            lambda one: one.id,
            self._network_names,
            self._bridges,
            self._routed,
            *self._subnets.values(),
        )

    def _index_endpoints(self) -> None:
        self._endpoint_names = Unique[Endpoint](lambda one: one.name)
        self._host_ifnames = Unique[Endpoint](lambda one: one.host_ifname)
        self._members = Grouped[Endpoint](lambda one: (one.network_id,))
        self._in_namespace = Grouped[Endpoint](lambda one: (one.namespace_key,))
        self._neighbours = Neighbours()
        self._endpoints = Table[Endpoint](
            self._journal,
            lambda one: one.id,
            self._endpoint_names,
            self._host_ifnames,
            self._members,
            self._in_namespace,
            self._neighbours,
        )

    def _index_portmaps(self) -> None:
        self._published = Grouped[Portmap](lambda one: (one.endpoint_id,))
        self._local_ports = Grouped[Portmap](self._led_locally)
        self._ports = Intervals[Portmap](
            lambda one: (one.protocol, one.host_ip.version), lambda one: (one.host_port, one.last_port)
        )
        self._portmaps = Table[Portmap](
            self._journal, lambda one: one.id, self._published, self._local_ports, self._ports
        )

    def _led_locally(self, portmap: Portmap) -> Iterator[tuple[str, Version]]:
        """The network that a port of 127.0.0.1, or of ::1, leads into; an endpoint outlives its mappings."""
        endpoint = self._endpoints.get(portmap.endpoint_id)
        if endpoint is not None and (int(portmap.host_ip) == 0 or portmap.host_ip.is_loopback):
            yield endpoint.network_id, portmap.host_ip.version

    # --- networks

    def networks(self) -> list[Network]:
        return self._networks.all()

    def network(self, ref: str) -> Network | None:
        """By id or name; an id wins."""
        return self._networks.get(ref) or _one(self._networks, self._network_names, ref)

    def network_by_id(self, network_id: str) -> Network | None:
        """By id alone: another's name may be the same text."""
        return self._networks.get(network_id)

    def network_with_bridge(self, bridge: str) -> Network | None:
        return _one(self._networks, self._bridges, bridge)

    def network_overlapping(self, subnet: IPNetwork) -> Network | None:
        """The network with the lowest subnet that shares an address with this one."""
        first, last = int(subnet.network_address), int(subnet.broadcast_address)
        found = next(self._subnets[subnet.version].meeting(None, first, last), None)
        return self._networks.get(found[2]) if found is not None else None

    def routed_versions(self) -> frozenset[Version]:
        """The IP versions in which the host forwards for any network."""
        return frozenset(version for version in _VERSIONS if self._routed.count(version))

    def cursor(self, network: Network, version: Version) -> int | None:
        """The automatic address of this version that was given last, as an integer."""
        return self._cursors.get((network.id, version))

    def networks_beside(self, network: Network) -> list[Network]:
        """The other networks that a namespace with an endpoint of this one is on."""
        return self._networks.in_order(self._neighbours.beside(network.id))

    # --- endpoints

    def endpoints(self) -> list[Endpoint]:
        return self._endpoints.all()

    def endpoint(self, ref: str) -> Endpoint | None:
        """By id or name; an id wins."""
        return self._endpoints.get(ref) or self.endpoint_named(ref)

    def endpoint_by_id(self, endpoint_id: str) -> Endpoint | None:
        """By id alone: another's name may be the same text."""
        return self._endpoints.get(endpoint_id)

    def endpoint_named(self, name: str) -> Endpoint | None:
        return _one(self._endpoints, self._endpoint_names, name)

    def endpoint_with_host_ifname(self, name: str) -> Endpoint | None:
        return _one(self._endpoints, self._host_ifnames, name)

    def endpoints_of(self, network: Network) -> list[Endpoint]:
        return self._endpoints.in_order(self._members.find(network.id))

    def endpoint_count(self, network: Network) -> int:
        """How many endpoints a network has."""
        return self._members.count(network.id)

    def endpoints_in(self, namespace_key: str) -> list[Endpoint]:
        """The endpoints of one namespace, oldest first."""
        return self._endpoints.in_order(self._in_namespace.find(namespace_key))

    # --- port mappings

    def portmaps(self) -> list[Portmap]:
        return self._portmaps.all()

    def portmap(self, portmap_id: str) -> Portmap | None:
        return self._portmaps.get(portmap_id)

    def portmaps_of(self, endpoint: Endpoint) -> list[Portmap]:
        return self._portmaps.in_order(self._published.find(endpoint.id))

    def has_portmaps(self, endpoint: Endpoint) -> bool:
        return self._published.count(endpoint.id) > 0

    def has_local_ports(self, network: Network, version: Version) -> bool:
        """Whether a port of 127.0.0.1, or of ::1, leads into the network."""
        return self._local_ports.count((network.id, version)) > 0

    def portmap_in_the_way(self, portmap: Portmap) -> Portmap | None:
        """The lowest other mapping with a port in common; an unspecified address meets every one of its version."""
        found = self._meeting(portmap.protocol, portmap.host_ip, portmap.host_port, portmap.last_port)
        return next((one for one in found if one.id != portmap.id), None)

    def held_ports(self, protocol: Protocol, host_ip: IPAddress, first: int, last: int) -> Iterator[tuple[int, int]]:
        """First and last port of the mappings that meet these, ascending, read as far as the caller goes on asking."""
        return ((one.host_port, one.last_port) for one in self._meeting(protocol, host_ip, first, last))

    def _meeting(self, protocol: Protocol, host_ip: IPAddress, first: int, last: int) -> Iterator[Portmap]:
        for _first, _last, identity in self._ports.meeting((protocol, host_ip.version), first, last):
            one = self._portmaps.get(identity)
            if one is not None and (one.host_ip == host_ip or not int(one.host_ip) or not int(host_ip)):
                yield one

    def port_floor(self, protocol: Protocol, host_ip: IPAddress) -> int | None:
        """Below it no automatic port of the address is free; None where that is not known."""
        return self._floors.get((protocol, host_ip))

    # --- addresses

    def allocations(self) -> list[Allocation]:
        return self._allocations.all()

    def allocation(self, allocation_id: str) -> Allocation | None:
        """The first with an id: those of one endpoint share its."""
        return next(iter(self._allocations.in_order(self._holders.find(allocation_id))), None)

    def allocations_of(self, endpoint: Endpoint) -> list[Allocation]:
        return self._allocations.in_order(self._holders.find(endpoint.id))

    def holder(self, network: Network, address: IPAddress) -> Allocation | None:
        """Who holds an address of a network."""
        return self._allocations.get((network.id, address))

    def taken(self, network: Network, first: IPAddress, last: IPAddress) -> Iterator[int]:
        """The held addresses from first to last, ascending, read as far as the caller goes on asking."""
        return self._addresses.between((network.id, first.version), int(first), int(last))


def _one(table: Table[T], index: Unique[T], key: str) -> T | None:
    identity = index.find(key)
    return table.get(identity) if identity is not None else None


def _routed_versions(network: Network) -> Iterable[Version]:
    return [version for version in _VERSIONS if network.gateway_for(version) is not None]


def _subnets(version: Version) -> Intervals[Network]:
    def span(network: Network) -> tuple[int, int] | None:
        plan = network.plan(version)
        return (int(plan.subnet.network_address), int(plan.subnet.broadcast_address)) if plan is not None else None

    return Intervals[Network](lambda _network: None, span)
