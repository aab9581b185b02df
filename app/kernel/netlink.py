"""Links, addresses, routes and namespace ids over netlink, what is rare of it with pyroute2; nothing else imports that.

It is imported once it is needed: with all that belongs to it, it is a tenth of a start, and 10 MB.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Mapping

from app.kernel import messages
from app.kernel.parse import (
    Link,
    Route,
    is_default,
    parse_address,
    parse_link,
    parse_nsid,
    parse_own_loopback,
    parse_pair,
    parse_route,
    parse_static_fdb,
)
from app.kernel.wire import (
    AF_BRIDGE,
    LOOPBACK6,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    NTF_MASTER,
    NTF_STICKY,
    NUD_NOARP,
    ROUTE_PROTOCOL,
    ROUTE_PROTOCOL_KERNEL,
    RT_SCOPE_LINK,
    RT_SCOPE_UNIVERSE,
    RT_TABLE_LOCAL,
    RT_TABLE_MAIN,
    RTM_DELNEIGH,
    RTM_DELROUTE,
    RTM_GETNEIGH,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
    RTN_LOCAL,
    RTN_UNICAST,
    Message,
    Netlink,
    Packed,
    Request,
    attribute,
)
from app.model.errors import KernelRefused
from app.model.spec import IPAddress, Version
from app.model.state import IPInterface

_NDA_LLADDR = 2
_LO = 1  # LOOPBACK_IFINDEX, net/net_namespace.h
_CONNECTED_METRIC = 256  # IP6_RT_PRIO_ADDRCONF, linux/ipv6_route.h
_LOOPBACK_METRIC = 4096
"""Behind that of lo's own route, by which the host's processes reach ::1."""
_GONE = (errno.ENODEV, errno.ESRCH, errno.ENOENT, errno.EADDRNOTAVAIL)


def _loopback(index: int) -> str:
    return f"local {LOOPBACK6}/128 dev index {index} table local metric {_LOOPBACK_METRIC}"


def _route_message() -> Message:
    """What few daemons ever send: a route put back that somebody took away, and those of ::1."""
    from pyroute2.netlink.rtnl.rtmsg import rtmsg  # noqa: PLC0415 - see above

    return rtmsg()


def _fdb_message(port: int, mac: str, flags: int) -> Packed:
    header = struct.pack("=BxxxiHBB", AF_BRIDGE, port, NUD_NOARP, flags, 0)
    return Packed(header + attribute(_NDA_LLADDR, bytes.fromhex(mac.replace(":", ""))))


class Rtnl(Netlink):
    """Links, addresses, routes and namespace ids of one namespace.

    where: the namespace's name as commands show it, '' for the host's.
    """

    def __init__(self, where: str = "", groups: int = 0) -> None:
        self._ip = f"ip -n {where}" if where else "ip"
        super().__init__(socket.NETLINK_ROUTE, groups, self._ip)

    def links(self) -> Iterator[Link]:
        """Every link: a full dump, never on a request's path."""
        return map(parse_link, self.raw_links())

    def raw_links(self) -> list[bytes]:
        """The same, not yet parsed."""
        return self.dump(messages.get_links())

    def link(self, name: str = "", index: int = 0) -> Link | None:
        """One link by name or index, None where there is none."""
        raw = self._found(messages.get_link(name, index))
        return None if raw is None else parse_link(raw)

    def raw_port(self, index: int) -> bytes | None:
        """A link, not yet parsed, None where there is none."""
        return self._found(messages.get_link(index=index))

    def _found(self, request: Request) -> bytes | None:
        answer = self.ask_all([request])[0]
        if isinstance(answer, KernelRefused):
            if answer.errno == errno.ENODEV:
                return None
            raise answer
        return answer[0]

    def require(self, name: str) -> Link:
        """One link by name. Raises KernelRefused ENODEV where there is none."""
        link = self.link(name)
        if link is None:
            raise KernelRefused(errno.ENODEV, f"{self._ip} link show {name}")
        return link

    def addresses(self) -> Iterator[tuple[int, IPInterface]]:
        """Interface index and address, of every link."""
        return ((index, address) for index, address, _protocol in self.marked_addresses())

    def marked_addresses(self) -> Iterator[tuple[int, IPInterface, int]]:
        """Interface index, address and the protocol number that tells ours, of every link."""
        return (parse_address(raw) for raw in self.dump(messages.get_addresses()))

    def link_addresses(self, index: int) -> Iterator[tuple[int, IPInterface, int]]:
        """The same of one link, of every link where it is 0: the kernel sends no others, since Linux 5.0."""
        self.filter_dumps()
        return (parse_address(raw) for raw in self.dump(messages.get_addresses(index)))

    def routes(self) -> Iterator[Route]:
        """The unicast routes of the main table, of both IP versions."""
        raws = self.dump(messages.get_routes())
        return (route for raw in raws if (route := parse_route(raw)) is not None)

    def main_routes(self, version: Version) -> Iterator[Route]:
        """The unicast routes of the main table of one IP version: the kernel sends no others, since Linux 4.20."""
        return (route for raw in self._raw_main_routes(version) if (route := parse_route(raw)) is not None)

    def _raw_main_routes(self, version: Version) -> list[bytes]:
        self.filter_dumps()
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        return self.dump(messages.get_routes(family, RT_TABLE_MAIN, RTN_UNICAST))

    def default_routes(self, version: Version) -> list[Route]:
        """Those of `main_routes` that are default routes; the others are not even parsed."""
        raws = self._raw_main_routes(version)
        return [route for raw in raws if is_default(raw) and (route := parse_route(raw)) is not None]

    def add_bridge(self, name: str, mac: str, mtu: int, alias: str) -> Link:
        """Makes a bridge, down. Raises KernelRefused (EEXIST where the name is held)."""
        answers = self.change_all([messages.new_bridge(name, mac=mac, mtu=mtu)])[0]
        # kernels before 6.2 do not echo a new link
        link = parse_link(answers[0]) if answers else self.require(name)
        try:
            self.set_link(link.index, alias=alias)
        except KernelRefused:
            self.delete_link(link.index)
            raise
        return link

    def add_veth(
        self, name: str, *, master: int, mtu: int, peer: str, peer_mac: str, peer_netns: int
    ) -> tuple[int, int | None]:
        """Makes a veth pair, both ends down, the peer already in its namespace (a file descriptor).

        Returns the index of the host's end, and where the kernel tells, the peer's. Raises KernelRefused (EEXIST
        where a name is held).
        """
        request = messages.new_veth(name, master=master, mtu=mtu, peer=peer, peer_mac=peer_mac, peer_netns=peer_netns)
        answers = self.change_all([request])[0]
        if answers:
            return parse_pair(answers[0])
        # kernels before 6.2 do not echo a new link
        link = self.require(name)
        return link.index, link.peer_index

    def set_link(
        self,
        index: int,
        *,
        up: bool | None = None,
        mtu: int | None = None,
        mac: str | None = None,
        alias: str | None = None,
        master: int | None = None,
        port: Mapping[str, bool] | None = None,
    ) -> None:
        """Changes what is given of a link, in one message; see `messages.set_link`."""
        changes = messages.set_link(index, up=up, mtu=mtu, mac=mac, alias=alias, master=master, port=port)
        self.change_all([changes])

    def delete_link(self, index: int) -> None:
        """Removes a link; its being gone already is as good."""
        self._remove(messages.delete_link(index, f"index {index}"))

    def add_fdb(self, port: int, mac: str) -> None:
        """Says for good that a MAC is behind a bridge port; no other port can learn it."""
        flags, asked = NLM_F_CREATE | NLM_F_REPLACE, f"bridge fdb replace {mac} dev index {port} master static sticky"
        body = _fdb_message(port, mac, NTF_MASTER | NTF_STICKY)
        self.change(body, RTM_NEWNEIGH, flags, lambda: asked)

    def delete_fdb(self, port: int, mac: str) -> None:
        """Takes `add_fdb` back; its being gone already is as good."""
        body = _fdb_message(port, mac, NTF_MASTER)
        self._delete(body, RTM_DELNEIGH, f"bridge fdb delete {mac} dev index {port} master")

    def static_fdb(self) -> set[tuple[int, str]]:
        """Port index and MAC of every static forwarding entry, of all bridges: a dump."""
        body = Packed(struct.pack("=BxxxiHBB", AF_BRIDGE, 0, 0, 0, 0))
        raws = self.request(body, RTM_GETNEIGH, NLM_F_DUMP, lambda: "bridge fdb show")
        return {entry for raw in raws if (entry := parse_static_fdb(raw)) is not None}

    def add_address(self, index: int, address: IPInterface) -> None:
        """Adds an address with our mark, usable at once; its being there already is as good."""
        self.change_all([messages.new_address(index, address)])

    def delete_address(self, index: int, address: IPInterface) -> None:
        """Removes an address; its being gone already is as good."""
        self._remove(messages.delete_address(index, address))

    def add_connected_route(self, index: int, address: IPInterface) -> None:
        """The route to an address's subnet, as the kernel makes it with the address; its being there is as good."""
        message = _route_message()
        v4 = address.version == 4
        message["family"], message["dst_len"] = (socket.AF_INET if v4 else socket.AF_INET6), address.network.prefixlen
        message["table"], message["type"], message["proto"] = RT_TABLE_MAIN, RTN_UNICAST, ROUTE_PROTOCOL_KERNEL
        message["scope"] = RT_SCOPE_LINK if v4 else RT_SCOPE_UNIVERSE
        own = ["RTA_PREFSRC", str(address.ip)] if v4 else ["RTA_PRIORITY", _CONNECTED_METRIC]
        message["attrs"] = [["RTA_DST", str(address.network.network_address)], ["RTA_OIF", index], own]
        asked = f"{self._ip} route add {address.network} dev index {index} proto kernel"
        try:
            self.change(message, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, lambda: asked)
        except KernelRefused as refusal:
            if refusal.errno != errno.EEXIST:
                raise

    def add_default_route(self, via: IPAddress, index: int, *, replace: bool) -> None:
        """Adds the default route; `replace` changes the one that is there. Raises KernelRefused EEXIST."""
        self.change_all([messages.new_default_route(via, index, replace=replace)])

    def delete_default_route(self, via: IPAddress, index: int) -> None:
        """Removes our default route; its being gone already is as good."""
        self._remove(messages.delete_default_route(via, index))

    def add_loopback_route(self, index: int) -> None:
        """Adds a local route of ::1 by a link, after lo's own; its being there already is as good."""
        # the kernel takes no equal route by the same link, and several by different links only where one is appended
        flags, asked = NLM_F_CREATE | NLM_F_APPEND, f"ip -6 route append {_loopback(index)}"
        try:
            self.change(self._loopback_message(index), RTM_NEWROUTE, flags, lambda: asked)
        except KernelRefused as refusal:
            if refusal.errno != errno.EEXIST:
                raise

    def delete_loopback_route(self, index: int) -> None:
        """Takes `add_loopback_route` back; its being gone already is as good."""
        self._delete(self._loopback_message(index), RTM_DELROUTE, f"ip -6 route delete {_loopback(index)}")

    def own_loopbacks(self) -> set[int]:
        """Indices of the links with a local route of ::1 that bears our mark: a dump."""
        raws = self.dump(messages.get_routes(socket.AF_INET6))
        return {index for raw in raws if (index := parse_own_loopback(raw)) is not None}

    @staticmethod
    def _loopback_message(index: int) -> Message:
        message = _route_message()
        message["family"], message["dst_len"] = socket.AF_INET6, 128
        message["table"], message["scope"], message["type"] = RT_TABLE_LOCAL, RT_SCOPE_UNIVERSE, RTN_LOCAL
        message["proto"] = ROUTE_PROTOCOL
        message["attrs"] = [["RTA_DST", str(LOOPBACK6)], ["RTA_OIF", index], ["RTA_PRIORITY", _LOOPBACK_METRIC]]
        return message

    def _delete(self, message: Message, kind: int, asked: str) -> None:
        try:
            self.change(message, kind, 0, lambda: asked)
        except KernelRefused as refusal:
            if refusal.errno not in _GONE:
                raise

    def _remove(self, request: Request) -> None:
        answer = self.ask_all([request])[0]
        if isinstance(answer, KernelRefused) and answer.errno not in _GONE:
            raise answer

    def nsids(self) -> list[int]:
        """The ids that this namespace gave to others."""
        raws = self.dump(messages.get_nsids())
        return [nsid for raw in raws if (nsid := parse_nsid(raw)) is not None]

    def put_mark(self, netns: int, alias: str) -> None:
        """Gives `lo` an alias and sets it up, and an id to the namespace behind a file descriptor, if it has none."""
        nsid, lo = self.ask_all([messages.new_nsid(netns), messages.set_link(_LO, up=True, alias=alias)])
        for answer in (nsid, lo):
            if isinstance(answer, KernelRefused) and (answer is lo or answer.errno != errno.EEXIST):
                raise answer


def netns_cookie() -> int:
    """The number that names the calling thread's namespace until reboot (SO_NETNS_COOKIE); 0 if unknown."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        try:
            return int(struct.unpack("=Q", probe.getsockopt(socket.SOL_SOCKET, 71, 8))[0])
        except OSError as refusal:
            if refusal.errno == errno.ENOPROTOOPT:  # before Linux 5.14
                return os.stat("/proc/thread-self/ns/net").st_ino
            raise
