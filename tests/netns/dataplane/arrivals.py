"""Frames by hand, with all their headers: what no routing table would send. And what of them is delivered where."""

import itertools
import socket
import struct
from ipaddress import ip_address

from cells import PROTOCOLS

from app.sandbox import eventually
from app.sandbox.sctp import INIT, Chunk

_NUMBERS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "sctp": socket.IPPROTO_SCTP}
_SYN = 2
_SOURCE_PORTS = itertools.count(40000)


def _checksum(data):
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    total = (total >> 16) + (total & 0xFFFF)
    return struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF)


def _segment(protocol, ends, port, text):
    """The first packet of a flow from a port that no other has, without its IP header."""
    source_port = next(_SOURCE_PORTS)
    if protocol == "sctp":
        return Chunk(INIT, source_port, port, 0, 1, text).packed()
    if protocol == "udp":
        plain, at = struct.pack("!HHHH", source_port, port, 8 + len(text), 0) + text, 6
    else:
        plain, at = struct.pack("!HHIIBBHHH", source_port, port, 1, 0, 5 << 4, _SYN, 64240, 0, 0) + text, 16
    pseudo = ends + struct.pack("!II", len(plain), _NUMBERS[protocol])
    return plain[:at] + _checksum(pseudo + plain) + plain[at + 2 :]


def packet(protocol, source, destination, port, text):
    """An IP packet of the version of its addresses."""
    version, ends = ip_address(source).version, ip_address(source).packed + ip_address(destination).packed
    segment = _segment(protocol, ends, port, text)
    if version == 6:
        return struct.pack("!IHBB", 6 << 28, len(segment), _NUMBERS[protocol], 64) + ends + segment
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 1, 0, 64, _NUMBERS[protocol], 0)
    return head[:10] + _checksum(head + ends) + ends + segment


class Injector:
    """Sends packets out of an interface of a place to a MAC address, whatever the place's routes say; in order."""

    def __init__(self, place, ifname, mac):
        self._to, self._own = (bytes.fromhex(one.replace(":", "")) for one in (mac, place.links()[ifname].mac))
        self._raw = place.open_socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._raw.bind((ifname, 0))

    def send(self, packet):
        kind = b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd"
        self._raw.send(self._to + self._own + kind + packet)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._raw.close()


class Arrivals:
    """What is delivered in some places by one IP version, whether anybody listens there or not."""

    def __init__(self, version, *places):
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        self._sockets = [
            place.open_socket(family, socket.SOCK_RAW, _NUMBERS[protocol]) for place in places for protocol in PROTOCOLS
        ]
        self._packets = []

    def __contains__(self, text):
        for one in self._sockets:
            try:
                while True:
                    self._packets.append(one.recv(65536, socket.MSG_DONTWAIT))
            except BlockingIOError:
                continue
        return any(text in packet for packet in self._packets)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for one in self._sockets:
            one.close()


def is_dropped(arrivals, injector, protocol, source, destination, port, control):
    """Of two packets, only the later one arrives anywhere: the one to `control`."""
    texts = [b"<%s %s %d>" % (protocol.encode(), one.encode(), next(_SOURCE_PORTS)) for one in (destination, control)]
    for address, text in zip((destination, control), texts, strict=True):
        injector.send(packet(protocol, source, address, port, text))
    eventually(lambda: texts[1] in arrivals)
    return texts[0] not in arrivals
