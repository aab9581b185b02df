"""Bridges, veth pairs, default routes: made, changed and removed."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

from app.kernel import announce, sysctl
from app.kernel.namespaces import KnownNamespaces, Namespaces, identity, opened
from app.kernel.netlink import Rtnl
from app.kernel.settings import loosen_filter, set_ipv6
from app.kernel.wire import BR_STATE_FORWARDING, ROUTE_PROTOCOL, Link, Route
from app.model.errors import Invalid, KernelRefused, NamespaceMissing
from app.model.naming import alias
from app.model.ops import Op
from app.model.spec import Version
from app.model.state import (
    Attachment,
    Bridge,
    DefaultRoute,
    ForeignLink,
    IPInterface,
    LoopbackRoute,
    in_order,
    subnets_of,
)

_PORT_TIMEOUT = 2.0
"""Seconds until a bridge port that does not forward counts as refused; it takes 0.1 ms otherwise."""


class Links:
    """See `app.model.contracts.Kernel.apply`. Belongs to the thread that makes it."""

    def __init__(self, rtnl: Rtnl, namespaces: Namespaces, known: KnownNamespaces) -> None:
        self._rtnl = rtnl
        self._namespaces = namespaces
        self._known = known
        # closing a packet socket waits for an RCU grace period, 16 ms that nobody needs to wait for
        self._closer = ThreadPoolExecutor(1, thread_name_prefix="closer")

    def close(self) -> None:
        self._closer.shutdown()

    # --- marks

    def foreign_link(self, op: Op) -> None:
        if isinstance(op.before, ForeignLink):
            self._delete(op.before.name, op.before.owner)

    def _delete(self, name: str, owner: str) -> None:
        link = self._rtnl.link(name)
        if link is not None and link.is_ours and (link.owner or owner) == owner:
            self._rtnl.delete_link(link.index)

    def _require_own(self, name: str, owner: str | None = None) -> Link:
        """A link that bears our mark. Raises KernelRefused where it is gone, or somebody else's by now."""
        link = self._rtnl.require(name)
        if link.owner is None or owner not in (None, link.owner):
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

    # --- bridges

    def bridge(self, op: Op) -> None:
        match op.before, op.after:
            case None, Bridge() as after:
                self._make_bridge(after)
            case Bridge() as before, None:
                self._delete(before.name, before.owner)
            case Bridge() as before, Bridge() as after:
                self._change_bridge(before, after)

    def _make_bridge(self, item: Bridge) -> None:
        link = self._rtnl.add_bridge(item.name, item.mac, item.mtu, alias(item.owner))
        with self._undone(link.index):
            _prepare_bridge(item)
            for address in in_order(item.addresses):
                self._rtnl.add_address(link.index, address)
            self._rtnl.set_link(link.index, up=True)

    def _change_bridge(self, before: Bridge, after: Bridge) -> None:
        index = self._require_own(after.name, after.owner).index
        _prepare_bridge(after)
        if (before.mac, before.mtu) != (after.mac, after.mtu):
            self._rtnl.set_link(index, mac=after.mac, mtu=after.mtu)
        _change_addresses(self._rtnl, index, before, after)
        if not before.up:
            self._rtnl.set_link(index, up=True)
        if not before.connected:
            _connect(self._rtnl, index, after)
        self._announce(after.name, after.mac, after.addresses - before.addresses)

    def _announce(self, ifname: str, mac: str, addresses: Collection[IPInterface]) -> None:
        """Tells the neighbours on one of the host's links that it has these addresses now."""
        if addresses:
            announcer = announce.open_socket()
            try:
                announce.announce(announcer, ifname, mac, addresses, router=True)
            finally:
                self._closer.submit(announcer.close)

    # --- veth pairs

    def attachment(self, op: Op) -> None:
        match op.before, op.after:
            case None, Attachment() as after:
                self._attach(after)
            case Attachment() as before, None:
                self._delete(before.host_ifname, before.owner)
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
            self._known.remember(netns, item.netns, item.namespace_key)

    def _set_up(self, item: Attachment, link: Link, netns: int) -> None:
        set_ipv6(item.host_ifname, on=False)
        self._set_up_port(item, link.index)
        with self._inside(item, netns) as (inner, announcer):
            index = link.peer_index or inner.require(item.ifname).index
            inner.set_link(index, alias=alias(item.owner))
            for address in in_order(item.addresses):
                inner.add_address(index, address)
            inner.set_link(index, up=True)
            _check_port(item, self._await_forwarding(link.index, item.host_ifname))
            announce.announce(announcer, item.ifname, item.mac, item.addresses)

    @contextmanager
    def _inside(self, item: Attachment, netns: int) -> Iterator[tuple[Rtnl, socket.socket]]:
        """Sockets in the endpoint's namespace, where its end's settings are as they must be."""
        with self._namespaces.inside(netns):
            set_ipv6(item.ifname, on=item.ipv6)
            loosen_filter(item.ifname)
            inner, announcer = Rtnl(str(item.netns)), announce.open_socket()
        try:
            yield inner, announcer
        finally:
            inner.close()
            self._closer.submit(announcer.close)

    def _set_up_port(self, item: Attachment, index: int) -> None:
        """Its options first: no frame passes without them."""
        if item.locked:
            self._rtnl.add_fdb(index, item.mac)
        options = _port_options(item)
        # a new port is as bridge(8) has it by default
        wanted = {name: value for name, value in options.items() if value != (name == "learning")}
        self._rtnl.set_link(index, up=True, port=wanted)

    def _await_forwarding(self, index: int, name: str) -> Link:
        deadline = time.monotonic() + _PORT_TIMEOUT
        while True:
            link = self._rtnl.link(index=index)
            if link is not None and link.port_state == BR_STATE_FORWARDING:
                return link
            if link is None or time.monotonic() > deadline:
                raise KernelRefused(errno.ETIMEDOUT, f"bridge link set dev {name} state forwarding")
            time.sleep(0.0001)

    def _change_attachment(self, before: Attachment, after: Attachment) -> None:
        """The host's end from what it is now: where the other one cannot be reached, only this one has changed."""
        link = self._require_own(after.host_ifname, after.owner)
        master = self._require_own(after.bridge).index
        if link.master != master:
            # on another bridge the port has none of its options: none of its frames passes before it has
            self._rtnl.set_link(link.index, up=False)
            self._rtnl.set_link(link.index, master=master)
            self._set_up_port(after, link.index)
            _check_port(after, self._rtnl.require(after.host_ifname))
        elif _port_options(before) != _port_options(after) or _held_options(link) != _port_options(after):
            self._change_port(before, after, link)
        if link.mtu != after.mtu:
            self._rtnl.set_link(link.index, mtu=after.mtu)
        if not link.up:
            self._rtnl.set_link(link.index, up=True)
        inside = replace(
            before, hairpin=after.hairpin, isolated=after.isolated, locked=after.locked, bridge=after.bridge
        )
        if inside != after:
            set_ipv6(after.host_ifname, on=False)
            self._change_inside(before, after)

    def _change_port(self, before: Attachment, after: Attachment, link: Link) -> None:
        index = link.index
        if after.locked:
            self._rtnl.add_fdb(index, after.mac)
        self._rtnl.set_link(index, port=_port_options(after))
        if not after.locked and (before.locked or link.locked):
            self._rtnl.delete_fdb(index, after.mac)
        _check_port(after, self._rtnl.require(after.host_ifname))

    def _change_inside(self, before: Attachment, after: Attachment) -> None:
        with opened(after.netns) as netns, self._inside(after, netns) as (inner, announcer):
            index = inner.require(after.ifname).index
            inner.set_link(index, mtu=after.mtu, alias=alias(after.owner))
            _change_addresses(inner, index, before, after)
            if not before.up:
                inner.set_link(index, up=True)
            if not before.connected:
                _connect(inner, index, after)
            announce.announce(announcer, after.ifname, after.mac, after.addresses - before.addresses)

    # --- routes

    def loopback_route(self, op: Op) -> None:
        match op.before, op.after:
            case _, LoopbackRoute() as after:
                self._rtnl.add_loopback_route(self._require_own(after.bridge, after.owner or None).index)
            case LoopbackRoute() as before, None:
                link = self._rtnl.link(before.bridge)
                if link is not None:
                    self._rtnl.delete_loopback_route(link.index)

    def default_route(self, op: Op) -> None:
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
                _put_default_route(inner, route, link.index)
        except NamespaceMissing:
            if op.after is not None:
                raise


