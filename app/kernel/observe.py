"""What is there of what is wanted, as it really is; and what bears our mark and is wanted by nobody."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import TypedDict

from app.kernel.inside import Insides
from app.kernel.mirror import HostMirror
from app.kernel.namespaces import Namespaces
from app.kernel.netlink import Rtnl
from app.kernel.nsfiles import KnownNamespaces
from app.kernel.parse import Link
from app.kernel.settings import ipv6_is_on
from app.kernel.wire import ADDRESS_PROTOCOL, ROUTE_PROTOCOL
from app.model.errors import NamespaceMissing
from app.model.naming import alias
from app.model.spec import NetnsKind
from app.model.state import (
    Attachment,
    Bridge,
    DefaultRoute,
    ForeignLink,
    Item,
    LoopbackRoute,
    Netns,
    subnets_of,
)

_StaticFdb = set[tuple[int, str]]


class _Port(TypedDict):
    """Of an attachment, what its bridge port makes it."""

    bridge: str
    hairpin: bool
    isolated: bool
    locked: bool


class Observer:
    """Reads links, namespaces and routes back. Belongs to the thread that makes it.

    only: nothing but what belongs to the wanted items, at their cost.
    """

    def __init__(self, rtnl: Rtnl, mirror: HostMirror, namespaces: Namespaces, known: KnownNamespaces) -> None:
        self._rtnl = rtnl
        self._mirror = mirror
        self._namespaces = namespaces
        self._known = known
        self._insides = Insides(namespaces)

    def begin(self, wanted: Sequence[Item]) -> None:
        """A look at these begins: `links` first, `end` last."""
        attachments = [item for item in wanted if isinstance(item, Attachment)]
        found = {item.host_ifname: self._mirror.link(item.host_ifname) for item in attachments}
        self._insides.begin(attachments, {name: link for name, link in found.items() if link is not None})

    def end(self) -> None:
        self._insides.end()

    def namespaces(self, wanted: Sequence[Item], *, only: bool = False) -> list[Netns]:
        """Those that we made, and those wanted that are there."""
        known = self._insides.makers()
        found = [] if only else [Netns(name, owner) for name, owner in self._namespaces.marked(known)]
        marked = {item.name for item in found}
        for item in wanted:
            if isinstance(item, Netns) and item.name not in marked and self._namespaces.exists(item.name):
                maker = known[item.name] if item.name in known else self._namespaces.owner(item.name)
                self._namespaces.note_maker(item.name, maker)
                found.append(item)
        return found

    def links(self, wanted: Sequence[Item], *, only: bool = False) -> Iterator[Bridge | Attachment | ForeignLink]:
        """Every link that bears our mark."""
        bridges = {item.name: item for item in wanted if isinstance(item, Bridge)}
        veths = {item.host_ifname: item for item in wanted if isinstance(item, Attachment)}
        owners = {item.owner for item in bridges.values()} | {item.owner for item in veths.values()}
        if only and not owners:
            return
        links = [link for link in self._mirror.links() if link.is_ours and (not only or link.owner in owners)]
        locks = any(item.locked for item in veths.values()) or any(link.locked or not link.learning for link in links)
        static = self._rtnl.static_fdb() if locks else set()
        remade = {item.name for item in wanted if isinstance(item, Netns) and item.create}
        for link in links:
            owner = link.owner or ""
            bridge, veth = bridges.get(link.name), veths.get(link.name)
            if link.is_going:
                # a removal was cut short: what it was about goes, and is made anew where it is wanted
                yield ForeignLink(owner, link.name)
            elif bridge is not None and (bridge.owner, "bridge") == (owner, link.kind):
                yield self._bridge(bridge, link)
            elif veth is not None and (veth.owner, "veth") == (owner, link.kind):
                yield self._attachment(veth, link, static, remade) or ForeignLink(owner, link.name)
            else:
                yield ForeignLink(owner, link.name)

    def _bridge(self, wanted: Bridge, link: Link) -> Bridge:
        held, ours = self._mirror.addresses_of(link.index), self._mirror.own_addresses_of(link.index)
        # what a missing address leads to is missing with it, and comes back with it
        present = wanted.addresses & held
        return replace(
            wanted,
            mac=link.mac,
            mtu=link.mtu,
            # an address that bears no mark of ours is somebody's, in whatever subnet
            addresses=frozenset(held & wanted.addresses | ours),
            ipv6=ipv6_is_on(link.name),
            up=link.up,
            connected=subnets_of(present) <= self._mirror.connected(link.index),
        )

    def _attachment(
        self, wanted: Attachment, link: Link, static: _StaticFdb, remade: Collection[str]
    ) -> Attachment | None:
        """None where the other end is not where it should be: the pair is made anew.

        Where nothing is at the namespace's place any more, it may live on without: its veth stays, and counts as
        down for nobody can see to it. remade: names of namespaces that are made where they are missing.
        """
        try:
            inside = self._insides.at(wanted.netns)
        except NamespaceMissing:
            if wanted.netns.kind is NetnsKind.NAME and wanted.netns.value in remade:
                return None
            return replace(wanted, **self._port(wanted, link, static), mtu=link.mtu, up=False)
        self._known.remember(inside.identity, wanted.netns, wanted.namespace_key)
        inner = inside.links.get(link.peer_index or 0)
        if inner is None or (inner.link.name, inner.link.mac) != (wanted.ifname, wanted.mac):
            return None
        peer = inner.link
        held = inside.addresses.get(peer.index, ())
        addresses = frozenset(one for one, mark in held if one in wanted.addresses or mark == ADDRESS_PROTOCOL)
        return replace(
            wanted,
            **self._port(wanted, link, static),
            mtu=link.mtu if link.mtu != wanted.mtu else peer.mtu,
            addresses=addresses,
            ipv6=inner.ipv6,
            # one that drops answers, or was left half made, counts as down: what sets it up sees to the rest too
            up=link.up and peer.up and peer.alias == alias(wanted.owner) and not inner.strict,
            connected=subnets_of(addresses & wanted.addresses) <= inside.reached(peer.index),
        )

    def _port(self, wanted: Attachment, link: Link, static: _StaticFdb) -> _Port:
        """The bridge's side of it."""
        return {
            "bridge": self._mirror.name_of(link.master) if link.master is not None else "",
            "hairpin": link.hairpin,
            "isolated": link.isolated,
            "locked": _is_locked(wanted, link, static),
        }

    def loopback_routes(self, wanted: Sequence[Item], *, only: bool = False) -> Iterator[LoopbackRoute]:
        """Our routes of ::1, wanted or not."""
        owners = {item.bridge: item.owner for item in wanted if isinstance(item, LoopbackRoute)}
        for index in self._rtnl.own_loopbacks() if owners or not only else ():
            bridge = self._mirror.name_of(index)
            if bridge in owners or not only:
                yield LoopbackRoute(owners.get(bridge, ""), bridge)

    def routes(self, wanted: Sequence[Item]) -> Iterator[DefaultRoute]:
        """Our default routes in the namespaces that have endpoints, wanted or not."""
        namespaces = {item.namespace_key: item for item in wanted if isinstance(item, Attachment)}
        for key, member in namespaces.items():
            try:
                inside = self._insides.at(member.netns)
            except NamespaceMissing:
                continue
            for route in inside.routes:
                # one that was merged with somebody's is not as wanted
                ours = (route.destination, route.protocol, route.ways) == (None, ROUTE_PROTOCOL, ())
                if ours and route.via is not None:
                    name = inside.names.get(route.oif or 0, "")
                    yield DefaultRoute(member.owner, member.netns, key, route.via, name)


def _is_locked(wanted: Attachment, link: Link, static: _StaticFdb) -> bool:
    """A port is as wanted in all parts of it, or as not wanted: then all of them are set again."""
    parts = (link.locked, not link.learning, (link.index, wanted.mac) in static)
    return all(parts) if wanted.locked else any(parts)
