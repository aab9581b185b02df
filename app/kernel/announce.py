"""Telling neighbours that an address has a new MAC: gratuitous ARP (RFC 826, RFC 5227 section 3)."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable

from app.model.state import IPInterface

_ETH_P_ARP, _ARP_REQUEST, _HTYPE_ETHER, _ETH_P_IP = 0x0806, 1, 1, 0x0800
_BROADCAST = b"\xff" * 6


def open_socket() -> socket.socket:
    """A packet socket in the calling thread's namespace that sends and never receives."""
    return socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)


def gratuitous_arp(mac: str, address: IPInterface) -> bytes:
    """The Ethernet frame that says, to everybody, `address` is at `mac`."""
    hardware = bytes.fromhex(mac.replace(":", ""))
    packed = address.ip.packed
    header = struct.pack("!HHBBH", _HTYPE_ETHER, _ETH_P_IP, 6, 4, _ARP_REQUEST)
    ethernet = _BROADCAST + hardware + struct.pack("!H", _ETH_P_ARP)
    return ethernet + header + hardware + packed + bytes(6) + packed


def announce(sender: socket.socket, ifname: str, mac: str, addresses: Iterable[IPInterface]) -> None:
    """Sends one announcement for each IPv4 address, out of an interface that is up. Raises OSError."""
    sender.bind((ifname, 0))
    for address in addresses:
        if address.version == 4:
            sender.send(gratuitous_arp(mac, address))
