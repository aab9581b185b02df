"""SCTP by hand over raw sockets (RFC 9260): an INIT asks, its INIT ACK answers. The kernel needs no SCTP for it.

A question's payload travels in a parameter of the INIT that others skip, the answer in the INIT ACK's state cookie.
"""

from __future__ import annotations

import secrets
import socket
import struct
import time
from dataclasses import dataclass

from app.sandbox.clients import PATIENCE, Opener, family_of, readable
from app.sandbox.servers import Server, ask_for_destination, reply_from

INIT, INIT_ACK = 1, 2
_HEADER = struct.Struct("!HHI4x")  # source port, destination port, verification tag, checksum
_CHUNK = struct.Struct("!BxHIIHHI")  # type, length, initiate tag, window, streams out and in, first TSN
_PARAMETER = struct.Struct("!HH")
_STATE_COOKIE, _PAYLOAD = 7, 0xA000  # the highest bits 10: skipped without a word by who does not know it
_WINDOW, _STREAMS = 65536, 1
_EPHEMERAL = range(32768, 61000)


def _crc32c_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte
        for _bit in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC32C = _crc32c_table()


def _checksum(data: bytes) -> bytes:
    total = 0xFFFFFFFF
    for byte in data:
        total = _CRC32C[(total ^ byte) & 0xFF] ^ total >> 8
    return struct.pack("<I", total ^ 0xFFFFFFFF)


@dataclass(frozen=True, slots=True)
class Chunk:
    """An INIT or INIT ACK, alone in its packet. verification: 0 in an INIT, the asker's tag in an INIT ACK."""

    kind: int
    sport: int
    dport: int
    verification: int
    tag: int
    text: bytes

    def packed(self) -> bytes:
        """The packet, without its IP header."""
        carried = _STATE_COOKIE if self.kind == INIT_ACK else _PAYLOAD
        size = _PARAMETER.size + len(self.text)
        chunk = _CHUNK.pack(self.kind, _CHUNK.size + size, self.tag, _WINDOW, _STREAMS, _STREAMS, self.tag)
        chunk += _PARAMETER.pack(carried, size) + self.text + bytes(-size % 4)
        head = _HEADER.pack(self.sport, self.dport, self.verification)
        return head[:8] + _checksum(head + chunk) + chunk


def parsed(packet: bytes) -> Chunk | None:
    """What a packet without IP header says; None where it is no INIT or INIT ACK, or its checksum is wrong."""
    first = _HEADER.size + _CHUNK.size
    if len(packet) < first + _PARAMETER.size or packet[_HEADER.size] not in {INIT, INIT_ACK}:
        return None
    if _checksum(packet[:8] + bytes(4) + packet[12:]) != packet[8:12]:
        return None
    sport, dport, verification = _HEADER.unpack_from(packet)
    kind, _length, tag, *_limits = _CHUNK.unpack_from(packet, _HEADER.size)
    _carried, size = _PARAMETER.unpack_from(packet, first)
    return Chunk(kind, sport, dport, verification, tag, packet[first + _PARAMETER.size : first + size])


def _new_tag() -> int:
    return 1 + secrets.randbelow((1 << 32) - 1)


def _without_ip(family: int, packet: bytes) -> bytes:
    """A raw IPv4 socket hands out the IP header too, a raw IPv6 one does not."""
    return packet[(packet[0] & 15) * 4 :] if family == socket.AF_INET else packet


class SctpFlow:
    """Asks again and again from one source port, so by one conntrack entry."""

    def __init__(self, opener: Opener, dst: str, port: int, sport: int | None) -> None:
        self._raw = opener(family_of(dst), socket.SOCK_RAW, socket.IPPROTO_SCTP)
        self._dst, self._port = dst, port
        self.sport = sport or secrets.choice(_EPHEMERAL)
        self._tag = _new_tag()
        self.failure: OSError | None = None
        """Why the last `ask` gave None; TimeoutError where nothing came back."""

    def ask(self, payload: bytes = b"hello\n", timeout: float = PATIENCE) -> bytes | None:
        """One INIT and what its INIT ACK says, None where none comes from the address and port that were asked."""
        self.failure = None
        deadline = time.monotonic() + timeout
        try:
            while readable(self._raw, 0):
                self._raw.recv(65536, socket.MSG_DONTWAIT)
            self._raw.sendto(Chunk(INIT, self.sport, self._port, 0, self._tag, payload).packed(), (self._dst, 0))
            while readable(self._raw, deadline):
                packet, peer = self._raw.recvfrom(65536)
                chunk = parsed(_without_ip(self._raw.family, packet))
                if chunk is not None and peer[0] == self._dst and self._answered_by(chunk):
                    return chunk.text
            raise TimeoutError("no answer")
        except OSError as failure:
            self.failure = failure
            return None

    def _answered_by(self, chunk: Chunk) -> bool:
        said = (chunk.kind, chunk.sport, chunk.dport, chunk.verification)
        return said == (INIT_ACK, self._port, self.sport, self._tag)

    def close(self) -> None:
        self._raw.close()

    def __enter__(self) -> SctpFlow:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


class SctpServer(Server):
    """Answers each INIT with the banner and its payload, from the address that it was sent to."""

    def __init__(self, raw: socket.socket, port: int, banner: bytes) -> None:
        super().__init__(banner)
        self.port = port
        self.received: list[bytes] = []
        self._tag = _new_tag()
        ask_for_destination(raw)
        raw.setblocking(False)
        self._watch(raw, self._answer)

    def _answer(self, raw: socket.socket) -> None:
        try:
            packet, control, _flags, peer = raw.recvmsg(65536, 256)
            asked = parsed(_without_ip(raw.family, packet))
            if asked is None or asked.kind != INIT or asked.dport != self.port:
                return  # a raw socket sees every port
            self.peers.append((peer[0], asked.sport))
            self.received.append(asked.text)
            answer = Chunk(INIT_ACK, asked.dport, asked.sport, asked.tag, self._tag, self.banner + asked.text)
            raw.sendmsg([answer.packed()], [reply_from(*item) for item in control], 0, (peer[0], 0, *peer[2:]))
        except OSError:
            return  # no way back
