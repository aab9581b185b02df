"""From the kernel's events to the keys of objects that may have suffered.

Of each thing, the last event counts. What it says is compared with what is wanted, so that neither the daemon's own
changes nor other people's links lead to anything.
"""

from __future__ import annotations

from collections.abc import Iterable

from app.kernel.events import EVERY_LINK, RTM_NEWNETCONF, Event, netconf_index
from app.kernel.parse import (
    Link,
    is_bridge_port_event,
    parse_address,
    parse_index,
    parse_link,
    parse_neighbour,
    parse_route,
    with_port_options,
)
from app.kernel.wire import (
    ROUTE_PROTOCOL,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELNEIGH,
    RTM_DELROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
)
from app.model.naming import ALIAS_PREFIX
from app.model.spec import IPNetwork
from app.model.state import Attachment, Bridge, IPInterface, subnets_of
from app.reconcile.watchlist import Findings, Watched, Watchlist

_MARK = ALIAS_PREFIX.encode()
_EARLY_MAX = 4096
Place = tuple[int | None, int]
"""A link: the host's id of its namespace, None for the host itself, and its index there."""


class Tracker:
    """Knows the host's links of ours by number, and what happened to them since the last `findings`. One thread.

    Events are kept as they come, of each link the last: one endpoint's making is twenty of them, and taken apart is
    what counts.
    """

    def __init__(self, watchlist: Watchlist) -> None:
        self._watchlist = watchlist
        self._ports: dict[int, Link] = {}
        self._owners: dict[Place, str] = {}
        self._inside: dict[int, set[str]] = {}
        self._early: set[str] = set()
        self._clear()

    def _clear(self) -> None:
        self._links: dict[int, bytes] = {}
        self._port_states: dict[int, bytes] = {}
        self._inner: dict[Place, bytes] = {}
        self._others: list[Event] = []
        self._changed: set[int] = set()
        self._suspects: set[str] = set()
        self._addresses: dict[tuple[Place, IPInterface], bool] = {}
        self._routes: dict[tuple[Place, IPNetwork], bool] = {}
        self._settings = False

    def load(self, links: Iterable[Link]) -> None:
        """Begins anew with the host's links as they are."""
        self._ports, self._owners, self._inside = {}, {}, {}
        self._clear()
        for link in links:
            if link.owner is not None:
                self._remember(link)

    def take(self, event: Event) -> None:
        """Costs next to nothing: it is kept, unless it is about others' links."""
        if event.kind not in (RTM_NEWLINK, RTM_DELLINK):
            self._others.append(event)
        elif event.nsid is None:
            self._take_link(event.kind, event.raw)
        elif not is_bridge_port_event(event.raw):
            if event.kind == RTM_NEWLINK:
                self._inner[event.nsid, parse_index(event.raw)] = event.raw
            else:
                self._others.append(event)

    def _take_link(self, kind: int, raw: bytes) -> None:
        index = parse_index(raw)
        known = index in self._ports or index in self._links
        if not known and _MARK not in raw:
            return
        if is_bridge_port_event(raw):
            if known and kind == RTM_NEWLINK:
                self._port_states[index] = raw
            return
        self._port_states.pop(index, None)
        if kind == RTM_NEWLINK:
            self._links[index] = raw
        else:
            self._links.pop(index, None)
            self._forget(index, parse_link(raw))

    def _digest(self) -> None:
        """What was kept: the host's links first, for they tell whose the others are."""
        for index, raw in self._links.items():
            self._remember(parse_link(raw))
            self._changed.add(index)
        for index, raw in self._port_states.items():
            if index in self._ports:
                self._ports[index] = with_port_options(self._ports[index], raw)
                self._changed.add(index)
        for event in self._others:
            self._take_other(event)

    def _take_other(self, event: Event) -> None:
        nsid, kind, raw = event.nsid, event.kind, event.raw
        if kind == RTM_DELLINK:
            owner = self._owners.get((nsid, parse_index(raw)))
            self._suspects |= {owner} if owner is not None else set()
        elif kind in (RTM_NEWADDR, RTM_DELADDR):
            place = (nsid, parse_index(raw))
            if place in self._owners:
                self._addresses[place, parse_address(raw)[1]] = kind == RTM_DELADDR
        elif kind in (RTM_NEWROUTE, RTM_DELROUTE):
            self._take_route(nsid, raw, gone=kind == RTM_DELROUTE)
        elif kind == RTM_DELNEIGH and nsid is None:
            self._take_neighbour(raw)
        elif kind == RTM_NEWNETCONF and nsid is None:
            index = netconf_index(raw)
            # an endpoint's own link has no setting that is looked at, and with each new one such an event comes
            self._settings |= index == EVERY_LINK or isinstance(self._wanted((None, index)), Bridge)

    def _remember(self, link: Link) -> None:
        """A link that lost its mark is still watched for whose it was."""
        owner = link.owner or self._owners.get((None, link.index))
        if owner is None:
            return
        self._ports[link.index] = link
        self._owners[None, link.index] = owner
        if link.nsid is not None and link.peer_index is not None:
            self._owners[link.nsid, link.peer_index] = owner
            self._inside.setdefault(link.nsid, set()).add(owner)

    def _forget(self, index: int, link: Link) -> None:
        known = self._ports.pop(index, None)
        owner = self._owners.pop((None, index), link.owner)
        if known is not None and known.nsid is not None and known.peer_index is not None:
            gone = self._owners.pop((known.nsid, known.peer_index), "")
            members = self._inside.get(known.nsid, set())
            members.discard(gone)
            if not members:
                self._inside.pop(known.nsid, None)
        if owner is not None:
            self._suspects.add(owner)

    def _take_route(self, nsid: int | None, raw: bytes, *, gone: bool) -> None:
        if nsid is not None and nsid not in self._inside:
            return
        route = parse_route(raw)
        if route is None or route.oif is None:
            return
        place = (nsid, route.oif)
        if route.destination is not None:
            if place in self._owners:
                self._routes[place, route.destination] = gone
        elif nsid is not None and gone == (route.protocol == ROUTE_PROTOCOL):
            # ours is gone, or somebody else's has come
            self._suspects |= self._inside[nsid]

    def _take_neighbour(self, raw: bytes) -> None:
        index, mac = parse_neighbour(raw)
        owner = self._owners.get((None, index))
        entry = self._watchlist.link(owner) if owner is not None else None
        if entry is not None and isinstance(entry[1], Attachment) and entry[1].locked and entry[1].mac == mac:
            self._suspects.add(entry[0][1])

    def findings(self) -> Findings:
        """What since the last time is not as wanted; an object that is wanted only later counts then."""
        self._digest()
        suspects = self._suspects | self._early
        for index in self._changed:
            self._compare(suspects, (None, index), self._ports.get(index))
        for place, raw in self._inner.items():
            if place in self._owners:
                self._compare(suspects, place, parse_link(raw))
        for (place, address), gone in self._addresses.items():
            item = self._wanted(place)
            if item is not None and (address in item.addresses if gone else address.version == 6 and not item.ipv6):
                suspects.add(self._owners[place])
        for (place, destination), gone in self._routes.items():
            item = self._wanted(place)
            if gone and item is not None and destination in subnets_of(item.addresses):
                suspects.add(self._owners[place])
        found = Findings(settings=self._settings)
        self._early = set()
        for owner in suspects:
            entry = self._watchlist.link(owner)
            if entry is not None:
                found.keys.add(entry[0])
            elif len(self._early) < _EARLY_MAX:
                self._early.add(owner)
        self._clear()
        return found

    def _wanted(self, place: Place) -> Watched | None:
        owner = self._owners.get(place)
        entry = self._watchlist.link(owner) if owner is not None else None
        return entry[1] if entry is not None else None

    def _compare(self, suspects: set[str], place: Place, link: Link | None) -> None:
        item = self._wanted(place)
        if item is None or link is None:
            return
        if isinstance(item, Bridge):
            alike = (link.name, link.mac, link.owner) == (item.name, item.mac, item.owner)
        elif place[0] is not None:
            alike = (link.name, link.mac) == (item.ifname, item.mac)
        else:
            alike = (link.name, link.owner) == (item.host_ifname, item.owner) and self._is_port(link, item)
        if not alike or not link.up or link.mtu != item.mtu:
            suspects.add(item.owner)

    def _is_port(self, link: Link, item: Attachment) -> bool:
        master = self._ports.get(link.master) if link.master is not None else None
        options = (link.hairpin, link.isolated, link.locked, link.learning)
        wanted = (item.hairpin, item.isolated, item.locked, not item.locked)
        return master is not None and master.name == item.bridge and options == wanted
