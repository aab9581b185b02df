"""What the daemon must hold, in plain Python: objects, who has which address, port and namespace.

Written from docs/api.md and the contract, not from the planner. A request is predicted by `predict.py`, the kernel's
state by `facts.py`.
"""

from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from itertools import chain, count

from app.sandbox import HOST, HOST6, HOST6_SECOND, HOST_SECOND

POOLS = [ip_network("192.168.15.0/24"), *ip_network("192.168.16.0/20").subnets(new_prefix=24)]
AUTOMATIC_PORTS = range(49153, 65536)
HOST_ADDRESSES = {HOST, HOST_SECOND, HOST6, HOST6_SECOND, "127.0.0.1", "::1"}
EVERY = {4: "0.0.0.0", 6: "::"}
SUFFIX = {4: "", 6: "6"}


def usable(subnet):
    """First and last address that an interface may carry, as integers."""
    first, last = int(subnet.network_address), int(subnet.broadcast_address)
    return first + 1, last - (subnet.version == 4)


def first_usable(subnet):
    return subnet.network_address + 1


@dataclass
class Plan:
    """One IP version of a network. cursor: the automatic address that was given out last."""

    subnet: object
    gateway: object
    ip_range: object
    cursor: int | None = None

    def span(self):
        first, last = usable(self.subnet)
        return max(first, int(self.ip_range.network_address)), min(last, int(self.ip_range.broadcast_address))


@dataclass
class Network:
    id: str
    name: str
    bridge: str
    plans: dict
    fields: dict
    """mtu, flags, snat_address, labels: what an answer shows as it was given."""
    mac: str | None = None

    def way_out(self, version):
        """The gateway that endpoints route by."""
        plan = self.plans.get(version)
        return plan.gateway if plan is not None and not self.fields["internal"] else None


@dataclass
class Endpoint:
    id: str
    name: str
    network: Network
    namespace: str
    create_namespace: bool
    addresses: dict
    mac: str
    ifname: str
    host_ifname: str
    default_route: bool | None
    took_route: int
    """When it was last told to take the default route; 0 for never."""
    ephemeral: bool
    labels: dict


@dataclass
class Portmap:
    id: str
    endpoint: Endpoint
    protocol: str
    host_ip: str
    host_port: int
    count: int
    target_port: int
    labels: dict

    @property
    def version(self):
        return ip_address(self.host_ip).version

    def meets(self, protocol, address, first, number):
        """Whether it holds one of these ports there; the address of all stands for each."""
        if self.protocol != protocol or self.version != ip_address(address).version:
            return False
        apart = self.host_ip != address and EVERY[self.version] not in (self.host_ip, address)
        return not apart and first < self.host_port + self.count and self.host_port < first + number

    def forwards(self, alive):
        """Whether anything reaches the endpoint by it."""
        network = self.endpoint.network
        return alive and self.version in self.endpoint.addresses and network.way_out(self.version) is not None


@dataclass
class Reservation:
    id: str
    network: Network
    address: object
    note: str


@dataclass
class Foreign:
    """What is the administrator's: on the host and inside namespaces."""

    addresses: set = field(default_factory=set)
    """(place, link, address/prefix); place "" is the host."""
    routes: set = field(default_factory=set)
    """(bridge, destination)."""
    listeners: dict = field(default_factory=dict)
    """(protocol, port) to the open server."""

    def lose(self, place, link=None):
        """A link, or all links of a place, went by the kernel's hand or the administrator's."""
        self.addresses = {one for one in self.addresses if one[0] != place or link not in (None, one[1])}
        if place == "":
            self.lose_routes(link)

    def is_addressed(self, bridge):
        return any(one[:2] == ("", bridge) for one in self.addresses)

    def lose_routes(self, bridge):
        self.routes = {one for one in self.routes if one[0] != bridge}


