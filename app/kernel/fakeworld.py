"""What the fake kernel consists of: namespaces, links, routes, ports; and how a test puts others' things there."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

from app.model.errors import Invalid, KernelRefused, NamespaceMissing, PortTaken
from app.model.host import HostFacts, HostRoute, Setting, Uplink
from app.model.spec import IPAddress, IPNetwork, NetnsKind, NetnsRef, Protocol, Version, ports_text
from app.model.state import HostPort, IPInterface, ItemKey

_IP_FORWARD, _FORWARDING6 = "net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"
_SETTINGS = {_IP_FORWARD: "0", _FORWARDING6: "0", "net/ipv4/conf/all/rp_filter": "0"}
_LO = "lo"


@dataclass(slots=True, eq=False)
class Link:
    """An interface; `owner` is the id in its mark, '' for somebody else's; `peer` is a veth's other end.

    marked: those of its addresses that we put there; ipv6: it is not off.
    """

    name: str
    kind: str
    owner: str = ""
    mac: str = ""
    mtu: int = 1500
    up: bool = False
    addresses: set[IPInterface] = field(default_factory=set)
    marked: set[IPInterface] = field(default_factory=set)
    ipv6: bool = True
    master: str = ""
    hairpin: bool = False
    isolated: bool = False
    locked: bool = False
    peer: tuple[Namespace, str] | None = None
    connected: bool = True


@dataclass(slots=True)
class Route:
    """A default route; `ours`: it bears the daemon's protocol number."""

    via: IPAddress
    ifname: str
    ours: bool


@dataclass(slots=True, eq=False)
class Namespace:
    """A network namespace; `owner` is the id in the mark of its lo, `uid` whose its user namespace is."""

    owner: str = ""
    uid: int = 0
    links: dict[str, Link] = field(default_factory=lambda: {_LO: Link(_LO, "loopback", up=True)})
    routes: dict[Version, Route] = field(default_factory=dict)


