"""nf_tables without libnftables: is a table there, what rules has it, has anything changed; and changes, packed."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from app.model.errors import KernelRefused

FAMILIES = {"ip": 2, "bridge": 7, "ip6": 10}
_HEADER, _GENERIC = struct.Struct("=IHHII"), struct.Struct("=BBH")
_ATTRIBUTE, _CODE = struct.Struct("=HH"), struct.Struct("=i")
_NFTABLES = 10 << 8
_GET_TABLE, _GET_RULE, _GET_GENERATION = _NFTABLES | 1, _NFTABLES | 7, _NFTABLES | 16
_TABLE_NAME, _GENERATION_ID = 1, 1
_ERROR, _DONE = 2, 3
_REQUEST, _ACKNOWLEDGE, _DUMP, _DUMP_INTERRUPTED = 0x1, 0x4, 0x300, 0x10
_BATCH_BEGIN, _BATCH_END, _BATCH_GENERATION = 16, 17, 1
_SUBSYSTEM = socket.htons(10)
NETFILTER = 12  # NETLINK_NETFILTER, which the socket module lacks
_MODULES, _MODULE = Path("/proc/modules"), Path("/sys/module/nf_tables")


class Change(NamedTuple):
    """A message of a transaction. kind: within nf_tables, NFT_MSG_*."""

    kind: int
    flags: int
    family: str
    attributes: bytes


def nf_tables_loaded() -> bool:
    """Whether to ask loads no module. True where the kernel does not tell."""
    if _MODULE.exists() or not _MODULES.exists():
        return True
    builtin = Path("/lib/modules", os.uname().release, "modules.builtin")
    return not builtin.exists() or "/nf_tables.ko" in builtin.read_text()


class Nfnetlink:
    """A socket in the calling thread's namespace, opened at the first question; one thread."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._sequence = 0

    def has_table(self, family: str, name: str) -> bool:
        """Raises KernelRefused."""
        try:
            self._ask(_GET_TABLE, _REQUEST, FAMILIES[family], name)
        except KernelRefused as refusal:
            # EINVAL, EOPNOTSUPP: a kernel without nf_tables
            if refusal.errno in {errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP}:
                return False
            raise
        return True

    def rules(self, family: str, table: str) -> bytes | None:
        """The rules of a table as the kernel has them, handles included, to compare with another time's.

        None where somebody changes rules right now. Raises KernelRefused.
        """
        parts = self._ask(_GET_RULE, _REQUEST | _DUMP, FAMILIES[family], table)
        return None if parts is None else b"".join(parts)

    def generation(self) -> int:
        """A number that every transaction of anybody in this namespace raises by one. Raises KernelRefused."""
        (attributes,) = self._ask(_GET_GENERATION, _REQUEST, 0, None) or (b"",)
        start = 0
        while start < len(attributes):
            length, kind = _ATTRIBUTE.unpack_from(attributes, start)
            if kind == _GENERATION_ID:
                return int.from_bytes(attributes[start + _ATTRIBUTE.size : start + length], "big")
            start += (length + 3) & ~3
        raise KernelRefused(errno.EPROTO, "nft generation")

    def change(self, changes: Sequence[Change], generation: int, asked: str) -> None:
        """One transaction: all of them or nothing.

        Raises KernelRefused, ERESTART where somebody changed something since that generation.
        """
        begin, last = self._sequence + 1, self._sequence + 1 + len(changes)
        self._sequence = last + 1
        messages = [_batch(_BATCH_BEGIN, begin, attribute(_BATCH_GENERATION, generation.to_bytes(4, "big")))]
        for sequence, one in enumerate(changes, begin + 1):
            flags = one.flags | (_REQUEST | _ACKNOWLEDGE if sequence == last else _REQUEST)
            messages.append(_message(_NFTABLES | one.kind, flags, sequence, FAMILIES[one.family], 0, one.attributes))
        messages.append(_batch(_BATCH_END, last + 1, b""))
        try:
            self._opened().send(b"".join(messages))
            code = self._refusal(begin, last)
        except OSError as failure:
            raise KernelRefused(failure.errno or errno.EIO, asked) from failure
        if code:
            raise KernelRefused(code, asked)

    def _refusal(self, begin: int, last: int) -> int:
        """The error of a transaction, 0 for none: of its beginning, of any of its changes, or of the whole."""
        while True:
            data, start = self._opened().recv(1 << 16), 0
            while start < len(data):
                length, kind, _flags, sequence, _port = _HEADER.unpack_from(data, start)
                if kind == _ERROR and begin <= sequence <= last:
                    # what comes behind an error is skipped by its sequence number
                    code: int = -_CODE.unpack_from(data, start + _HEADER.size)[0]
                    if code or sequence == last:
                        return code
                start += (length + 3) & ~3

    def _opened(self) -> socket.socket:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETFILTER)
        return self._socket

    def _ask(self, kind: int, flags: int, family: int, table: str | None) -> list[bytes] | None:
        """The attributes of each answer; None for a dump that a change interrupted."""
        asked = f"nft list table {family} {table}" if table else "nft generation"
        try:
            self._sequence += 1
            # the attribute with a table's name has the same number in both messages
            named = attribute(_TABLE_NAME, table.encode() + b"\0") if table else b""
            self._opened().send(_message(kind, flags, self._sequence, family, 0, named))
            return self._answers(bool(flags & _DUMP), asked)
        except OSError as failure:
            raise KernelRefused(failure.errno or errno.EIO, asked) from failure

    def _answers(self, dump: bool, asked: str) -> list[bytes] | None:
        found: list[bytes] = []
        whole = True
        while self._socket is not None:
            data, start = self._socket.recv(1 << 18), 0
            while start < len(data):
                length, kind, flags, sequence, _port = _HEADER.unpack_from(data, start)
                payload = data[start + _HEADER.size : start + length]
                start += (length + 3) & ~3
                if sequence != self._sequence:
                    continue
                whole = whole and not flags & _DUMP_INTERRUPTED
                if kind == _ERROR:
                    raise KernelRefused(-_CODE.unpack_from(payload)[0], asked)
                if kind == _DONE:
                    return found if whole else None
                found.append(payload[_GENERIC.size :])
                if not dump:
                    return found
        return None

    def close(self) -> None:
        """A later question opens it again."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def _message(kind: int, flags: int, sequence: int, family: int, resource: int, attributes: bytes) -> bytes:
    length = _HEADER.size + _GENERIC.size + len(attributes)
    return _HEADER.pack(length, kind, flags, sequence, 0) + _GENERIC.pack(family, 0, resource) + attributes


def _batch(kind: int, sequence: int, attributes: bytes) -> bytes:
    return _message(kind, _REQUEST, sequence, 0, _SUBSYSTEM, attributes)
