"""What the kernel shall hold, as data. An item is one thing that is made, changed and removed as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv6Interface

from app.model.spec import IPAddress, IPNetwork, NetnsRef, Protocol, Version

IPInterface = IPv4Interface | IPv6Interface
ItemKey = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Netns:
    """A namespace under /run/netns. Made where `create` allows it and it is missing; removed only if we made it."""

    name: str
    owner: str = field(compare=False)
    create: bool = field(compare=False, default=True)

    @property
    def key(self) -> ItemKey:
        return ("netns", self.name)


@dataclass(frozen=True, slots=True)
class HostPort:
    """Ports of the host, `count` from `port` on, each reserved for us by a bound socket."""

    owner: str
    protocol: Protocol
    address: IPAddress
    port: int
    count: int = 1

    @property
    def key(self) -> ItemKey:
        return ("port", self.owner)


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """What the firewall must know of a network; the traffic rules follow from it.

    beside: subnets of other networks that a namespace of this one is on too. From there, its answers would go by
    the other link, past the host.
    """

    owner: str
    bridge: str
    subnet: IPNetwork
    routed: bool
    isolated: bool
    masquerade: bool
    icc: bool = True
    snat_address: IPAddress | None = None
    beside: frozenset[IPNetwork] = frozenset()

    @property
    def key(self) -> ItemKey:
        return ("policy", self.owner, str(self.subnet.version))


@dataclass(frozen=True, slots=True)
class PortForward:
    """DNAT of `count` host ports to an endpoint's; `host_ip` 0.0.0.0 or :: means every address of the host."""

    owner: str
    bridge: str
    protocol: Protocol
    host_ip: IPAddress
    host_port: int
    target_ip: IPAddress
    target_port: int
    count: int = 1

    @property
    def key(self) -> ItemKey:
        return ("forward", self.owner)


@dataclass(frozen=True, slots=True)
class SourceGuard:
    """What may come out of an endpoint's bridge port: frames from this MAC, from and about these addresses."""

    owner: str
    port: str
    mac: str
    addresses: frozenset[IPAddress]

    @property
    def key(self) -> ItemKey:
        return ("guard", self.owner)


@dataclass(frozen=True, slots=True)
class Bridge:
    """A bridge in the host's namespace; its MAC is fixed, so that neighbours never keep a stale one.

    connected: the routes to the subnets of its addresses are there.
    """

    owner: str
    name: str
    mac: str
    mtu: int
    addresses: frozenset[IPInterface]
    ipv6: bool
    up: bool = True
    connected: bool = True

    @property
    def key(self) -> ItemKey:
        return ("link", self.name)


@dataclass(frozen=True, slots=True)
class Attachment:
    """A veth pair: `host_ifname` is the bridge's port, `ifname` the end inside the namespace.

    isolated: the port reaches no other isolated port of its bridge; locked: only frames from the
    endpoint's own MAC come out of it, and the bridge learns no other there; connected: as of a bridge, inside.
    """

    owner: str
    host_ifname: str
    bridge: str
    netns: NetnsRef
    namespace_key: str = field(compare=False)
    ifname: str
    mac: str
    mtu: int
    addresses: frozenset[IPInterface]
    ipv6: bool
    hairpin: bool
    isolated: bool = False
    locked: bool = False
    up: bool = True
    connected: bool = True

    @property
    def key(self) -> ItemKey:
        return ("link", self.host_ifname)


@dataclass(frozen=True, slots=True)
class DefaultRoute:
    """The default route of a namespace, for one IP version."""

    owner: str = field(compare=False)
    netns: NetnsRef = field(compare=False)
    namespace_key: str
    via: IPAddress
    ifname: str

    @property
    def version(self) -> Version:
        return self.via.version

    @property
    def key(self) -> ItemKey:
        return ("route", self.namespace_key, str(self.version))


@dataclass(frozen=True, slots=True)
class Sysctl:
    """A kernel setting of the host's namespace: a path below /proc/sys, such as net/ipv4/ip_forward."""

    owner: str = field(compare=False)
    path: str
    value: str

    @property
    def key(self) -> ItemKey:
        return ("sysctl", self.path)


@dataclass(frozen=True, slots=True)
class LoopbackRoute:
    """A second local route of ::1, by a bridge: IPv6's route_localnet, for answers that come back by the bridge.

    The kernel looks ::1 up by the interface that the packet came in by, and drops what came to it from the wire
    before that.
    """

    owner: str = field(compare=False)
    bridge: str

    @property
    def key(self) -> ItemKey:
        return ("loopback", self.bridge)


@dataclass(frozen=True, slots=True)
class ForeignLink:
    """A link that bears our mark and belongs to no object; it is only ever removed."""

    owner: str
    name: str

    @property
    def key(self) -> ItemKey:
        return ("link", self.name)


TrafficItem = NetworkPolicy | PortForward
FirewallItem = TrafficItem | SourceGuard
Item = Netns | HostPort | FirewallItem | Bridge | Attachment | DefaultRoute | Sysctl | LoopbackRoute | ForeignLink
Departing = Netns | Bridge | Attachment | DefaultRoute | ForeignLink
"""What goes together with others of its kind, in one batch."""
State = Mapping[ItemKey, Item]


def state_of(*items: Item) -> dict[ItemKey, Item]:
    """The items by key."""
    return {item.key: item for item in items}


def subnets_of(addresses: Iterable[IPInterface]) -> set[IPNetwork]:
    """The subnets that a link with these addresses has routes to."""
    return {one.network for one in addresses if one.network.prefixlen < one.max_prefixlen}


def in_order(addresses: Iterable[IPInterface]) -> list[IPInterface]:
    """Always in the same order, IPv4 first: addresses of two IP versions do not compare."""
    return sorted(addresses, key=lambda one: (one.version, one))
