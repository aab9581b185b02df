"""Netlink's wire: sockets, requests and their answers, and the messages that are read often.

One request is one send and one receive on a socket that stays open. pyroute2's own front ends
start an event loop and, for namespaces, a process: ten times the cost of the request itself.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Address, ip_address, ip_interface, ip_network
from typing import Any, Self

from app.model.errors import KernelRefused
from app.model.naming import owner_of
from app.model.spec import IPAddress, IPNetwork
from app.model.state import IPInterface

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWNSID, RTM_GETNSID = 88, 90
CT_GET, CT_DELETE = 0x101, 0x102  # NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_*

NLM_F_REQUEST, NLM_F_ACK, NLM_F_ECHO, NLM_F_DUMP = 0x1, 0x4, 0x8, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND, NLM_F_ACK_TLVS = 0x100, 0x200, 0x400, 0x800, 0x200
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLMSGERR_ATTR_MSG = 1

IFF_UP = 0x1
NUD_NOARP = 0x40
NTF_SELF, NTF_MASTER, NTF_STICKY = 0x02, 0x04, 0x40
RTN_UNICAST, RTN_LOCAL = 1, 2
RT_TABLE_MAIN, RT_TABLE_LOCAL, RT_SCOPE_UNIVERSE, RT_SCOPE_LINK = 254, 255, 0, 253
ROUTE_PROTOCOL = 98
"""rtm_protocol of our routes ('b'): tells them from an administrator's (ip-route(8), RTPROTO)."""
ROUTE_PROTOCOL_KERNEL, ROUTE_PROTOCOL_RA = 2, 9
ADDRESS_PROTOCOL = 98
"""IFA_PROTO of our addresses, which Linux has since 5.18."""
LOOPBACK6 = IPv6Address("::1")
LINK_GROUP = 25192
"""IFLA_GROUP of our links ('bh'): unlike the alias it is set as the link is made, so that a link
whose maker was killed before it had its alias is still known as ours."""
GOING_GROUPS = range(LINK_GROUP + 1, LINK_GROUP + 17)
"""Groups of those of our links that are being removed together: ours all the same where that was cut short."""
BR_STATE_FORWARDING = 3
RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE = 0x1, 0x10, 0x40
RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE = 0x100, 0x400
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 270, 10, 11
_SO_RCVBUFFORCE = 33
_BUFFER = 1 << 18
AF_BRIDGE = 7
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER = 1, 3, 4, 5, 10
_IFLA_PROTINFO, _IFLA_LINKINFO, _IFLA_IFALIAS, _IFLA_GROUP, _IFLA_LINK_NETNSID = 12, 18, 20, 27, 37
_IFLA_INFO_KIND, _IFLA_INFO_SLAVE_KIND, _IFLA_INFO_SLAVE_DATA = 1, 4, 5
_IFLA_BRPORT_STATE, _IFLA_BRPORT_MODE, _IFLA_BRPORT_LEARNING = 1, 4, 8
_IFLA_BRPORT_ISOLATED, _IFLA_BRPORT_LOCKED = 33, 39
_IFA_ADDRESS, _IFA_LOCAL, _IFA_PROTO = 1, 2, 11
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_MULTIPATH, _RTA_TABLE = 1, 4, 5, 6, 9, 15
_RTM_F_CLONED = 0x200
_NDA_LLADDR = 2

Message = Any
"""A pyroute2 nlmsg; the library carries no types."""


@dataclass(frozen=True, slots=True)
class Link:
    """A link as the kernel shows it. `port_state` is the bridge port's STP state, None off a bridge.

    elsewhere: its other end is in another namespace; nsid: the id that this one gave to that.
    """

    index: int
    name: str
    mac: str
    mtu: int
    alias: str | None
    kind: str | None
    master: int | None
    group: int
    up: bool
    peer_index: int | None
    port_state: int | None
    hairpin: bool
    isolated: bool = False
    locked: bool = False
    learning: bool = True
    elsewhere: bool = False
    nsid: int | None = None

    @property
    def owner(self) -> str | None:
        """The id in our mark, which is alias and group together; None for somebody else's link.

        The alias alone is on inner ends too: a daemon that runs in a namespace that another one made sees those.
        """
        return owner_of(self.alias) if self._is_grouped else None

    @property
    def is_ours(self) -> bool:
        """Marked; or made by us and killed before the alias: our group, still down."""
        return self.owner is not None or (self._is_grouped and not self.up and self.alias is None)

    @property
    def is_going(self) -> bool:
        """In a group of links that are being removed."""
        return self.group in GOING_GROUPS

    @property
    def _is_grouped(self) -> bool:
        return self.group == LINK_GROUP or self.is_going


@dataclass(frozen=True, slots=True)
class Route:
    """A unicast route of the main table. `destination` None is the default route.

    ways: gateways and interfaces of one with several, of which `via` and `oif` are the first. IPv6 routes of equal
    metric become one such, whoever made them.
    """

    destination: IPNetwork | None
    version: int
    oif: int | None
    via: IPAddress | None
    protocol: int
    priority: int
    ways: tuple[tuple[IPAddress | None, int], ...] = field(default=(), compare=False)


