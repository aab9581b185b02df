"""The real kernel: every item made, changed, removed and read back. One thread, in the host's namespace."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from app.kernel import announce, conntrack, ports, report, sysctl
from app.kernel.mirror import HostMirror
from app.kernel.namespaces import Identity, Namespaces, identity, opened, start_time
from app.kernel.netlink import Rtnl
from app.kernel.wire import BR_STATE_FORWARDING, LINK_GROUP, ROUTE_PROTOCOL, Link
from app.model.errors import Invalid, KernelRefused, NamespaceMissing
from app.model.host import HostFacts
from app.model.naming import alias, owner_of
from app.model.ops import Op
from app.model.spec import IPAddress, IPNetwork, NetnsKind, NetnsRef, Protocol
from app.model.state import (
    Attachment,
    Bridge,
    DefaultRoute,
    ForeignLink,
    HostPort,
    IPInterface,
    Item,
    Netns,
    PortForward,
    Sysctl,
)

log = logging.getLogger("bridgehead.kernel")

_DEFAULT_MTU = 1500
_PORT_TIMEOUT = 2.0
"""Seconds until a bridge port that does not forward counts as refused; it takes 0.1 ms otherwise."""


class LinuxKernel:
    """See `app.model.contracts.Kernel`. Belongs to the thread that makes it."""

    def __init__(self, state_dir: Path) -> None:
        self._namespaces = Namespaces()
        self._namespaces.require_links()
        self._rtnl = Rtnl()
        self._mirror = HostMirror()
        self._ports = ports.PortReservations()
        self._ledger = sysctl.SysctlLedger(state_dir / "sysctl.json")
        self._known: dict[Identity, tuple[NetnsRef, str]] = {}
        # closing a packet socket waits for an RCU grace period, 16 ms that nobody needs to wait for
        self._closer = ThreadPoolExecutor(1, thread_name_prefix="closer")
        ports.raise_descriptor_limit()

    def close(self) -> None:
        self._closer.shutdown()
        self._ports.close()
        self._mirror.close()
        self._rtnl.close()
        self._namespaces.close()

    # --- facts for checks

    def refresh(self) -> None:
        self._mirror.refresh()

    def link_exists(self, name: str) -> bool:
        return self._mirror.link(name) is not None

    def holds_address(self, address: IPAddress) -> bool:
        return self._mirror.holds_address(address)

    def route_in_the_way(self, subnet: IPNetwork) -> tuple[IPNetwork, str] | None:
        return self._mirror.route_in_the_way(subnet)

    def default_mtu(self) -> int:
        return self._mirror.default_mtu() or _DEFAULT_MTU

    def resolve(self, ref: NetnsRef) -> NetnsRef:
        if ref.kind is NetnsKind.PID:
            ref = replace(ref, start_time=start_time(int(ref.value)))
        with opened(ref) as descriptor:
            if identity(descriptor) == self._namespaces.host_identity:
                raise Invalid(f"{ref} is the host's own network namespace; name another one")
        return ref

    def namespace_name_free(self, name: str) -> bool:
        return not self._namespaces.exists(name)

    def known_as(self, ref: NetnsRef) -> str | None:
        with opened(ref) as descriptor:
            wanted = identity(descriptor)
        known = self._known.get(wanted)
        if known is None:
            return None
        try:
            with opened(known[0]) as descriptor:
                if identity(descriptor) == wanted:
                    return known[1]
        except NamespaceMissing:
            pass
        del self._known[wanted]  # it died, and another has its inode
        return None

    def link_exists_in(self, ref: NetnsRef, name: str) -> bool:
        try:
            with opened(ref) as descriptor, self._namespaces.rtnl(descriptor, str(ref)) as rtnl:
                return rtnl.link(name) is not None
        except NamespaceMissing:
            return False

    def probe_port(self, protocol: Protocol, address: IPAddress, port: int) -> None:
        ports.probe(protocol, address, port)

    def describe(self) -> HostFacts:
        self._mirror.refresh()
        return report.describe(self._mirror, self._ledger)

    # --- changes

    def apply(self, op: Op) -> None:
        handlers: dict[type, Callable[[Op], None]] = {
            Netns: self._netns,
            HostPort: self._host_port,
            Bridge: self._bridge,
            Attachment: self._attachment,
            DefaultRoute: self._default_route,
            Sysctl: self._sysctl,
            ForeignLink: self._foreign_link,
        }
        handlers[type(op.item)](op)

    def flush(self, forwards: Collection[PortForward]) -> None:
        self._mirror.refresh()
        concerned = [forward for forward in forwards if conntrack.needs_flush(forward)]
        conntrack.flush(concerned, self._mirror.holds_address)

    def _netns(self, op: Op) -> None:
        match op.before, op.after:
            case _, Netns() as after if not self._namespaces.exists(after.name):
                if not after.create:
                    raise NamespaceMissing(f"namespace '{after.name}' is not there, and create_namespace is false")
                self._namespaces.create(after.name, after.owner)
            case Netns() as before, None:
                self._namespaces.delete(before.name)

    def _host_port(self, op: Op) -> None:
        before = op.before if isinstance(op.before, HostPort) else None
        self._ports.change(before, op.after if isinstance(op.after, HostPort) else None)

    def _sysctl(self, op: Op) -> None:
        match op.before, op.after:
            case _, Sysctl() as after:
                self._ledger.set(after.path, after.value)
            case Sysctl() as before, None:
                self._ledger.restore(before.path)

    def _foreign_link(self, op: Op) -> None:
        if isinstance(op.before, ForeignLink):
            self._delete_link(op.before.name, op.before.owner)

    def _delete_link(self, name: str, owner: str) -> None:
        link = self._rtnl.link(name)
        if link is not None and _is_ours(link) and (owner_of(link.alias) or owner) == owner:
            self._rtnl.delete_link(link.index)

    def _require_own(self, name: str, owner: str | None = None) -> Link:
        """A link that bears our mark. Raises KernelRefused where it is gone, or somebody else's by now."""
        link = self._rtnl.require(name)
        mark = owner_of(link.alias)
        if mark is None or owner not in (None, mark):
            asked = f"ip link show {name}"
            raise KernelRefused(errno.ENODEV, asked, "ours is gone, and somebody else's has its name")
        return link

    @contextmanager
    def _undone(self, index: int) -> Iterator[None]:
        """Removes a link that was made where what follows fails."""
        try:
            yield
        except BaseException:
            self._rtnl.delete_link(index)
            raise

    def _bridge(self, op: Op) -> None:
        match op.before, op.after:
            case None, Bridge() as after:
                link = self._rtnl.add_bridge(after.name, after.mac, after.mtu, alias(after.owner))
                with self._undone(link.index):
                    _ipv6_off(after.name, off=not after.ipv6)
                    # else a gateway that moves within its subnet would take the new address with the old one
                    sysctl.write(f"net/ipv4/conf/{after.name}/promote_secondaries", "1")
                    for address in sorted(after.addresses):
                        self._rtnl.add_address(link.index, address)
                    self._rtnl.set_link(link.index, up=True)
            case Bridge() as before, None:
                self._delete_link(before.name, before.owner)
            case Bridge() as before, Bridge() as after:
                self._change_bridge(before, after)

    def _change_bridge(self, before: Bridge, after: Bridge) -> None:
        index = self._require_own(after.name, after.owner).index
        _ipv6_off(after.name, off=not after.ipv6)
        if (before.mac, before.mtu) != (after.mac, after.mtu):
            self._rtnl.set_link(index, mac=after.mac, mtu=after.mtu)
        _change_addresses(self._rtnl, index, before, after)
        if not before.up:
            self._rtnl.set_link(index, up=True)
        self._announce(after.name, after.mac, after.addresses - before.addresses)

    def _announce(self, ifname: str, mac: str, addresses: Collection[IPInterface]) -> None:
        """Tells the neighbours on one of the host's links that it has these addresses now."""
        if addresses:
            announcer = announce.open_socket()
            try:
                announce.announce(announcer, ifname, mac, addresses)
            finally:
                self._closer.submit(announcer.close)

    def _attachment(self, op: Op) -> None:
        match op.before, op.after:
            case None, Attachment() as after:
                self._attach(after)
            case Attachment() as before, None:
                self._delete_link(before.host_ifname, before.owner)
            case Attachment() as before, Attachment() as after:
                self._change_attachment(before, after)

    def _attach(self, item: Attachment) -> None:
        with opened(item.netns) as netns:
            if identity(netns) == self._namespaces.host_identity:
                raise Invalid(f"{item.netns} is the host's own network namespace; name another one")
            link = self._rtnl.add_veth(
                item.host_ifname,
                master=self._require_own(item.bridge).index,
                mtu=item.mtu,
                alias=alias(item.owner),
                peer=item.ifname,
                peer_mac=item.mac,
                peer_netns=netns,
            )
            with self._undone(link.index):
                self._set_up(item, link, netns)
            self._known[identity(netns)] = (item.netns, item.namespace_key)

    def _set_up(self, item: Attachment, link: Link, netns: int) -> None:
        _ipv6_off(item.host_ifname, off=True)
        self._rtnl.set_link(link.index, up=True, hairpin=item.hairpin or None)
        with self._namespaces.inside(netns):
            _ipv6_off(item.ifname, off=not item.ipv6)
            inner, announcer = Rtnl(str(item.netns)), announce.open_socket()
        try:
            index = link.peer_index or inner.require(item.ifname).index
            inner.set_link(index, alias=alias(item.owner))
            for address in sorted(item.addresses):
                inner.add_address(index, address)
            inner.set_link(index, up=True)
            self._await_forwarding(link.index, item.host_ifname)
            announce.announce(announcer, item.ifname, item.mac, item.addresses)
        finally:
            inner.close()
            self._closer.submit(announcer.close)

    def _await_forwarding(self, index: int, name: str) -> None:
        deadline = time.monotonic() + _PORT_TIMEOUT
        while True:
            link = self._rtnl.link(index=index)
            if link is not None and link.port_state == BR_STATE_FORWARDING:
                return
            if link is None or time.monotonic() > deadline:
                raise KernelRefused(errno.ETIMEDOUT, f"bridge link set dev {name} state forwarding")
            time.sleep(0.0001)

    def _change_attachment(self, before: Attachment, after: Attachment) -> None:
        link = self._require_own(after.host_ifname, after.owner)
        master = self._require_own(after.bridge).index
        if link.master != master:
            self._rtnl.set_link(link.index, master=master)
        if before.mtu != after.mtu:
            self._rtnl.set_link(link.index, mtu=after.mtu)
        if before.hairpin != after.hairpin:
            self._rtnl.set_link(link.index, hairpin=after.hairpin)
        if not before.up:
            self._rtnl.set_link(link.index, up=True)
        inside = replace(before, hairpin=after.hairpin, bridge=after.bridge)
        if inside == after:
            return
        with opened(after.netns) as netns, self._namespaces.rtnl(netns, str(after.netns)) as inner:
            index = inner.require(after.ifname).index
            inner.set_link(index, mtu=after.mtu)
            _change_addresses(inner, index, before, after)
            if not before.up:
                inner.set_link(index, up=True)

    def _default_route(self, op: Op) -> None:
        route = op.item
        if not isinstance(route, DefaultRoute):
            return
        try:
            with opened(route.netns) as netns, self._namespaces.rtnl(netns, str(route.netns)) as inner:
                link = inner.link(route.ifname)
                if op.after is None:
                    if link is not None:
                        inner.delete_default_route(route.via, link.index)
                    return
                if link is None:
                    raise KernelRefused(errno.ENODEV, f"ip -n {route.netns} link show {route.ifname}")
                # one that went with its link leaves nothing to replace, and an administrator's is not ours to
                held = [old for old in inner.routes() if old.destination is None and old.version == route.version]
                ours = any(old.protocol == ROUTE_PROTOCOL for old in held)
                inner.add_default_route(route.via, link.index, replace=ours)
        except NamespaceMissing:
            if op.after is not None:
                raise

    # --- reading back

    def observe(self, expected: Iterable[Item]) -> list[Item]:
        self._mirror.refresh()
        wanted = list(expected)
        found: list[Item] = [*self._observed_links(wanted)]
        found += [Netns(name, owner) for name, owner in self._namespaces.marked()]
        marked = {item.key for item in found}
        found += [
            item
            for item in wanted
            if isinstance(item, Netns) and item.key not in marked and self._namespaces.exists(item.name)
        ]
        found += self._ports.held()
        found += self._observed_routes(wanted)
        settings = {item.path: item for item in wanted if isinstance(item, Sysctl)}
        found += [
            replace(settings[path], value=current) for path in settings if (current := sysctl.read(path)) is not None
        ]
        found += [Sysctl("", path, sysctl.read(path) or "") for path in self._ledger.held() if path not in settings]
        return found

    def _observed_links(self, wanted: list[Item]) -> Iterator[Item]:
        links = {link.name: link for link in self._mirror.links()}
        bridges = {item.name: item for item in wanted if isinstance(item, Bridge)}
        veths = {item.host_ifname: item for item in wanted if isinstance(item, Attachment)}
        for link in links.values():
            if not _is_ours(link):
                continue
            owner = owner_of(link.alias) or ""
            bridge, veth = bridges.get(link.name), veths.get(link.name)
            if bridge is not None and (bridge.owner, "bridge") == (owner, link.kind):
                yield self._observed_bridge(bridge, link)
            elif veth is not None and (veth.owner, "veth") == (owner, link.kind):
                yield self._observed_attachment(veth, link) or ForeignLink(owner, link.name)
            else:
                yield ForeignLink(owner, link.name)

    def _observed_bridge(self, wanted: Bridge, link: Link) -> Bridge:
        addresses = {held for held in self._mirror.addresses_of(link.index) if held.version == 4 or wanted.ipv6}
        # an address that somebody added is theirs; only one in our subnets can be an old gateway of ours
        ours = {held for held in addresses if any(held.network == own.network for own in wanted.addresses)}
        return replace(wanted, mac=link.mac, mtu=link.mtu, addresses=frozenset(ours), up=link.up)

    def _observed_attachment(self, wanted: Attachment, link: Link) -> Attachment | None:
        """None where the other end is not where it should be: the pair is made anew."""
        try:
            with opened(wanted.netns) as netns, self._namespaces.rtnl(netns, str(wanted.netns)) as inner:
                self._known[identity(netns)] = (wanted.netns, wanted.namespace_key)
                peer = inner.link(wanted.ifname)
                if peer is None or peer.mac != wanted.mac or peer.index != link.peer_index:
                    return None
                held = frozenset(address for index, address in inner.addresses() if index == peer.index)
        except NamespaceMissing:
            return None
        master = self._mirror.name_of(link.master) if link.master is not None else ""
        return replace(
            wanted,
            bridge=master,
            mtu=min(link.mtu, peer.mtu),
            addresses=wanted.addresses & held,
            hairpin=link.hairpin,
            up=link.up and peer.up,
        )

    def _observed_routes(self, wanted: list[Item]) -> Iterator[DefaultRoute]:
        """Our default routes in the namespaces that have endpoints, wanted or not."""
        namespaces = {item.namespace_key: item for item in wanted if isinstance(item, Attachment)}
        for key, member in namespaces.items():
            try:
                with opened(member.netns) as netns, self._namespaces.rtnl(netns, str(member.netns)) as inner:
                    for route in inner.routes():
                        if route.destination is None and route.protocol == ROUTE_PROTOCOL and route.via is not None:
                            link = inner.link(index=route.oif or 0)
                            name = link.name if link is not None else ""
                            yield DefaultRoute(member.owner, member.netns, key, route.via, name)
            except NamespaceMissing:
                continue


def _is_ours(link: Link) -> bool:
    """Marked; or made by us and killed before the mark: our group, still down, no alias."""
    return owner_of(link.alias) is not None or (link.group == LINK_GROUP and not link.up and link.alias is None)


def _ipv6_off(name: str, *, off: bool) -> None:
    """Without a subnet for it, IPv6 is off on a link; a kernel without IPv6 has nothing to turn off."""
    path = f"net/ipv6/conf/{name}/disable_ipv6"
    if sysctl.read(path) not in (None, str(int(off))):
        sysctl.write(path, str(int(off)))


def _change_addresses(rtnl: Rtnl, index: int, before: Bridge | Attachment, after: Bridge | Attachment) -> None:
    for address in sorted(after.addresses - before.addresses):
        rtnl.add_address(index, address)
    for address in sorted(before.addresses - after.addresses):
        rtnl.delete_address(index, address)
