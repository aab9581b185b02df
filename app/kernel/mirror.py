"""The host's links, addresses and routes in memory, kept true by the kernel's own events.

Looking one thing up costs nothing, and no request pays for a dump. One dump at the start, and one
more where the kernel says that events were lost.
"""

from __future__ import annotations

import errno
import logging

from app.kernel.netlink import Rtnl
from app.kernel.wire import (
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
    Link,
    Route,
    is_bridge_port_event,
    parse_address,
    parse_link,
    parse_route,
)
from app.model.spec import IPAddress, IPNetwork
from app.model.state import IPInterface

log = logging.getLogger("bridgehead.kernel")

_GROUPS = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE
_BUFFER = 4 << 20


class HostMirror:
    """What the namespace of the thread that made it looks like, as of the last `refresh`."""

    def __init__(self) -> None:
        self._events = Rtnl(groups=_GROUPS)
        self._events.widen(_BUFFER)
        self._links: dict[int, Link] = {}
        self._names: dict[str, int] = {}
        self._addresses: dict[int, set[IPInterface]] = {}
        self._routes: set[Route] = set()
        self._load()

    def close(self) -> None:
        self._events.close()

    def _load(self) -> None:
        self._links, self._names, self._addresses, self._routes = {}, {}, {}, set()
        with Rtnl() as rtnl:
            for link in rtnl.links():
                self._put_link(link)
            for index, address in rtnl.addresses():
                self._addresses.setdefault(index, set()).add(address)
            self._routes = set(rtnl.routes())

    def refresh(self) -> None:
        """Takes in what has happened so far; never waits."""
        try:
            for kind, raw in self._events.events():
                self._take(kind, raw)
        except OSError as failure:
            if failure.errno != errno.ENOBUFS:
                raise
            log.info("the kernel dropped events: reading the host's links, addresses and routes again")
            self._load()

    def _take(self, kind: int, raw: bytes) -> None:
        if kind in (RTM_NEWLINK, RTM_DELLINK):
            if is_bridge_port_event(raw):
                return
            link = parse_link(raw)
            self._put_link(link) if kind == RTM_NEWLINK else self._drop_link(link)
        elif kind in (RTM_NEWADDR, RTM_DELADDR):
            index, address = parse_address(raw)
            held = self._addresses.setdefault(index, set())
            held.add(address) if kind == RTM_NEWADDR else held.discard(address)
        elif kind in (RTM_NEWROUTE, RTM_DELROUTE):
            route = parse_route(raw)
            if route is not None:
                self._routes.add(route) if kind == RTM_NEWROUTE else self._routes.discard(route)

    def _put_link(self, link: Link) -> None:
        known = self._links.get(link.index)
        if known is not None and known.name != link.name:
            self._names.pop(known.name, None)
        self._links[link.index] = link
        self._names[link.name] = link.index

    def _drop_link(self, link: Link) -> None:
        known = self._links.pop(link.index, None)
        if known is not None and self._names.get(known.name) == known.index:
            del self._names[known.name]
        self._addresses.pop(link.index, None)
        # the kernel announces no routes that vanish with their link
        self._routes = {route for route in self._routes if route.oif != link.index}

    def link(self, name: str) -> Link | None:
        index = self._names.get(name)
        return None if index is None else self._links[index]

    def links(self) -> list[Link]:
        return list(self._links.values())

    def routes(self) -> list[Route]:
        return list(self._routes)

    def name_of(self, index: int | None) -> str:
        link = self._links.get(index) if index is not None else None
        return link.name if link else "?"

    def addresses_of(self, index: int) -> set[IPInterface]:
        return set(self._addresses.get(index, ()))

    def holds_address(self, address: IPAddress) -> bool:
        """Whether an interface of the host carries the address; all of 127.0.0.0/8 counts as carried."""
        if address.is_loopback:
            return True
        return any(address == held.ip for addresses in self._addresses.values() for held in addresses)

    def route_in_the_way(self, subnet: IPNetwork) -> tuple[IPNetwork, str] | None:
        """A route other than the default one that overlaps the subnet, and the interface it goes to."""
        for route in self._routes:
            target = route.destination
            if target is not None and target.version == subnet.version and target.overlaps(subnet):
                return target, self.name_of(route.oif)
        return None

    def default_mtu(self) -> int | None:
        """The MTU of the interface that the preferred default route goes to."""
        defaults = [route for route in self._routes if route.destination is None and route.oif is not None]
        best = min(defaults, key=lambda route: (route.version, route.priority), default=None)
        link = self._links.get(best.oif) if best and best.oif is not None else None
        return link.mtu if link else None
