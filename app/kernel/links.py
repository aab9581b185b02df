"""Bridges, veth pairs, default routes: made and changed; how links are removed is in `removal`."""

from __future__ import annotations

import errno
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace

from app.kernel import announce, messages, sysctl
from app.kernel.announce import Announcer
from app.kernel.mirror import HostMirror
from app.kernel.namespaces import Namespaces
from app.kernel.netlink import Rtnl
from app.kernel.nsfiles import KnownNamespaces
from app.kernel.parse import Link, parse_filter, parse_link, parse_port_state
from app.kernel.settings import is_strict, loosen_filter, set_ipv6
from app.kernel.visits import Place, Visits
from app.kernel.wire import BR_STATE_FORWARDING, ROUTE_PROTOCOL, Request
from app.model.errors import Invalid, KernelRefused, NamespaceMissing
from app.model.naming import alias
from app.model.ops import Op
from app.model.state import (
    Attachment,
    Bridge,
    DefaultRoute,
    IPInterface,
    LoopbackRoute,
    in_order,
    subnets_of,
)

_PORT_TIMEOUT = 2.0
"""Seconds until a bridge port that does not forward counts as refused; it takes 0.1 ms otherwise."""


class Links:
    """See `app.model.contracts.Kernel.apply`. Belongs to the thread that makes it.

    net: what `sysctl.open_net` gave in its namespace.
    """

    def __init__(
        self,
        rtnl: Rtnl,
        mirror: HostMirror,
        namespaces: Namespaces,
        visits: Visits,
        known: KnownNamespaces,
        announcer: Announcer,
        net: int,
    ) -> None:
        self._rtnl = rtnl
        self._mirror = mirror
        self._namespaces = namespaces
        self._visits = visits
        self._known = known
        self._announcer = announcer
        self._net = net

    # --- marks

    def _require_own(self, name: str, owner: str | None = None) -> Link:
        """A link that bears our mark. Raises KernelRefused where it is gone, or somebody else's by now."""
        link = self._rtnl.require(name)
        if link.owner is None or owner not in (None, link.owner):
            asked = f"ip link show {name}"
            raise KernelRefused(errno.ENODEV, asked, "ours is gone, and somebody else's has its name")
        return link

    def _known_own(self, name: str, owner: str | None = None) -> Link:
        """The same as of the mirror's last refresh, without a question where the link is up."""
        link = self._mirror.link(name)
        # of marks and options that change on a link that is down the kernel does not tell (netdev_state_change)
        if link is None or not link.up or link.owner is None or owner not in (None, link.owner):
            return self._require_own(name, owner)
        return link

    def _refreshed_own(self, name: str, owner: str | None = None) -> Link:
        # the kernel tells of a change before whoever made it knows: what it has told so far is as good as asking
        self._mirror.refresh()
        return self._known_own(name, owner)

    def _master(self, bridge: str) -> int:
        """The index of a bridge of ours, as `_refreshed_own` finds it: no more of its message is taken apart."""
        self._mirror.refresh()
        return self._mirror.own_index(bridge) or self._require_own(bridge).index

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
        index = self._refreshed_own(after.name, after.owner).index
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
            self._announcer.announce(announce.open_socket(), ifname, mac, addresses, router=True)

    # --- veth pairs

    def attachment(self, op: Op) -> None:
        match op.before, op.after:
            case None, Attachment() as after:
                self._attach(after)
            case Attachment() as before, Attachment() as after:
                self._change_attachment(before, after)

    def _attach(self, item: Attachment) -> None:
        with self._visits.at(item.netns) as place:
            if place.identity == self._namespaces.host_identity:
                raise Invalid(f"{item.netns} is the host's own network namespace; name another one")
            index, peer = self._rtnl.add_veth(
                item.host_ifname,
                master=self._master(item.bridge),
                mtu=item.mtu,
                peer=item.ifname,
                peer_mac=item.mac,
                peer_netns=place.descriptor,
            )
            with self._undone(index):
                # its options with its being up, or before: no frame passes without them
                set_ipv6(item.host_ifname, on=False, net=self._net)
                self._set_up_port(item, index, alias(item.owner))
                self._set_up_inside(item, place, peer)
                self._await_forwarding(item, index)
                place.await_addresses(place.made[item.ifname], item.addresses)
                place.announce(item.ifname, item.mac, item.addresses)
            self._known.remember(place.identity, item.netns, item.namespace_key)

    def _set_up_inside(self, item: Attachment, place: Place, index: int | None) -> None:
        _prepare_inside(item, place)
        inner = place.rtnl
        if index is None:
            index = inner.require(item.ifname).index
        filters = _get_filters(index)
        addresses = [messages.new_address(index, address) for address in in_order(item.addresses)]
        answers = inner.change_all([*filters, *addresses, messages.set_link(index, alias=alias(item.owner), up=True)])
        _loosen_strict(item, place, answers[: len(filters)])
        place.made[item.ifname] = index

    def _set_up_port(self, item: Attachment, index: int, mark: str | None = None) -> None:
        """Sets it up; mark: its alias, where it has none yet."""
        if item.locked:
            self._rtnl.add_fdb(index, item.mac)
        options = _port_options(item)
        # a new port is as bridge(8) has it by default
        wanted = {name: value for name, value in options.items() if value != (name == "learning")}
        self._rtnl.change_all([messages.set_link(index, up=True, port=wanted, alias=mark)])

    def _await_forwarding(self, item: Attachment, index: int) -> None:
        """Of a port that is up. Raises KernelRefused where it never does, or has not the options that it should."""
        deadline = time.monotonic() + _PORT_TIMEOUT
        while True:
            port = self._rtnl.raw_port(index)
            if port is not None and parse_port_state(port) == BR_STATE_FORWARDING:
                if item.locked or item.isolated:
                    _check_port(item, parse_link(port))
                return
            if port is None or time.monotonic() > deadline:
                raise KernelRefused(errno.ETIMEDOUT, f"bridge link set dev {item.host_ifname} state forwarding")
            time.sleep(0.0001)

    def _change_attachment(self, before: Attachment, after: Attachment) -> None:
        """The host's end from what it is now: where the other one cannot be reached, only this one has changed."""
        link = self._refreshed_own(after.host_ifname, after.owner)
        master = self._known_own(after.bridge).index
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
        requests = [messages.set_link(index, port=_port_options(after))]
        if after.locked or after.isolated:
            requests.append(messages.get_link(index=index))
        _changed, *shown = self._rtnl.change_all(requests)
        if not after.locked and (before.locked or link.locked):
            self._rtnl.delete_fdb(index, after.mac)
        for (raw,) in shown:
            _check_port(after, parse_link(raw))

    def _change_inside(self, before: Attachment, after: Attachment) -> None:
        with self._visits.at(after.netns) as place:
            _prepare_inside(after, place)
            inner = place.rtnl
            index = inner.require(after.ifname).index
            _loosen_strict(after, place, inner.change_all(_get_filters(index)))
            inner.set_link(index, mtu=after.mtu, alias=alias(after.owner))
            _change_addresses(inner, index, before, after)
            if not before.up:
                inner.set_link(index, up=True)
            if not before.connected:
                _connect(inner, index, after)
            place.announce(after.ifname, after.mac, after.addresses - before.addresses)

    # --- routes

    def loopback_route(self, op: Op) -> None:
        match op.before, op.after:
            case _, LoopbackRoute() as after:
                self._rtnl.add_loopback_route(self._refreshed_own(after.bridge, after.owner or None).index)
            case LoopbackRoute() as before, None:
                link = self._rtnl.link(before.bridge)
                if link is not None:
                    self._rtnl.delete_loopback_route(link.index)

    def default_route(self, op: Op) -> None:
        route = op.item
        if not isinstance(route, DefaultRoute):
            return
        try:
            with self._visits.at(route.netns) as place:
                index = place.index_of(route.ifname)
                if op.after is None:
                    if index is not None:
                        place.rtnl.delete_default_route(route.via, index)
                    return
                if index is None:
                    raise KernelRefused(errno.ENODEV, f"ip -n {route.netns} link show {route.ifname}")
                _put_default_route(place.rtnl, route, index)
        except NamespaceMissing:
            if op.after is not None:
                raise