def _prepare_bridge(item: Bridge) -> None:
    set_ipv6(item.name, on=item.ipv6)
    # else a gateway that moves within its subnet would take the new address with the old one
    sysctl.write(f"net/ipv4/conf/{item.name}/promote_secondaries", "1")


def _put_default_route(inner: Rtnl, route: DefaultRoute, index: int) -> None:
    """Raises KernelRefused EEXIST where the namespace has a default route of its own: at any metric, ours would win."""
    held = _default_routes(inner, route.version)
    merged = [way for old in held for way in old.ways]
    if merged:
        for via, oif in merged:
            # whose each is does not show; a removal takes only those that bear our number
            inner.delete_default_route(via or route.via, oif)
        held = _default_routes(inner, route.version)
    ours = [old for old in held if old.protocol == ROUTE_PROTOCOL]
    if held and not ours:
        asked = f"ip -n {route.netns} -{route.version} route add default via {route.via} dev {route.ifname}"
        raise KernelRefused(errno.EEXIST, asked, "the namespace has a default route of its own")
    if len(held) > len(ours):
        # a replacement could take the other one
        for old in ours:
            inner.delete_default_route(old.via or route.via, old.oif or index)
    # one that went with its link leaves nothing to replace
    inner.add_default_route(route.via, index, replace=len(held) == len(ours) > 0)


