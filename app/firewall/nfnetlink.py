"""Two questions to nf_tables without libnftables: whether a table is there, and whether anything has changed."""

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
_GET_TABLE, _GET_GENERATION = _NFTABLES | 1, _NFTABLES | 16
_TABLE_NAME, _GENERATION_ID = 1, 1
_ERROR, _REQUEST = 2, 1
_NETFILTER = 12  # NETLINK_NETFILTER, which the socket module lacks
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
        attribute = name.encode() + b"\0"
        attribute = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(attribute), _TABLE_NAME) + attribute
        attribute += bytes(-len(attribute) % 4)
        try:
            self._ask(_GET_TABLE, FAMILIES[family], attribute, f"nft list table {family} {name}")
        except KernelRefused as refusal:
            # EINVAL, EOPNOTSUPP: a kernel without nf_tables
            if refusal.errno in {errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP}:
                return False
            raise
        return True

    def generation(self) -> int:
        """A number that every transaction of anybody in this namespace raises. Raises KernelRefused."""
        payload = self._ask(_GET_GENERATION, 0, b"", "nft generation")
        start = _GENERIC.size
        while start < len(payload):
            length, kind = _ATTRIBUTE.unpack_from(payload, start)
            if kind == _GENERATION_ID:
                return int.from_bytes(payload[start + _ATTRIBUTE.size : start + length], "big")
            start += (length + 3) & ~3
        raise KernelRefused(errno.EPROTO, "nft generation")

    def _ask(self, kind: int, family: int, attributes: bytes, asked: str) -> bytes:
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETFILTER)
                self._socket.bind((0, 0))
            self._sequence += 1
            length = _HEADER.size + _GENERIC.size + len(attributes)
            header = _HEADER.pack(length, kind, _REQUEST, self._sequence, 0)
            self._socket.send(header + _GENERIC.pack(family, 0, 0) + attributes)
            while True:
                answer = self._socket.recv(65536)
                length, kind, _flags, sequence, _port = _HEADER.unpack_from(answer)
                if sequence == self._sequence:
                    break
        except OSError as failure:
            raise KernelRefused(failure.errno or errno.EIO, asked) from failure
        payload = answer[_HEADER.size : length]
        if kind == _ERROR:
            raise KernelRefused(-_CODE.unpack_from(payload)[0], asked)
        return payload

    def close(self) -> None:
        """A later question opens it again."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None
