"""What namespaces look like from within: one visit each, however many endpoints are in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from app.kernel import messages
from app.kernel.namespaces import Namespaces, maker_of
from app.kernel.netlink import Rtnl
from app.kernel.nsfiles import Identity, identity, opened
from app.kernel.parse import Link, Route, parse_filter, parse_link, parse_link_settings
from app.kernel.settings import is_strict
from app.kernel.wire import Answer
from app.model.errors import KernelRefused, NamespaceMissing
from app.model.spec import NetnsKind, NetnsRef
from app.model.state import Attachment, IPInterface


@dataclass(frozen=True, slots=True)
class Inner:
    """An endpoint's end. ipv6: whether it is on; strict: whether reverse path filtering is."""

    link: Link
    ipv6: bool
    strict: bool


@dataclass(slots=True)
class Inside:
    """One namespace. links: those asked for that are there, by index; routes: unicast, of the main table.

    makers: the id in the mark of a namespace that a daemon of this host made, None for any other; none at all where
    the kernel would not say.
    """

    identity: Identity
    makers: list[str | None]
    links: dict[int, Inner]
    addresses: dict[int, list[tuple[IPInterface, int]]] = field(default_factory=dict)
    routes: list[Route] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    """Of the links that default routes go by."""

    def reached(self, index: int) -> set[object]:
        """Where a link leads without a gateway."""
        return {one.destination for one in self.routes if one.oif == index and one.via is None}


@dataclass(slots=True)
class _Ask:
    """What a visit is to look at."""

    indices: set[int] = field(default_factory=set)
    ipv6: bool = False


class Insides:
    """The namespaces of endpoints, each visited when it is first asked for, as of one look at the kernel."""

    def __init__(self, namespaces: Namespaces) -> None:
        self._namespaces = namespaces
        self._asks: dict[NetnsRef, _Ask] = {}
        self._found: dict[NetnsRef, Inside | NamespaceMissing] = {}

    def begin(self, wanted: Iterable[Attachment], there: Mapping[str, Link]) -> None:
        """Forgets the last look. there: the host's links, of which those of the wanted ones have their other end."""
        self._asks, self._found = {}, {}
        for item in wanted:
            ask = self._asks.setdefault(item.netns, _Ask())
            link = there.get(item.host_ifname)
            if link is not None and link.peer_index is not None:
                ask.indices.add(link.peer_index)
            # without IPv6 on its links, a namespace has no route of ours in it
            ask.ipv6 |= item.ipv6 or link is None

    def end(self) -> None:
        """What was seen is not kept."""
        self._asks, self._found = {}, {}

    def at(self, ref: NetnsRef) -> Inside:
        """Raises NamespaceMissing."""
        found = self._found.get(ref)
        if found is None:
            try:
                found = self._visit(ref, self._asks.get(ref) or _Ask(ipv6=True))
            except NamespaceMissing as missing:
                found = missing
            self._found[ref] = found
        if isinstance(found, NamespaceMissing):
            raise found
        return found

    def makers(self) -> dict[str, str | None]:
        """Of the named ones that were visited: who made them."""
        return {
            ref.value: maker
            for ref, one in self._found.items()
            if ref.kind is NetnsKind.NAME and isinstance(one, Inside)
            for maker in one.makers
        }

    def _visit(self, ref: NetnsRef, ask: _Ask) -> Inside:
        with opened(ref) as netns, self._namespaces.rtnl(netns, str(ref)) as inner:
            indices = sorted(ask.indices)
            asked = [messages.get_link(index=index) for index in indices]
            asked += [messages.get_filter(messages.ALL_LINKS), *self._namespaces.asked_of_maker()]
            *links, everywhere, lo, nsid = inner.ask_all(asked)
            found = Inside(identity(netns), [], _inner_links(indices, links, everywhere))
            with suppress(KernelRefused):  # whoever wants to know asks again
                is_host = found.identity == self._namespaces.host_identity
                found.makers.append(None if is_host else maker_of(inner, lo, nsid))
            if found.links:
                only = indices[0] if len(indices) == 1 else 0
                for index, address, protocol in inner.link_addresses(only):
                    found.addresses.setdefault(index, []).append((address, protocol))
            found.routes += inner.main_routes(4)
            if ask.ipv6 or any(one.ipv6 for one in found.links.values()):
                found.routes += inner.main_routes(6)
            found.names |= _names(inner, found)
            return found


def _inner_links(indices: list[int], answers: list[Answer], everywhere: Answer) -> dict[int, Inner]:
    common = 0 if isinstance(everywhere, KernelRefused) else parse_filter(everywhere[0])
    found: dict[int, Inner] = {}
    for index, answer in zip(indices, answers, strict=True):
        if not isinstance(answer, KernelRefused):
            ipv6, own = parse_link_settings(answer[0])
            found[index] = Inner(parse_link(answer[0]), ipv6, is_strict(own, common))
    return found


def _names(inner: Rtnl, found: Inside) -> dict[int, str]:
    names: dict[int, str] = {}
    for route in found.routes:
        index = route.oif
        if route.destination is not None or index is None or index in names:
            continue
        link = found.links[index].link if index in found.links else inner.link(index=index)
        names[index] = link.name if link is not None else ""
    return names