class Packed(dict[str, Any]):
    """A message whose body is packed already, as `Netlink.request` takes it."""

    def __init__(self, body: bytes) -> None:
        super().__init__()
        self._body = body
        self.data = b""

    def encode(self) -> None:
        header = self["header"]
        numbers = (header["type"], header["flags"], header["sequence_number"], header["pid"])
        self.data = struct.pack("=IHHII", 16 + len(self._body), *numbers) + self._body


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded (netlink(7), NLA_ALIGN)."""
    length = 4 + len(value)
    return struct.pack("=HH", length, kind) + value + bytes(-length % 4)


class Netlink:
    """A netlink socket in the namespace the calling thread is in when it is made; it stays there."""

    def __init__(self, family: int = socket.NETLINK_ROUTE, groups: int = 0) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)
        self._sequence = 0
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        self._socket.bind((0, groups))

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def widen(self, size: int) -> None:
        """Asks for a receive buffer of `size` bytes, so that a burst of events is not lost."""
        try:
            # beyond net.core.rmem_max, which is 208 KiB by default
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size)
        except PermissionError:  # CAP_NET_ADMIN in a user namespace only
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)

    def events(self) -> Iterator[tuple[int, int, bytes]]:
        """The waiting events: kind, flags, message; without blocking. Raises OSError ENOBUFS where some were lost."""
        while True:
            try:
                data = self._socket.recv(_BUFFER, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            yield from ((kind, flags, raw) for kind, _sequence, flags, raw in split(data))

    def request(self, message: Message, kind: int, flags: int, asked: Callable[[], str]) -> list[bytes]:
        """Sends one request and returns the raw answers. Raises KernelRefused with what was `asked`."""
        self._sequence = (self._sequence + 1) & 0x7FFFFFFF
        message["header"] = {
            "type": kind,
            "flags": flags | NLM_F_REQUEST,
            "sequence_number": self._sequence,
            "pid": 0,
        }
        message.encode()
        self._socket.send(message.data)
        answers: list[bytes] = []
        while True:
            for answer_kind, sequence, answer_flags, raw in split(self._socket.recv(_BUFFER)):
                if sequence != self._sequence:
                    continue
                if answer_kind == NLMSG_DONE:
                    return answers
                if answer_kind == NLMSG_ERROR:
                    _check(raw, answer_flags, asked)
                    return answers
                answers.append(raw)

    def change(self, message: Message, kind: int, flags: int, asked: Callable[[], str]) -> list[bytes]:
        """A request whose end an acknowledgement marks: anything but a dump."""
        return self.request(message, kind, flags | NLM_F_ACK, asked)


def split(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Kind, sequence number, flags and the whole of each message in a datagram."""
    offset = 0
    while offset + 16 <= len(data):
        length, kind, flags, sequence, _pid = struct.unpack_from("=IHHII", data, offset)
        if length < 16:
            return
        yield kind, sequence, flags, data[offset : offset + length]
        offset += (length + 3) & ~3


def _check(raw: bytes, flags: int, asked: Callable[[], str]) -> None:
    code = -struct.unpack_from("=i", raw, 16)[0]
    if code == 0:
        return
    reason = ""
    offset = 36  # header, errno, and the request's header that NETLINK_CAP_ACK leaves
    while flags & NLM_F_ACK_TLVS and offset + 4 <= len(raw):
        length, attribute = struct.unpack_from("=HH", raw, offset)
        if length < 4:
            break
        if attribute == NLMSGERR_ATTR_MSG:
            reason = raw[offset + 4 : offset + length].rstrip(b"\0").decode(errors="replace")
        offset += (length + 3) & ~3
    raise KernelRefused(code, asked(), reason)