class FakeHost:
    """Facts about the host (`app.model.contracts.Host`), and what a test puts there."""

    def __init__(self) -> None:
        self.host = Namespace()
        self.names: dict[str, Namespace] = {}
        self.files: set[str] = set()
        self.paths: dict[str, Namespace] = {}
        self.processes: dict[int, tuple[int, Namespace]] = {}
        self.routes: list[tuple[IPNetwork, str]] = []
        self.uplink = ""
        self.sysctls: dict[str, str] = dict(_SETTINGS)
        self.others: set[str] = set()
        self.loopbacks: set[str] = set()
        self.depended_on: set[str] = set()
        self.can_lock_ports = True
        self._known: dict[Namespace, tuple[NetnsRef, str]] = {}
        self._former: dict[str, tuple[str, str]] = {}
        self._held: dict[ItemKey, HostPort] = {}
        self._foreign_ports: list[tuple[Protocol, IPAddress, int, str]] = []

    # --- what a test puts there, in others' name

    def add_link(
        self, name: str, *addresses: IPInterface, mtu: int = 1500, owner: str = "", uplink: bool = False
    ) -> None:
        """An interface of the host; `uplink`: the default route goes there. Its subnets become routes."""
        self.host.links[name] = Link(name, "dummy", owner, mtu=mtu, up=True, addresses=set(addresses))
        self.routes += [(address.network, name) for address in addresses]
        if uplink:
            self.uplink = name

    def depend_on(self, path: str) -> None:
        """Somebody came who forwards by a setting since we changed it: it stays when we no longer need it."""
        self.depended_on.add(path)

    def add_route(self, destination: IPNetwork, ifname: str) -> None:
        """A route of the host."""
        self.routes.append((destination, ifname))

    def add_namespace(self, name: str, *ifnames: str) -> Namespace:
        """A namespace under /run/netns that somebody else made."""
        made = Namespace()
        made.links |= {ifname: Link(ifname, "dummy") for ifname in ifnames}
        self.names[name] = made
        return made

    def add_process(self, pid: int, netns: Namespace, start_time: int = 1) -> None:
        """A process in a namespace."""
        self.processes[pid] = (start_time, netns)

    def hold_port(self, protocol: Protocol, address: IPAddress, port: int, process: str) -> None:
        """A process holds a port of the host."""
        self._foreign_ports.append((protocol, address, port, process))

    def snapshot(self) -> str:
        """All there is, as text that is equal where the kernel is."""
        parts = [f"host {_described(self.host)}"]
        parts += [f"netns {name} {_described(one)}" for name, one in sorted(self.names.items())]
        parts += [f"path {path} {_described(one)}" for path, one in sorted(self.paths.items())]
        parts += [f"pid {pid} {_described(one)}" for pid, (_start, one) in sorted(self.processes.items())]
        parts += sorted(
            f"port {one.protocol} {one.address} {ports_text(one.port, one.count)}" for one in self._held.values()
        )
        parts += [f"sysctl {path}={value}" for path, value in sorted(self.sysctls.items())]
        parts += [f"loopback route by {bridge}" for bridge in sorted(self.loopbacks)]
        parts += [f"former {path} {values}" for path, values in sorted(self._former.items())]
        return "\n".join(parts)

    # --- facts for checks

    def refresh(self) -> None:
        """Nothing to take in: there is only one truth here."""

    def link_exists(self, name: str) -> bool:
        return name in self.host.links

    def holds_address(self, address: IPAddress) -> bool:
        if address.is_loopback:
            return True
        return any(address == held.ip for link in self.host.links.values() for held in link.addresses)

    def route_in_the_way(self, subnet: IPNetwork) -> tuple[IPNetwork, str] | None:
        connected = (
            (held.network, link.name)
            for link in self.host.links.values()
            for held in link.addresses
            if link.kind == "bridge"
        )
        for target, ifname in (*self.routes, *connected):
            if target.version == subnet.version and target.prefixlen and target.overlaps(subnet):
                return target, ifname
        return None

    def default_mtu(self) -> int:
        link = self.host.links.get(self.uplink)
        return link.mtu if link is not None else 1500

    def _setting(self, path: str) -> Setting:
        former = self._former.get(path)
        return Setting(self.sysctls[path], former[0] if former else None)

    def describe(self) -> HostFacts:
        return HostFacts(
            ip_forward=self._setting(_IP_FORWARD),
            ipv6_forwarding=self._setting(_FORWARDING6),
            bridge_nf_call_iptables=None,
            bridge_nf_call_ip6tables=None,
            ipv6=True,
            uplinks=tuple(self._uplinks()),
            routes=tuple(HostRoute(target, ifname) for target, ifname in self.routes if target.prefixlen),
        )

    def _uplinks(self) -> Iterator[Uplink]:
        link = self.host.links.get(self.uplink)
        if link is not None:
            addresses = tuple(sorted(held for held in link.addresses if held.version == 4))
            yield Uplink(4, link.name, None, 0, link.mtu, addresses)

    def resolve(self, ref: NetnsRef) -> NetnsRef:
        if ref.kind is NetnsKind.PID:
            found = self.processes.get(int(ref.value))
            if found is None:
                raise NamespaceMissing(f"there is no process {ref.value}")
            ref = replace(ref, start_time=found[0])
        if self._open(ref) is self.host:
            raise Invalid(f"{ref} is the host's own network namespace; name another one")
        return ref

    def namespace_name_free(self, name: str) -> bool:
        return name not in self.names and name not in self.files

    def gone(self, ref: NetnsRef) -> str:
        return "" if self._find(ref) is not None else f"{ref} cannot be opened: No such file or directory"

    def permit_creation(self, name: str) -> None:
        self.others.discard(name)

    def known_as(self, ref: NetnsRef) -> str | None:
        known = self._known.get(self._open(ref))
        return known[1] if known is not None and self._find(known[0]) is self._open(ref) else None

    def belongs_to(self, ref: NetnsRef, uid: int) -> bool:
        return self._open(ref).uid == uid

    def link_exists_in(self, ref: NetnsRef, name: str) -> bool:
        found = self._find(ref)
        return found is not None and name in found.links

    def visiting(self) -> AbstractContextManager[None]:
        return nullcontext()

    def probe_port(self, protocol: Protocol, address: IPAddress, port: int) -> None:
        if int(address) != 0 and not self.holds_address(address):
            raise KernelRefused(errno.EADDRNOTAVAIL, f"bind {protocol} {address}:{port}")
        own = [
            (one.protocol, one.address, number, "process 'bridgehead' (pid 1)")
            for one in self._held.values()
            for number in range(one.port, one.port + one.count)
        ]
        for held_protocol, held, held_port, process in (*self._foreign_ports, *own):
            meets = held.version == address.version and (held == address or 0 in (int(held), int(address)))
            if (held_protocol, held_port) == (protocol, port) and meets:
                raise PortTaken(
                    f"host port {protocol}/{address}:{port} is held by {process}; stop it, or publish another host_port"
                )

    def _find(self, ref: NetnsRef) -> Namespace | None:
        if ref.kind is NetnsKind.NAME:
            return self.names.get(ref.value)
        if ref.kind is NetnsKind.PATH:
            return self.paths.get(ref.value)
        start_time, netns = self.processes.get(int(ref.value), (0, None))
        return netns if start_time == ref.start_time else None

    def _open(self, ref: NetnsRef) -> Namespace:
        found = self._find(ref)
        if found is None:
            raise NamespaceMissing(f"{ref} cannot be opened: No such file or directory")
        return found


def link_settings(ifname: str) -> dict[str, str]:
    """The settings that come and go with an interface of the host, as they are at first."""
    return {f"net/ipv4/conf/{ifname}/{key}": "0" for key in ("route_localnet", "rp_filter")}


def _described(netns: Namespace) -> str:
    links = [
        f"{link.name} {link.kind} {link.owner} {link.mac} {link.mtu} up={link.up} {sorted(map(str, link.addresses))} "
        f"master={link.master} hairpin={link.hairpin} isolated={link.isolated} locked={link.locked} "
        f"ipv6={link.ipv6} peer={link.peer[1] if link.peer else ''}"
        for _name, link in sorted(netns.links.items())
    ]
    return f"{netns.owner} {links} {sorted(netns.routes.items())}"