def _default_routes(inner: Rtnl, version: Version) -> list[Route]:
    return [old for old in inner.routes() if old.destination is None and old.version == version]


def _port_options(item: Attachment) -> dict[str, bool]:
    # what a locked port learnt would let a stranger's MAC in
    return {"hairpin": item.hairpin, "isolated": item.isolated, "learning": not item.locked, "locked": item.locked}


def _held_options(link: Link) -> dict[str, bool]:
    return {"hairpin": link.hairpin, "isolated": link.isolated, "learning": link.learning, "locked": link.locked}


def _check_port(item: Attachment, link: Link) -> None:
    """An older kernel passes over options that it does not know."""
    for name, wanted, got in (("locked", item.locked, link.locked), ("isolated", item.isolated, link.isolated)):
        if wanted and not got:
            since = {"locked": "5.18, for spoof_protection", "isolated": "4.18, for icc: false"}[name]
            asked = f"bridge link set dev {item.host_ifname} {name} on"
            raise KernelRefused(errno.EOPNOTSUPP, asked, f"a bridge port can be {name} since Linux {since}")


def _change_addresses(rtnl: Rtnl, index: int, before: Bridge | Attachment, after: Bridge | Attachment) -> None:
    for address in in_order(after.addresses - before.addresses):
        rtnl.add_address(index, address)
    for address in in_order(before.addresses - after.addresses):
        rtnl.delete_address(index, address)


def _connect(rtnl: Rtnl, index: int, item: Bridge | Attachment) -> None:
    """The routes to its subnets, of a link that is up."""
    subnets = subnets_of(item.addresses)
    for address in in_order(item.addresses):
        if address.network in subnets:
            rtnl.add_connected_route(index, address)
