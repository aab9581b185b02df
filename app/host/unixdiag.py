"""Who holds which abstract unix socket of this network namespace: sock_diag(7), which asks no holder for anything."""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterator

_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY = 4, 20
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_SHOW_NAME, _SHOW_UID = 0x1, 0x40
_UNIX_DIAG_NAME, _UNIX_DIAG_UID = 0, 7
_ANY_STATE = 0xFFFFFFFF
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBHIIIII")
_ATTRIBUTE = struct.Struct("=HH")
_MESSAGE_LENGTH = 16
"""Of struct unix_diag_msg, which the attributes follow."""


def holders(prefix: bytes) -> dict[bytes, int | None]:
    """The names that begin so, NUL included, and their sockets' owner; None: a kernel that does not say (before 5.3).

    Raises OSError where the kernel has no unix_diag.
    """
    found: dict[bytes, int | None] = {}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as diag:
        wanted = _REQUEST.pack(socket.AF_UNIX, 0, 0, _ANY_STATE, 0, _SHOW_NAME | _SHOW_UID, 0, 0)
        flags = _NLM_F_REQUEST | _NLM_F_DUMP
        diag.send(_HEADER.pack(_HEADER.size + len(wanted), _SOCK_DIAG_BY_FAMILY, flags, 1, 0) + wanted)
        for body in _answers(diag):
            attributes = dict(_attributes(body[_MESSAGE_LENGTH:]))
            name = attributes.get(_UNIX_DIAG_NAME, b"")
            if name.startswith(prefix):
                owner = attributes.get(_UNIX_DIAG_UID)
                found[name] = int.from_bytes(owner, sys.byteorder) if owner is not None else None
    return found


def _answers(diag: socket.socket) -> Iterator[bytes]:
    while True:
        data = diag.recv(1 << 18)
        while data:
            length, kind, _flags, _sequence, _port = _HEADER.unpack_from(data)
            body, data = data[_HEADER.size : length], data[_aligned(length) :]
            if kind == _NLMSG_DONE:
                return
            if kind == _NLMSG_ERROR:
                number = -struct.unpack_from("=i", body)[0]
                raise OSError(number, os.strerror(number))
            yield body


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        yield kind, data[_ATTRIBUTE.size : length]
        data = data[_aligned(length) :]


def _aligned(length: int) -> int:
    return length + 3 & ~3
