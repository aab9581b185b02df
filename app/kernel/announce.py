"""Telling neighbours that an address has a new MAC.

Gratuitous ARP (RFC 826, RFC 5227 section 3) and the unsolicited neighbour advertisement (RFC 4861 section 7.2.6).
"""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv6Address

from app.model.state import IPInterface

log = logging.getLogger("bridgehead.kernel")

_THREADS = 16
_ETH_P_ARP, _ARP_REQUEST, _HTYPE_ETHER, _ETH_P_IP, _ETH_P_IPV6 = 0x0806, 1, 1, 0x0800, 0x86DD
_BROADCAST = b"\xff" * 6
_ALL_NODES = IPv6Address("ff02::1").packed
_ALL_NODES_MAC = bytes.fromhex("333300000001")
_NEIGHBOUR_ADVERTISEMENT, _TARGET_LINK_LAYER = 136, 2
_ROUTER, _OVERRIDE = 1 << 31, 1 << 29


def open_socket() -> socket.socket:
    """A packet socket in the calling thread's namespace that sends and never receives."""
    return socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)


def gratuitous_arp(mac: str, address: IPInterface) -> bytes:
    """The Ethernet frame that says, to everybody, `address` is at `mac`."""
    hardware = _packed(mac)
    packed = address.ip.packed
    header = struct.pack("!HHBBH", _HTYPE_ETHER, _ETH_P_IP, 6, 4, _ARP_REQUEST)
    ethernet = _BROADCAST + hardware + struct.pack("!H", _ETH_P_ARP)
    return ethernet + header + hardware + packed + bytes(6) + packed


def unsolicited_advertisement(mac: str, address: IPInterface, *, router: bool = False) -> bytes:
    """The same for IPv6. router: the sender forwards; without it, neighbours would drop it as their router."""
    hardware, packed = _packed(mac), address.ip.packed
    flags = _OVERRIDE | (_ROUTER if router else 0)
    body = struct.pack("!I", flags) + packed + struct.pack("!BB", _TARGET_LINK_LAYER, 1) + hardware
    pseudo = packed + _ALL_NODES + struct.pack("!I3xB", 4 + len(body), socket.IPPROTO_ICMPV6)
    checksum = _checksum(pseudo + struct.pack("!BBH", _NEIGHBOUR_ADVERTISEMENT, 0, 0) + body)
    icmp = struct.pack("!BBH", _NEIGHBOUR_ADVERTISEMENT, 0, checksum) + body
    # version 6, hop limit 255: RFC 4861 has receivers drop any other
    header = struct.pack("!IHBB", 6 << 28, len(icmp), socket.IPPROTO_ICMPV6, 255) + packed + _ALL_NODES
    return _ALL_NODES_MAC + hardware + struct.pack("!H", _ETH_P_IPV6) + header + icmp


class Announcer:
    """Sends announcements and closes their sockets, on threads of its own: nobody waits for either.

    A bridge hands an announcement to each of its ports before the sender may go on, and closing a packet socket
    waits for an RCU grace period, 16 ms.
    """

    def __init__(self) -> None:
        # those that wait for a grace period at the same time wait together
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="announcer")

    def close(self) -> None:
        """Waits for what is under way."""
        self._threads.shutdown()

    def announce(
        self, sender: socket.socket, ifname: str, mac: str, addresses: Iterable[IPInterface], *, router: bool = False
    ) -> None:
        """Sends one announcement for each address, out of an interface that is up, and closes the socket.

        Raises OSError where there is no such interface.
        """
        try:
            sender.bind((ifname, 0))
            frames = frames_of(mac, addresses, router=router)
        except BaseException:
            self.discard(sender)
            raise
        self._threads.submit(_send_and_close, sender, frames)

    def discard(self, sender: socket.socket) -> None:
        """Closes a socket by which nothing was sent."""
        self._threads.submit(sender.close)


def frames_of(mac: str, addresses: Iterable[IPInterface], *, router: bool = False) -> list[bytes]:
    """One announcement for each address."""
    return [
        gratuitous_arp(mac, one) if one.version == 4 else unsolicited_advertisement(mac, one, router=router)
        for one in addresses
    ]


def _send_and_close(sender: socket.socket, frames: list[bytes]) -> None:
    with sender:
        try:
            for frame in frames:
                sender.send(frame)
        except OSError as failure:
            # the link may be gone by now; the neighbours learn in time
            log.warning("an address is not announced: %s", failure)


def _packed(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
