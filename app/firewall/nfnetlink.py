"""Three questions to nf_tables without libnftables: is a table there, what rules has it, has anything changed."""

from __future__ import annotations

import errno
import os
import socket
import struct
from pathlib import Path

from app.model.errors import KernelRefused

FAMILIES = {"ip": 2, "bridge": 7, "ip6": 10}
_HEADER, _GENERIC = struct.Struct("=IHHII"), struct.Struct("=BBH")
_ATTRIBUTE, _CODE = struct.Struct("=HH"), struct.Struct("=i")
_NFTABLES = 10 << 8
_GET_TABLE, _GET_RULE, _GET_GENERATION = _NFTABLES | 1, _NFTABLES | 7, _NFTABLES | 16
_TABLE_NAME, _GENERATION_ID = 1, 1
_ERROR, _DONE = 2, 3
_REQUEST, _DUMP, _DUMP_INTERRUPTED = 0x1, 0x300, 0x10
NETFILTER = 12  # NETLINK_NETFILTER, which the socket module lacks
_MODULES, _MODULE = Path("/proc/modules"), Path("/sys/module/nf_tables")


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

    def _ask(self, kind: int, flags: int, family: int, table: str | None) -> list[bytes] | None:
        """The attributes of each answer; None for a dump that a change interrupted."""
        asked = f"nft list table {family} {table}" if table else "nft generation"
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETFILTER)
            self._sequence += 1
            # the attribute with a table's name has the same number in both messages
            attribute = _attribute(_TABLE_NAME, table.encode() + b"\0") if table else b""
            length = _HEADER.size + _GENERIC.size + len(attribute)
            header = _HEADER.pack(length, kind, flags, self._sequence, 0)
            self._socket.send(header + _GENERIC.pack(family, 0, 0) + attribute)
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


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)