def attributes(raw: bytes, offset: int) -> dict[int, bytes]:
    """A message's or nest's attributes. By hand: pyroute2 takes 0.2 ms and more to read one link."""
    found: dict[int, bytes] = {}
    while offset + 4 <= len(raw):
        length, kind = struct.unpack_from("=HH", raw, offset)
        if length < 4:
            break
        found[kind & 0x3FFF] = raw[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.rstrip(b"\0").decode(errors="replace")


def _number(value: bytes | None) -> int | None:
    return None if value is None else int.from_bytes(value, sys.byteorder)


def parse_link(raw: bytes) -> Link:
    """The link that an RTM_*LINK message describes (linux/if_link.h)."""
    index, flags = struct.unpack_from("=iI", raw, 20)
    found = attributes(raw, 32)
    info = attributes(found.get(_IFLA_LINKINFO, b""), 0)
    is_port = _text(info.get(_IFLA_INFO_SLAVE_KIND)) == "bridge"
    port = attributes(info.get(_IFLA_INFO_SLAVE_DATA, b""), 0) if is_port else {}
    return Link(
        index=index,
        name=_text(found.get(_IFLA_IFNAME)) or "",
        mac=found.get(_IFLA_ADDRESS, b"").hex(":"),
        mtu=_number(found.get(_IFLA_MTU)) or 0,
        alias=_text(found.get(_IFLA_IFALIAS)),
        kind=_text(info.get(_IFLA_INFO_KIND)),
        master=_number(found.get(_IFLA_MASTER)),
        group=_number(found.get(_IFLA_GROUP)) or 0,
        up=bool(flags & IFF_UP),
        peer_index=_number(found.get(_IFLA_LINK)),
        **_port_options(port),
        elsewhere=_IFLA_LINK_NETNSID in found,
        nsid=_number(found.get(_IFLA_LINK_NETNSID)),
    )


def is_bridge_port_event(raw: bytes) -> bool:
    """Whether an RTM_*LINK message speaks of a bridge port (AF_BRIDGE): its DELLINK leaves the link there."""
    return raw[16] == AF_BRIDGE


def with_port_options(link: Link, raw: bytes) -> Link:
    """The link with its bridge port's options as such a message has them."""
    port = attributes(attributes(raw, 32).get(_IFLA_PROTINFO, b""), 0)
    return replace(link, **_port_options(port)) if port else link


def _port_options(port: dict[int, bytes]) -> dict[str, Any]:
    return {
        "port_state": _number(port.get(_IFLA_BRPORT_STATE)),
        "hairpin": bool(_number(port.get(_IFLA_BRPORT_MODE))),
        "isolated": bool(_number(port.get(_IFLA_BRPORT_ISOLATED))),
        "locked": bool(_number(port.get(_IFLA_BRPORT_LOCKED))),
        "learning": _number(port.get(_IFLA_BRPORT_LEARNING)) != 0,
    }


def parse_address(raw: bytes) -> tuple[int, IPInterface, int]:
    """The interface index, the address and its protocol, of an RTM_*ADDR message (linux/if_addr.h)."""
    found = attributes(raw, 24)
    address = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS, b"")
    index = struct.unpack_from("=I", raw, 20)[0]
    return index, ip_interface((ip_address(address), raw[17])), _number(found.get(_IFA_PROTO)) or 0


def parse_static_fdb(raw: bytes) -> tuple[int, str] | None:
    """Port index and MAC of a bridge's static forwarding entry (linux/neighbour.h), None for any other."""
    index, state, flags = struct.unpack_from("=iHB", raw, 20)
    mac = attributes(raw, 28).get(_NDA_LLADDR, b"")
    return (index, mac.hex(":")) if state & NUD_NOARP and not flags & NTF_SELF else None


def parse_neighbour(raw: bytes) -> tuple[int, str]:
    """The interface index and the MAC of an RTM_*NEIGH message."""
    return struct.unpack_from("=i", raw, 20)[0], attributes(raw, 28).get(_NDA_LLADDR, b"").hex(":")


def parse_route(raw: bytes) -> Route | None:
    """The unicast main-table route of an RTM_*ROUTE message (linux/rtnetlink.h), None for any other."""
    family, prefix, _source, _tos, table, protocol, _scope, kind, flags = struct.unpack_from("=8BI", raw, 16)
    if kind != RTN_UNICAST or family not in (socket.AF_INET, socket.AF_INET6) or flags & _RTM_F_CLONED:
        return None
    found = attributes(raw, 28)
    if (_number(found.get(_RTA_TABLE)) or table) != RT_TABLE_MAIN:
        return None
    ways = tuple(_ways(found.get(_RTA_MULTIPATH, b"")))
    destination, gateway = found.get(_RTA_DST), found.get(_RTA_GATEWAY)
    via, oif = ways[0] if ways else (ip_address(gateway) if gateway else None, _number(found.get(_RTA_OIF)))
    return Route(
        destination=ip_network((ip_address(destination), prefix)) if destination else None,
        version=4 if family == socket.AF_INET else 6,
        oif=oif,
        via=via,
        protocol=protocol,
        priority=_number(found.get(_RTA_PRIORITY)) or 0,
        ways=ways,
    )


def _ways(raw: bytes) -> Iterator[tuple[IPAddress | None, int]]:
    """Gateway and interface of each struct rtnexthop (linux/rtnetlink.h)."""
    while len(raw) >= 8:
        length, _flags, _hops, index = struct.unpack_from("=HBBi", raw)
        if length < 8:
            return
        gateway = attributes(raw[:length], 8).get(_RTA_GATEWAY)
        yield ip_address(gateway) if gateway else None, index
        raw = raw[(length + 3) & ~3 :]


def parse_own_loopback(raw: bytes) -> int | None:
    """The interface index of a local route of ::1 that bears our mark, None for any other route."""
    family, prefix, _source, _tos, _table, protocol, _scope, kind, _flags = struct.unpack_from("=8BI", raw, 16)
    if (family, prefix, protocol, kind) != (socket.AF_INET6, 128, ROUTE_PROTOCOL, RTN_LOCAL):
        return None
    found = attributes(raw, 28)
    return _number(found.get(_RTA_OIF)) if found.get(_RTA_DST) == LOOPBACK6.packed else None
