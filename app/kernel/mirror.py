"""The host's links, addresses and routes in memory, kept true by the kernel's own events.

Looking one thing up costs nothing, and no request pays for a dump. One dump at the start, and one
more where the kernel says that events were lost. Routes are read again where they are asked for and
something happened that makes the kernel drop some without a word.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Collection

from app.kernel.netlink import Rtnl
from app.kernel.parse import (
    Link,
    Route,
    is_bridge_port_event,
    parse_address,
    parse_index,
    parse_link,
    parse_owner,
    parse_route,
    parse_up_and_name,
    with_port_options,
)
from app.kernel.wire import (
    ADDRESS_PROTOCOL,
    NLM_F_REPLACE,
    ROUTE_PROTOCOL_RA,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RTMGRP_IPV4_IFADDR,
    RTMGRP_IPV4_ROUTE,
    RTMGRP_IPV6_IFADDR,
    RTMGRP_IPV6_ROUTE,
    RTMGRP_LINK,
)
from app.model.spec import IPAddress, IPNetwork, Version
from app.model.state import IPInterface

log = logging.getLogger("bridgehead.kernel")

_GROUPS = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE
_BUFFER = 4 << 20


class _Told:
    """A link as the kernel last told of it. Read only where it is asked for: most are told of ten times as often."""

    __slots__ = ("_link", "_port", "_raw", "name", "up")

    def __init__(self, raw: bytes) -> None:
        self.up, self.name = parse_up_and_name(raw)
        self._raw = raw
        self._port = b""
        self._link: Link | None = None

    def take_port(self, raw: bytes) -> None:
        """Takes in a bridge port's own message."""
        self._port, self._link = raw, None

    @property
    def is_marked(self) -> bool:
        """Whether it bears our mark."""
        return (parse_owner(self._raw) if self._link is None else self._link.owner) is not None

    @property
    def link(self) -> Link:
        if self._link is None:
            link = parse_link(self._raw)
            self._link = with_port_options(link, self._port) if self._port else link
        return self._link