def _prepare_bridge(item: Bridge) -> None:
    set_ipv6(item.name, on=item.ipv6)
    # else a gateway that moves within its subnet would take the new address with the old one
    sysctl.write(f"net/ipv4/conf/{item.name}/promote_secondaries", "1")


def _put_default_route(inner: Rtnl, route: DefaultRoute, index: int) -> None:
    """Raises KernelRefused EEXIST where the namespace has a default route of its own: at any metric, ours would win."""
    held = inner.default_routes(route.version)
    merged = [way for old in held for way in old.ways]
    if merged:
        for via, oif in merged:
            # whose each is does not show; a removal takes only those that bear our number
            inner.delete_default_route(via or route.via, oif)
        held = inner.default_routes(route.version)
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


def _prepare_inside(item: Attachment, place: Place) -> None:
    """The settings of the endpoint's end, and the sockets that see to the rest of it."""
    with place.inside():
        set_ipv6(item.ifname, on=item.ipv6, net=place.net())
        place.prepare_announcement()
        if item.ipv6:
            place.hear_addresses()


def _get_filters(index: int) -> list[Request]:
    # by messages: each setting that is looked up by its path takes longer than both
    return [messages.get_filter(index), messages.get_filter(messages.ALL_LINKS)]


def _loosen_strict(item: Attachment, place: Place, answers: list[list[bytes]]) -> None:
    """Reverse path filtering where the answers to `_get_filters` say that it is strict."""
    own, everywhere = (parse_filter(raw) for raw, *_others in answers)
    if is_strict(own, everywhere):
        with place.inside():
            loosen_filter(item.ifname, place.net())


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
