"""What the kernel tells by itself: links, addresses, routes, settings of the host and of every namespace that it knows.

One socket hears them all (NETLINK_LISTEN_ALL_NSID); another hears nf_tables. Neither keeps a namespace alive.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from app.kernel.wire import (
    AF_BRIDGE,
    RTM_DELNEIGH,
    RTM_NEWNEIGH,
    RTMGRP_IPV4_IFADDR,
    RTMGRP_IPV4_ROUTE,
    RTMGRP_IPV6_IFADDR,
    RTMGRP_IPV6_ROUTE,
    RTMGRP_LINK,
    Netlink,
    attributes,
    split,
)

RTM_NEWNETCONF = 80
EVERY_LINK = -1
"""NETCONFA_IFINDEX_ALL: the settings below conf/all."""
_RTMGRP_NEIGH, _RTMGRP_IPV4_NETCONF, _RTMGRP_IPV6_NETCONF = 0x4, 1 << 23, 1 << 24
_GROUPS = (
    RTMGRP_LINK
    | RTMGRP_IPV4_IFADDR
    | RTMGRP_IPV4_ROUTE
    | RTMGRP_IPV6_IFADDR
    | RTMGRP_IPV6_ROUTE
    | _RTMGRP_NEIGH
    | _RTMGRP_IPV4_NETCONF
    | _RTMGRP_IPV6_NETCONF
)
_NFNLGRP_NFTABLES = 1 << 6
_NFT_MSG_NEWGEN = 10 << 8 | 15
_NFT_RULES = frozenset(10 << 8 | kind for kind in (0, 2, 3, 5, 6, 8))  # tables, chains and rules, made or deleted
_NFTA_GEN_PROC_PID = 2  # the thread's, as the first PID namespace numbers it
_NFTA_TABLE_NAME = 1
_NETCONFA_IFINDEX = 1
_SOL_NETLINK, _NETLINK_LISTEN_ALL_NSID = 270, 8
_SO_ATTACH_FILTER = 26
_RECEIVE, _ANCILLARY = 1 << 16, 64
_QUEUE = 8 << 20
"""Bytes that events may take up while they wait; about 5,000 of links."""
_LOAD_SHORT, _LOAD_BYTE, _IF_EQUAL, _RETURN = 0x28, 0x30, 0x15, 0x06  # linux/bpf_common.h
_TYPE_AT, _FAMILY_AT = 4, 16
_NETLINK_NETFILTER = 12  # which the socket module lacks


class EventsLost(Exception):
    """More happened than the queue could hold: what there is must be looked at as a whole."""


@dataclass(frozen=True, slots=True)
class Event:
    """An rtnetlink message. nsid: the host's id of the namespace that it comes from; None: the host itself."""

    nsid: int | None
    kind: int
    raw: bytes


class KernelEvents:
    """Belongs to the namespace of the thread that makes it; read by one thread. Making it raises OSError."""

    def __init__(self) -> None:
        self._netlink = Netlink(socket.NETLINK_ROUTE, _GROUPS)
        self._netlink.widen(_QUEUE)
        self._socket = socket.socket(fileno=os.dup(self._netlink.fileno()))
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_LISTEN_ALL_NSID, 1)  # which takes CAP_NET_BROADCAST
        _leave_out_neighbours(self._socket)

    def fileno(self) -> int:
        return self._netlink.fileno()

    def close(self) -> None:
        self._socket.close()
        self._netlink.close()

    def take(self) -> Iterator[Event]:
        """The waiting events; never waits. Raises EventsLost."""
        while True:
            try:
                data, ancillary, _flags, _sender = self._socket.recvmsg(_RECEIVE, _ANCILLARY, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as failure:
                if failure.errno == errno.ENOBUFS:
                    raise EventsLost from failure
                raise
            nsid = _nsid(ancillary)
            for kind, _sequence, _flags, raw in split(data):
                yield Event(nsid, kind, raw)


@dataclass(frozen=True, slots=True)
class RulesTouched:
    """What another process than this one changed. ours: the tables that are watched; others: rules elsewhere."""

    ours: bool = False
    others: bool = False


class RuleEvents:
    """nf_tables' own events, about tables of one name and about all others."""

    def __init__(self, table: str) -> None:
        self._netlink = Netlink(_NETLINK_NETFILTER, _NFNLGRP_NFTABLES)
        self._netlink.widen(_QUEUE)
        self._name = table.encode() + b"\0"
        self._ours = self._others = False

    def fileno(self) -> int:
        return self._netlink.fileno()

    def close(self) -> None:
        self._netlink.close()

    def _is_about(self, raw: bytes) -> bool:
        """The first attribute of every object is its table's name; a comment may say the same."""
        return self._name in raw and attributes(raw, 20).get(_NFTA_TABLE_NAME) == self._name

    def take(self) -> RulesTouched:
        """As of the waiting events; never waits. A transaction ends with who did it."""
        ours = others = False
        try:
            for kind, _flags, raw in self._netlink.events():
                if kind != _NFT_MSG_NEWGEN:
                    if self._is_about(raw):
                        self._ours = True
                    elif kind in _NFT_RULES:  # what comes and goes in sets decides nothing that is looked at
                        self._others = True
                    continue
                if self._ours or self._others:
                    thread = int.from_bytes(attributes(raw, 20).get(_NFTA_GEN_PROC_PID, b""), "big")
                    foreign = not Path(f"/proc/self/task/{thread}").exists()
                    ours, others = ours or (foreign and self._ours), others or (foreign and self._others)
                self._ours = self._others = False
        except OSError as failure:
            if failure.errno != errno.ENOBUFS:
                raise
            return RulesTouched(ours=True, others=True)
        return RulesTouched(ours, others)


def netconf_index(raw: bytes) -> int:
    """The interface whose settings an RTM_NEWNETCONF message is about; `EVERY_LINK` for conf/all."""
    value = attributes(raw, 20).get(_NETCONFA_IFINDEX, b"")
    return int(struct.unpack("=i", value)[0]) if len(value) == 4 else 0


def _nsid(ancillary: list[tuple[int, int, bytes]]) -> int | None:
    for level, kind, value in ancillary:
        if (level, kind) == (_SOL_NETLINK, _NETLINK_LISTEN_ALL_NSID):
            return int(struct.unpack_from("=i", value)[0])
    return None


def _leave_out_neighbours(listener: socket.socket) -> None:
    """Has the kernel drop what neighbours' states say, of which there is much, but for lost forwarding entries."""

    def number(kind: int) -> int:  # the program loads in network order
        return int.from_bytes(struct.pack("=H", kind), "big")

    program = [
        (_LOAD_SHORT, 0, 0, _TYPE_AT),
        (_IF_EQUAL, 4, 0, number(RTM_NEWNEIGH)),  # to the end: dropped
        (_IF_EQUAL, 0, 2, number(RTM_DELNEIGH)),
        (_LOAD_BYTE, 0, 0, _FAMILY_AT),
        (_IF_EQUAL, 0, 1, AF_BRIDGE),
        (_RETURN, 0, 0, 0xFFFFFFFF),
        (_RETURN, 0, 0, 0),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in program))
    listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(code)))