class HostMirror:
    """What the namespace of the thread that made it looks like, as of the last `refresh`."""

    def __init__(self) -> None:
        self._links: dict[int, _Told] = {}
        self._names: dict[str, int] = {}
        self._addresses: dict[int, dict[IPInterface, int]] = {}
        self._routes: set[Route] = set()
        self._routes_stale = False
        self._events = self._listen()
        self._load()

    @staticmethod
    def _listen() -> Rtnl:
        events = Rtnl(groups=_GROUPS)
        events.widen(_BUFFER)
        return events

    def close(self) -> None:
        self._events.close()

    def fileno(self) -> int:
        """Readable where something has happened; another one where events were lost."""
        return self._events.fileno()

    def _load(self) -> None:
        self._links, self._names, self._addresses = {}, {}, {}
        with Rtnl() as rtnl:
            for raw in rtnl.raw_links():
                self._put_link(raw)
            for index, address, protocol in rtnl.marked_addresses():
                self._addresses.setdefault(index, {})[address] = protocol
            self._routes = set(rtnl.routes())
        self._routes_stale = False

    def refresh(self) -> None:
        """Takes in what has happened so far; never waits."""
        try:
            self._take_all()
        except OSError as failure:
            if failure.errno != errno.ENOBUFS:
                raise
            log.info("the kernel dropped events: reading the host's links, addresses and routes again")
            # what happens from here on waits in the new socket, whose queue holds nothing that is older than the dump
            self._events.close()
            self._events = self._listen()
            self._load()

    def _take_all(self) -> None:
        for kind, flags, raw in self._events.events():
            self._take(kind, flags, raw)

    def _take(self, kind: int, flags: int, raw: bytes) -> None:
        if kind in (RTM_NEWLINK, RTM_DELLINK):
            if is_bridge_port_event(raw):
                known = self._links.get(parse_index(raw))
                if known is not None and kind == RTM_NEWLINK:
                    known.take_port(raw)
                return
            self._put_link(raw) if kind == RTM_NEWLINK else self._drop_link(parse_index(raw))
        elif kind in (RTM_NEWADDR, RTM_DELADDR):
            index, address, protocol = parse_address(raw)
            held = self._addresses.setdefault(index, {})
            if kind == RTM_NEWADDR:
                held[address] = protocol
            else:
                held.pop(address, None)
                # with the last one all routes of the link go in silence, and before Linux 6.8 those with this source
                self._routes_stale = True
        elif kind in (RTM_NEWROUTE, RTM_DELROUTE):
            # a replacement does not say which route it replaces
            self._routes_stale |= kind == RTM_NEWROUTE and bool(flags & NLM_F_REPLACE)
            route = parse_route(raw)
            if route is not None:
                self._routes.add(route) if kind == RTM_NEWROUTE else self._routes.discard(route)

    def _current_routes(self) -> set[Route]:
        if self._routes_stale:
            with Rtnl() as rtnl:
                self._routes = set(rtnl.routes())
            self._routes_stale = False
        return self._routes

    def _put_link(self, raw: bytes) -> None:
        index, told = parse_index(raw), _Told(raw)
        known = self._links.get(index)
        if known is not None and known.name != told.name and self._names.get(known.name) == index:
            del self._names[known.name]
        if known is not None and known.up and not told.up:
            self._routes_stale |= any(route.oif == index for route in self._routes)
        self._links[index] = told
        self._names[told.name] = index

    def _drop_link(self, index: int) -> None:
        known = self._links.pop(index, None)
        if known is not None and self._names.get(known.name) == index:
            del self._names[known.name]
        self._addresses.pop(index, None)
        # the kernel announces no routes that vanish with their link
        self._routes = {route for route in self._routes if route.oif != index}

    def link(self, name: str) -> Link | None:
        index = self._names.get(name)
        return None if index is None else self._links[index].link

    def own_index(self, name: str) -> int | None:
        """The index of the link of this name; None where there is none, it bears no mark of ours, or is down.

        Of a link that is down the kernel does not tell when its mark changes.
        """
        index = self._names.get(name)
        return index if index is not None and self._links[index].up and self._links[index].is_marked else None

    def holds_name(self, name: str) -> bool:
        return name in self._names

    def links(self) -> list[Link]:
        return [told.link for told in self._links.values()]

    def holds_link(self, index: int) -> bool:
        return index in self._links

    def routes(self) -> list[Route]:
        return list(self._routes)

    def connected(self, index: int) -> set[IPNetwork]:
        """Where a link leads without a gateway."""
        routes = self._current_routes()
        return {one.destination for one in routes if one.oif == index and one.via is None and one.destination}

    def name_of(self, index: int | None) -> str:
        link = self._links.get(index) if index is not None else None
        return link.name if link else "?"

    def addresses_of(self, index: int) -> set[IPInterface]:
        return set(self._addresses.get(index, ()))

    def own_addresses_of(self, index: int) -> set[IPInterface]:
        """Those that we put there, by their mark."""
        held = self._addresses.get(index, {})
        return {address for address, protocol in held.items() if protocol == ADDRESS_PROTOCOL}

    def add_own_addresses(self, ifname: str, addresses: Collection[IPInterface]) -> None:
        """Takes in addresses that the kernel has taken: those of IPv6 it announces a moment later, by a work queue."""
        self.refresh()
        link = self.link(ifname)
        if link is not None:
            held = self._addresses.setdefault(link.index, {})
            for address in addresses:
                held.setdefault(address, ADDRESS_PROTOCOL)

    def holds_address(self, address: IPAddress) -> bool:
        """Whether an interface of the host carries the address; all of 127.0.0.0/8 counts as carried."""
        if address.version == 4 and address.is_loopback:
            return True
        return any(address == held.ip for addresses in self._addresses.values() for held in addresses)

    def route_in_the_way(self, subnet: IPNetwork) -> tuple[IPNetwork, str] | None:
        """A route other than the default one that overlaps the subnet, and the interface it goes to."""
        for route in self._current_routes():
            target = route.destination
            if target is not None and target.version == subnet.version and target.overlaps(subnet):
                return target, self.name_of(route.oif)
        return None

    def default_mtu(self) -> int | None:
        """The MTU of the interface that the preferred default route goes to."""
        defaults = [route for route in self._current_routes() if route.destination is None and route.oif is not None]
        best = min(defaults, key=lambda route: (route.version, route.priority), default=None)
        link = self._links.get(best.oif) if best and best.oif is not None else None
        return link.link.mtu if link else None

    def learning_links(self) -> list[str]:
        """Names of the interfaces whose IPv6 default route a router advertisement gave."""
        found = {
            route.oif
            for route in self._current_routes()
            if (route.destination, route.version, route.protocol) == (None, 6, ROUTE_PROTOCOL_RA)
        }
        return sorted(self.name_of(index) for index in found if index in self._links)

    def foreign_forwarders(self, version: Version) -> dict[int, str]:
        """Somebody else's links that are of use only where the host forwards, by index.

        Those are bridges with ports and an address, and veths to another namespace that have an address or
        a route of their own. A VPN's interface is none: on most hosts it is a client's.
        """
        used = {
            index
            for index, held in self._addresses.items()
            if any(address.version == version and not address.is_link_local for address in held)
        }
        routed = {
            route.oif
            for route in self._current_routes()
            if route.version == version and route.destination is not None and not route.destination.is_link_local
        }
        links = self.links()
        masters = {link.master for link in links}
        found: dict[int, str] = {}
        for link in links:
            index = link.index
            bridge = link.kind == "bridge" and index in masters and index in used
            veth = link.kind == "veth" and link.elsewhere and link.master is None and index in used | routed
            if link.up and not link.is_ours and (bridge or veth):
                found[index] = f"{link.kind} {link.name}"
        return found