class World:
    def __init__(self):
        self.networks, self.endpoints, self.portmaps, self.reservations = {}, {}, {}, {}
        self.spaces = {}
        """The named namespaces that are there: whether the daemon made them."""
        self.foreign = Foreign()
        self.links = {"lo", "eth0", "admin0"}
        """The host's links that are not the daemon's."""
        self._ticks = count(1)

    def tick(self):
        return next(self._ticks)

    # --- who is who

    def network(self, ref):
        return self._found(self.networks, ref)

    def endpoint(self, ref):
        return self._found(self.endpoints, ref)

    @staticmethod
    def _found(objects, ref):
        return objects.get(ref) or next((one for one in objects.values() if one.name == ref), None)

    def members(self, network):
        return [one for one in self.endpoints.values() if one.network is network]

    def inside(self, namespace):
        """The endpoints of a namespace, oldest first."""
        return [one for one in self.endpoints.values() if one.namespace == namespace]

    def mappings(self, endpoint):
        return [one for one in self.portmaps.values() if one.endpoint is endpoint]

    def alive(self, endpoint):
        return endpoint.namespace in self.spaces

    # --- what is free

    def holder(self, network, address):
        """Who holds an address: an endpoint, a reservation, the network itself; else None."""
        if any(plan.gateway == address for plan in network.plans.values()):
            return network
        held = [*self.members(network)]
        for one in held:
            if address in one.addresses.values():
                return one
        return next(
            (one for one in self.reservations.values() if (one.network, one.address) == (network, address)), None
        )

    def next_address(self, network, version):
        """Round robin after the last one given; None where all are held."""
        plan = network.plans[version]
        first, last = plan.span()
        start = plan.cursor + 1 if plan.cursor is not None and first <= plan.cursor < last else first
        for value in chain(range(start, last + 1), range(first, start)):
            address = plan.subnet.network_address + (value - int(plan.subnet.network_address))
            if self.holder(network, address) is None:
                return address
        return None

    def subnets(self, version):
        """What a new subnet may not overlap: networks, and routes of the host."""
        held = [one.plans[version].subnet for one in self.networks.values() if version in one.plans]
        others = [ip_network("203.0.113.0/24"), ip_network("2001:db8:1::/64")]
        others += [ip_network(text, strict=False) for place, _link, text in self.foreign.addresses if place == ""]
        others += [ip_network(destination) for _bridge, destination in self.foreign.routes]
        return held + [one for one in others if one.version == version]

    def overlaps(self, subnet):
        return any(subnet.overlaps(other) for other in self.subnets(subnet.version))

    def next_subnet(self):
        return next(one for one in POOLS if not self.overlaps(one))

    def is_host_link(self, name):
        bridges = {one.bridge for one in self.networks.values()}
        return name in self.links | bridges | {one.host_ifname for one in self.endpoints.values()}

    def port_holders(self, protocol, address, first, number, but=None):
        """Mappings and processes that hold one of these ports."""
        found = [
            one for one in self.portmaps.values() if one is not but and one.meets(protocol, address, first, number)
        ]
        version = ip_address(address).version
        listening = [port for kind, port in self.foreign.listeners if kind == protocol and version == 4]
        return found, [port for port in listening if first <= port < first + number]

    def next_port(self, protocol, address):
        return next(one for one in AUTOMATIC_PORTS if not any(self.port_holders(protocol, address, one, 1)))

    # --- what goes

    def remove_network(self, network):
        for endpoint in self.members(network):
            self.remove_endpoint(endpoint)
        for one in [one for one in self.reservations.values() if one.network is network]:
            del self.reservations[one.id]
        self.foreign.lose("", network.bridge)
        del self.networks[network.id]

    def remove_endpoint(self, endpoint):
        for one in self.mappings(endpoint):
            del self.portmaps[one.id]
        del self.endpoints[endpoint.id]
        self.foreign.lose(endpoint.namespace, endpoint.ifname)
        if self.spaces.get(endpoint.namespace) and not self.inside(endpoint.namespace):
            del self.spaces[endpoint.namespace]

    def namespace_dies(self, name, daemon_runs):
        """Somebody deletes its name."""
        ours = self.spaces.pop(name)
        self.foreign.lose(name)
        for one in self.inside(name):
            if one.ephemeral:
                self.remove_endpoint(one)
        # whoever made it makes it again; a daemon that was down does not know who did
        if (ours or not daemon_runs) and self.wants_namespace(name):
            self.spaces[name] = True

    def wants_namespace(self, name):
        return any(one.create_namespace for one in self.inside(name))

    def daemon_starts(self):
        for name in {one.namespace for one in self.endpoints.values()} - self.spaces.keys():
            if self.wants_namespace(name):
                self.spaces[name] = True

    def default_route(self, namespace, version):
        """The endpoint that has it: the one that took it last, else the oldest that does not refuse it."""
        able = [one for one in self.inside(namespace) if one.network.way_out(version) is not None]
        able = [one for one in able if one.default_route is not False]
        takers = [one for one in able if one.default_route]
        return max(takers, key=lambda one: one.took_route) if takers else next(iter(able), None)
