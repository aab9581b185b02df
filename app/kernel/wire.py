"""Netlink's wire: sockets, requests and their answers.

One request is one send and one receive on a socket that stays open. pyroute2's own front ends
start an event loop and, for namespaces, a process: ten times the cost of the request itself.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from ipaddress import IPv6Address
from typing import Any, ClassVar, NamedTuple, Self

from app.model.errors import KernelRefused

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_GETNETCONF, RTM_NEWNSID, RTM_GETNSID = 82, 88, 90
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
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK = 270, 10, 11, 12
_SO_RCVBUFFORCE = 33
_BUFFER = 1 << 16
"""The kernel puts no more than 32 KiB into one answer; four times this is three times as slow to allocate."""
AF_BRIDGE = 7
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_SEQUENCE_MAX = 0x7FFFFFFF

Message = Any
"""A pyroute2 nlmsg; the library carries no types."""


class Packed(dict[str, Any]):
    """A message whose body is packed already, as `Netlink.request` takes it."""

    def __init__(self, body: bytes) -> None:
        super().__init__()
        self._body = body
        self.data = b""

    def encode(self) -> None:
        header = self["header"]
        numbers = (header["type"], header["flags"], header["sequence_number"], header["pid"])
        self.data = _HEADER.pack(16 + len(self._body), *numbers) + self._body


class Request(NamedTuple):
    """A message without its header. asked: the words of the command that would do the same, but for the first."""

    kind: int
    flags: int
    body: bytes
    asked: Callable[[], str]


Answer = list[bytes] | KernelRefused


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded (netlink(7), NLA_ALIGN)."""
    length = 4 + len(value)
    return struct.pack("=HH", length, kind) + value + bytes(-length % 4)


class Netlink:
    """A netlink socket in the namespace the calling thread is in when it is made; it stays there.

    command: what the `asked` of a `Request` follows. sent: how often anything was sent, by all sockets together.
    """

    sent: ClassVar[int] = 0

    def __init__(self, family: int = socket.NETLINK_ROUTE, groups: int = 0, command: str = "") -> None:
        self._command = command
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

    def filter_dumps(self) -> None:
        """From now on a dump holds only what its request's header asks for; an older kernel sends all."""
        with contextlib.suppress(OSError):
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)

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
        self._sequence = (self._sequence + 1) & _SEQUENCE_MAX
        message["header"] = {
            "type": kind,
            "flags": flags | NLM_F_REQUEST,
            "sequence_number": self._sequence,
            "pid": 0,
        }
        message.encode()
        self._send(message.data)
        answers: list[bytes] = []
        while True:
            for answer_kind, sequence, answer_flags, raw in split(self._socket.recv(_BUFFER)):
                if sequence != self._sequence:
                    continue
                if answer_kind == NLMSG_DONE:
                    return answers
                if answer_kind == NLMSG_ERROR:
                    refusal = _refusal(raw, answer_flags, asked)
                    if refusal is not None:
                        raise refusal
                    return answers
                answers.append(raw)

    def dump(self, asked: Request) -> list[bytes]:
        """The raw answers to a request for all there is of something."""
        return self.request(Packed(asked.body), asked.kind, asked.flags, lambda: self._asked(asked))

    def change(self, message: Message, kind: int, flags: int, asked: Callable[[], str]) -> list[bytes]:
        """A request whose end an acknowledgement marks: anything but a dump."""
        return self.request(message, kind, flags | NLM_F_ACK, asked)

    def ask_all(self, requests: Sequence[Request]) -> list[Answer]:
        """Sends them at once, none of them a dump; each one's answers, or why it was refused.

        The kernel takes them in order, the next one too where one is refused, and tells of every refusal: so only
        the last one is acknowledged.
        """
        last = len(requests) - 1
        first = self._sequence + 1
        self._sequence = first + last
        if self._sequence > _SEQUENCE_MAX:
            first, self._sequence = 1, 1 + last
        flags = [NLM_F_REQUEST] * last + [NLM_F_REQUEST | NLM_F_ACK]
        self._send(b"".join(map(_packed, requests, flags, range(first, first + last + 1))))
        answers: list[Answer] = [[] for _ in requests]
        while True:
            for kind, sequence, answer_flags, raw in split(self._socket.recv(_BUFFER)):
                place = sequence - first
                if not 0 <= place <= last:
                    continue
                held = answers[place]
                if kind != NLMSG_ERROR:
                    if isinstance(held, list):
                        held.append(raw)
                    continue
                refusal = _refusal(raw, answer_flags, partial(self._asked, requests[place]))
                answers[place] = refusal or held
                if place == last:
                    return answers

    def change_all(self, requests: Sequence[Request]) -> list[list[bytes]]:
        """The same where none may be refused: raises the first refusal, once all were answered."""
        answers: list[list[bytes]] = []
        for answer in self.ask_all(requests):
            if isinstance(answer, KernelRefused):
                raise answer
            answers.append(answer)
        return answers

    def _asked(self, request: Request) -> str:
        return f"{self._command} {request.asked()}"

    def _send(self, data: bytes) -> None:
        Netlink.sent += 1
        self._socket.send(data)


def _packed(request: Request, flags: int, sequence: int) -> bytes:
    return _HEADER.pack(16 + len(request.body), request.kind, request.flags | flags, sequence, 0) + request.body


def split(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Kind, sequence number, flags and the whole of each message in a datagram."""
    offset = 0
    while offset + 16 <= len(data):
        length, kind, flags, sequence, _pid = _HEADER.unpack_from(data, offset)
        if length < 16:
            return
        yield kind, sequence, flags, data[offset : offset + length]
        offset += (length + 3) & ~3


def _refusal(raw: bytes, flags: int, asked: Callable[[], str]) -> KernelRefused | None:
    """What an NLMSG_ERROR says; None where it acknowledges."""
    code = -struct.unpack_from("=i", raw, 16)[0]
    if code == 0:
        return None
    reason = ""
    offset = 36  # header, errno, and the request's header that NETLINK_CAP_ACK leaves
    while flags & NLM_F_ACK_TLVS and offset + 4 <= len(raw):
        length, attribute = struct.unpack_from("=HH", raw, offset)
        if length < 4:
            break
        if attribute == NLMSGERR_ATTR_MSG:
            reason = raw[offset + 4 : offset + length].rstrip(b"\0").decode(errors="replace")
        offset += (length + 3) & ~3
    return KernelRefused(code, asked(), reason)


def attributes(raw: bytes, offset: int, wanted: frozenset[int] | None = None) -> dict[int, bytes]:
    """A message's or nest's attributes, or those wanted of many.

    By hand: pyroute2 takes 0.2 ms and more to read one link.
    """
    found: dict[int, bytes] = {}
    end, unpack = len(raw) - 3, _ATTRIBUTE.unpack_from
    while offset < end:
        length, kind = unpack(raw, offset)
        if length < 4:
            break
        kind &= 0x3FFF
        if wanted is None or kind in wanted:
            found[kind] = raw[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def find(raw: bytes, offset: int, wanted: int) -> bytes | None:
    """One of them, None where it is missing."""
    end, unpack = len(raw) - 3, _ATTRIBUTE.unpack_from
    while offset < end:
        length, kind = unpack(raw, offset)
        if length < 4:
            break
        if kind & 0x3FFF == wanted:
            return raw[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return None
