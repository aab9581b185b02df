"""A kernel in memory, as strict as the real one: for tests that need no root.

It keeps to `app.model.contracts.Kernel`, refuses what the real one refuses with the same errors, and lets
a test put there what others own (`add_*`, `hold_port`), make it fail (`refuse`), and compare (`snapshot`).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

from app.kernel.fakeworld import FakeHost, Link, Namespace, Route, link_settings
from app.model.commands import commands
from app.model.errors import BridgeheadError, Invalid, KernelRefused, NamespaceMissing, PortTaken
from app.model.ops import Op
from app.model.spec import IPNetwork, NetnsKind, NetnsRef, Protocol
from app.model.state import (
    Attachment,
    Bridge,
    DefaultRoute,
    ForeignLink,
    HostPort,
    IPInterface,
    Item,
    ItemKey,
    LoopbackRoute,
    Netns,
    PortForward,
    Sysctl,
)

BRIDGE_PORTS = 1023


@dataclass(slots=True)
class _Refusal:
    match: Callable[[Op], bool]
    error: BridgeheadError | None


class FakeKernel(FakeHost):
    """See `app.model.contracts.Kernel`."""

    def __init__(self) -> None:
        super().__init__()
        self.flushed: list[PortForward] = []
        self.flushed_into: set[IPNetwork] = set()
        self.log: list[Op] = []
        self.closed = False
        self._refusals: list[_Refusal] = []

    def refuse(self, match: Callable[[Op], bool], error: BridgeheadError | None = None) -> None:
        """From now on, operations that match are refused: with `error`, else EPERM and the command."""
        self._refusals.append(_Refusal(match, error))

    def relent(self) -> None:
        """Takes every `refuse` back."""
        self._refusals.clear()

    # --- changes

    def apply(self, op: Op) -> None:
        for refusal in self._refusals:
            if refusal.match(op):
                raise refusal.error or KernelRefused(errno.EPERM, commands(op)[0])
        handlers: dict[type, Callable[[Op], None]] = {
            Netns: self._netns,
            HostPort: self._host_port,
            Bridge: self._bridge,
            Attachment: self._attachment,
            DefaultRoute: self._default_route,
            Sysctl: self._sysctl,
            LoopbackRoute: self._loopback_route,
            ForeignLink: self._foreign_link,
        }
        handlers[type(op.item)](op)
        self.log.append(op)

    def remove(self, ops: Sequence[Op]) -> list[tuple[Op, BridgeheadError]]:
        refused: list[tuple[Op, BridgeheadError]] = []
        for op in ops:
            try:
                self.apply(op)
            except BridgeheadError as refusal:
                refused.append((op, refusal))
        return refused

    def settle(self) -> None:
        """It keeps nothing."""

    def flush(self, forwards: Collection[PortForward]) -> None:
        self.flushed += [forward for forward in forwards if forward.protocol is not Protocol.TCP]

    def flush_into(self, subnets: Collection[IPNetwork]) -> None:
        self.flushed_into |= set(subnets)

    def close(self) -> None:
        self._held.clear()
        self.closed = True

    def _netns(self, op: Op) -> None:
        match op.before, op.after:
            case Netns() as before, Netns() if before.name not in self.names:
                raise NamespaceMissing(f"namespace '{before.name}' was deleted")
            case _, Netns() as after if after.name not in self.names:
                if not after.create:
                    raise NamespaceMissing(f"namespace '{after.name}' is not there, and create_namespace is false")
                if after.name in self.files:
                    _refuse(errno.EEXIST, op)
                if after.name in self.others:
                    raise NamespaceMissing(f"namespace '{after.name}' was deleted by whoever made it")
                self.names[after.name] = Namespace(after.owner)
            case _, Netns() as after:
                self._note_maker(after.name)
            case Netns() as before, None:
                found = self.names.get(before.name)
                if found is not None and found.owner:
                    del self.names[before.name]
                    for link in list(found.links.values()):
                        self._drop(found, link.name)

    def _note_maker(self, name: str) -> None:
        if self.names[name].owner:
            self.others.discard(name)
        else:
            self.others.add(name)

    def _host_port(self, op: Op) -> None:
        former = self._held.pop(op.before.key, None) if isinstance(op.before, HostPort) else None
        if isinstance(op.after, HostPort):
            for port in range(op.after.port, op.after.port + op.after.count):
                try:
                    self.probe_port(op.after.protocol, op.after.address, port)
                except PortTaken:
                    if former is not None:
                        self._held[former.key] = former
                    raise
            self._held[op.after.key] = op.after

    def _sysctl(self, op: Op) -> None:
        match op.before, op.after:
            case _, Sysctl() as after:
                current = self.sysctls.get(after.path)
                if current is None:
                    _refuse(errno.ENOENT, op)
                if current != after.value and not self._is_lax(after.path):
                    former = self._former.get(after.path, (current, ""))[0]
                    self._former[after.path] = (former, after.value)
                    self.sysctls[after.path] = after.value
            case Sysctl() as before, None if before.path in self._former:
                former, ours = self._former.pop(before.path)
                if self.sysctls.get(before.path) == ours and before.path not in self.depended_on:
                    self.sysctls[before.path] = former

    def _is_lax(self, path: str) -> bool:
        """A reverse path filter that is not strict is as loose as wanted; the higher of `all` and its own counts."""
        everywhere = self.sysctls["net/ipv4/conf/all/rp_filter"]
        return path.endswith("/rp_filter") and max(everywhere, self.sysctls[path]) != "1"

    def _loopback_route(self, op: Op) -> None:
        match op.before, op.after:
            case _, LoopbackRoute() as after:
                if not self._require(self.host, after.bridge, op).ipv6:
                    _refuse(errno.EACCES, op)
                self.loopbacks.add(after.bridge)
            case LoopbackRoute() as before, None:
                self.loopbacks.discard(before.bridge)

    def _foreign_link(self, op: Op) -> None:
        if isinstance(op.before, ForeignLink):
            self._delete(op.before.name, op.before.owner)

    def _delete(self, name: str, owner: str) -> None:
        link = self.host.links.get(name)
        if link is not None and link.owner == owner:
            self._drop(self.host, name)

    def _drop(self, netns: Namespace, name: str) -> None:
        """A link goes, with its other end, its routes and its settings; ports of a bridge are left without one."""
        link = netns.links.pop(name, None)
        if link is None:
            return
        netns.routes = {version: route for version, route in netns.routes.items() if route.ifname != name}
        for other in netns.links.values():
            other.master = "" if other.master == name else other.master
        if netns is self.host:
            self.loopbacks.discard(name)
            for path in link_settings(name):
                self.sysctls.pop(path, None)
        if link.peer is not None:
            self._drop(*link.peer)

    def _require(self, netns: Namespace, name: str, op: Op) -> Link:
        link = netns.links.get(name)
        if link is None:
            _refuse(errno.ENODEV, op)
        return link

    def _add(self, netns: Namespace, link: Link, op: Op) -> None:
        if link.name in netns.links:
            _refuse(errno.EEXIST, op)
        if not 0 < len(link.name) <= 15 or not 68 <= link.mtu <= 65535:
            _refuse(errno.EINVAL, op)
        if int(link.mac[:2], 16) & 1 or not int(link.mac.replace(":", ""), 16):
            _refuse(errno.EADDRNOTAVAIL, op)
        netns.links[link.name] = link
        if netns is self.host:
            self.sysctls |= link_settings(link.name)

    def _bridge(self, op: Op) -> None:
        match op.before, op.after:
            case None, Bridge() as after:
                made = Link(after.name, "bridge", after.owner, after.mac, after.mtu, up=True, ipv6=after.ipv6)
                _readdress(made, None, after, op)
                self._add(self.host, made, op)
            case Bridge() as before, None:
                self._delete(before.name, before.owner)
            case Bridge() as before, Bridge() as after:
                link = self._require(self.host, after.name, op)
                link.ipv6 = after.ipv6
                _readdress(link, before, after, op)
                link.mac, link.mtu, link.up, link.connected = after.mac, after.mtu, True, True

    def _attachment(self, op: Op) -> None:
        match op.before, op.after:
            case None, Attachment() as after:
                self._attach(after, op)
            case Attachment() as before, None:
                self._delete(before.host_ifname, before.owner)
            case Attachment() as before, Attachment() as after:
                outer = self._require(self.host, after.host_ifname, op)
                self._require(self.host, after.bridge, op)
                inner = self._require(self._open(after.netns), after.ifname, op)
                self._set_port(outer, after, op)
                inner.ipv6 = after.ipv6
                _readdress(inner, before, after, op)
                outer.mtu = inner.mtu = after.mtu
                outer.up = inner.up = inner.connected = True

    def _set_port(self, outer: Link, item: Attachment, op: Op) -> None:
        if item.locked and not self.can_lock_ports:
            _refuse(errno.EOPNOTSUPP, op)
        outer.master, outer.hairpin = item.bridge, item.hairpin
        outer.isolated, outer.locked = item.isolated, item.locked

    def _attach(self, item: Attachment, op: Op) -> None:
        netns = self._open(item.netns)
        if netns is self.host:
            raise Invalid(f"{item.netns} is the host's own network namespace; name another one")
        if self._require(self.host, item.bridge, op).kind != "bridge":
            _refuse(errno.EOPNOTSUPP, op)
        if sum(link.master == item.bridge for link in self.host.links.values()) >= BRIDGE_PORTS:
            _refuse(errno.EXFULL, op)
        if item.ifname in netns.links:
            _refuse(errno.EEXIST, op)
        outer = Link(item.host_ifname, "veth", item.owner, "02:00:00:00:00:01", item.mtu, up=True, ipv6=False)
        self._set_port(outer, item, op)
        self._add(self.host, outer, op)
        inner = Link(item.ifname, "veth", item.owner, item.mac, item.mtu, up=True, ipv6=item.ipv6)
        try:
            _readdress(inner, None, item, op)
            self._add(netns, inner, op)
        except KernelRefused:
            self._drop(self.host, outer.name)
            raise
        self._known[netns] = (item.netns, item.namespace_key)
        outer.peer, inner.peer = (netns, inner.name), (self.host, outer.name)

    def _default_route(self, op: Op) -> None:
        route = op.item
        if not isinstance(route, DefaultRoute):
            return
        netns = self._find(route.netns)
        if op.after is None:
            held = netns.routes.get(route.version) if netns is not None else None
            if netns is not None and held == Route(route.via, route.ifname, ours=True):
                del netns.routes[route.version]
            return
        if netns is None:
            raise NamespaceMissing(f"{route.netns} cannot be opened: No such file or directory")
        link = self._require(netns, route.ifname, op)
        if not any(route.via in held.network for held in link.addresses):
            _refuse(errno.ENETUNREACH, op)
        standing = netns.routes.get(route.version)
        if standing is not None and not standing.ours:
            _refuse(errno.EEXIST, op)
        netns.routes[route.version] = Route(route.via, route.ifname, ours=True)

    # --- reading back

    def observe(self, expected: Iterable[Item]) -> list[Item]:
        wanted = {item.key: item for item in expected}
        found: list[Item] = [self._observed(link, wanted) for link in self.host.links.values() if link.owner]
        named = {("netns", name) for name, netns in self.names.items() if netns.owner}
        named |= {
            ("netns", item.name) for item in wanted.values() if isinstance(item, Netns) and item.name in self.names
        }
        for _kind, name in sorted(named):
            self._note_maker(name)
            found.append(Netns(name, self.names[name].owner))
        found += self._held.values()
        found += self._observed_routes(wanted.values())
        settings = {item.path: item for item in wanted.values() if isinstance(item, Sysctl)}
        paths = settings.keys() | self._former.keys()
        owners = {path: item.owner for path, item in settings.items()}
        values = {path: self.sysctls[path] for path in sorted(paths) if path in self.sysctls}
        values |= {path: one.value for path in values if self._is_lax(path) and (one := settings.get(path)) is not None}
        found += [Sysctl(owners.get(path, ""), path, value) for path, value in values.items()]
        routed = {item.bridge: item.owner for item in wanted.values() if isinstance(item, LoopbackRoute)}
        found += [LoopbackRoute(routed.get(bridge, ""), bridge) for bridge in sorted(self.loopbacks)]
        return found

    def observe_items(self, expected: Iterable[Item]) -> list[Item]:
        wanted = list(expected)
        keys, owners = {item.key for item in wanted}, {item.owner for item in wanted if item.key[0] == "link"}
        return [
            item
            for item in self.observe(wanted)
            if item.key in keys
            or isinstance(item, DefaultRoute)
            or (isinstance(item, ForeignLink) and item.owner in owners)
        ]

    def _observed(self, link: Link, wanted: dict[ItemKey, Item]) -> Item:
        item = wanted.get(("link", link.name))
        match item:
            case Bridge() if (item.owner, "bridge") == (link.owner, link.kind):
                return replace(
                    item,
                    mac=link.mac,
                    mtu=link.mtu,
                    addresses=_held(item, link),
                    ipv6=link.ipv6,
                    up=link.up,
                    connected=link.connected,
                )
            case Attachment() if (item.owner, "veth") == (link.owner, link.kind) and link.peer is not None:
                netns, ifname = link.peer
                inner = netns.links[ifname]
                self._known[netns] = (item.netns, item.namespace_key)
                if (netns, ifname, inner.mac) == (self._find(item.netns), item.ifname, item.mac):
                    return replace(
                        item,
                        bridge=link.master,
                        mtu=min(link.mtu, inner.mtu),
                        addresses=_held(item, inner),
                        ipv6=inner.ipv6,
                        hairpin=link.hairpin,
                        isolated=link.isolated,
                        locked=link.locked,
                        up=link.up and inner.up,
                        connected=inner.connected,
                    )
                if self._find(item.netns) is None and not _is_remade(item.netns, wanted):
                    return replace(item, bridge=link.master, mtu=link.mtu, up=False)
            case _:
                pass
        return ForeignLink(link.owner, link.name)

    def _observed_routes(self, wanted: Iterable[Item]) -> Iterator[DefaultRoute]:
        members = {item.namespace_key: item for item in wanted if isinstance(item, Attachment)}
        for key, member in members.items():
            netns = self._find(member.netns)
            for route in netns.routes.values() if netns is not None else ():
                if route.ours:
                    yield DefaultRoute(member.owner, member.netns, key, route.via, route.ifname)


def _is_remade(ref: NetnsRef, wanted: Mapping[ItemKey, Item]) -> bool:
    """Whether a missing namespace is made again under its name."""
    named = wanted.get(("netns", ref.value)) if ref.kind is NetnsKind.NAME else None
    return isinstance(named, Netns) and named.create


def _refuse(number: int, op: Op) -> NoReturn:
    raise KernelRefused(number, (commands(op) or ["?"])[0])


def _held(item: Bridge | Attachment, link: Link) -> frozenset[IPInterface]:
    """An address that nobody wants and that bears no mark is somebody's."""
    return frozenset((item.addresses | link.marked) & link.addresses)


def _readdress(link: Link, before: Bridge | Attachment | None, after: Bridge | Attachment, op: Op) -> None:
    held = before.addresses if before is not None else frozenset[IPInterface]()
    if not link.ipv6:
        link.addresses = {address for address in link.addresses if address.version == 4}
    for address in after.addresses - held:
        if address.version == 6 and not link.ipv6:
            _refuse(errno.EACCES, op)
        link.addresses.add(address)
        link.marked.add(address)
    for address in held - after.addresses:
        if address not in link.addresses:
            _refuse(errno.EADDRNOTAVAIL, op)
        link.addresses.remove(address)
        link.marked.discard(address)
