"""TCP segments by hand over raw sockets: what no kernel's TCP would send, and what of it arrives."""

import socket
import struct
import time
from contextlib import contextmanager
from ipaddress import ip_address
from typing import NamedTuple

from app.sandbox.clients import family_of, readable

FIN, SYN, RST, ACK = 1, 2, 4, 16
_HEADER = struct.Struct("!HHIIBBHHH")  # ports, sequence, acknowledgment, offset, flags, window, checksum, urgent
_MODULUS = 1 << 32
_WAIT = 2.0


class Segment(NamedTuple):
    """A segment without payload."""

    sport: int
    dport: int
    seq: int
    flags: int
    ack: int = 0

    def moved(self, by):
        """The same by so many bytes later (or earlier) in the stream."""
        return self._replace(seq=(self.seq + by) % _MODULUS)

    def packed(self, source, destination, *, damaged=False):
        """Without IP header; damaged: with a wrong checksum."""
        ends = ip_address(source).packed + ip_address(destination).packed
        fields = [self.sport, self.dport, self.seq, self.ack, 5 << 4, self.flags, 64000, 0, 0]
        plain = _HEADER.pack(*fields) + ends + struct.pack("!HH", socket.IPPROTO_TCP, _HEADER.size)
        total = sum(struct.unpack(f"!{len(plain) // 2}H", plain))
        total = (total >> 16) + (total & 0xFFFF)
        fields[7] = ~(total + (total >> 16)) & 0xFFFF ^ damaged
        return _HEADER.pack(*fields)


def send(place, source, destination, *segments, damaged=False):
    """From that address of the place, past its own TCP."""
    with place.open_socket(family_of(source), socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
        raw.bind((source, 0))
        for segment in segments:
            raw.sendto(segment.packed(source, destination, damaged=damaged), (destination, 0))


class Arrivals:
    """Every TCP segment that comes to a place, for whichever of its addresses and ports."""

    def __init__(self, raw):
        self._raw = raw
        self.seen = []

    def until(self, wanted):
        """All so far, once one comes that is `wanted`; raises AssertionError where none does."""
        deadline = time.monotonic() + _WAIT
        while readable(self._raw, deadline):
            segment = self._next()
            if wanted(segment):
                return self.seen
        raise AssertionError(f"what was waited for did not arrive, but {self.seen}")

    def now(self):
        """All so far."""
        while readable(self._raw, 0):
            self._next()
        return self.seen

    def _next(self):
        packet = self._raw.recv(65536)
        if self._raw.family == socket.AF_INET:  # a raw IPv4 socket hands out the IP header too
            packet = packet[(packet[0] & 15) * 4 :]
        sport, dport, seq, ack, _offset, flags, *_rest = _HEADER.unpack_from(packet)
        self.seen.append(Segment(sport, dport, seq, flags, ack))
        return self.seen[-1]


@contextmanager
def arrivals(place, family):
    kind = socket.AF_INET if family.version == 4 else socket.AF_INET6
    with place.open_socket(kind, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
        yield Arrivals(raw)
