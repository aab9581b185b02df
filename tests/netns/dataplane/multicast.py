"""Multicast datagrams, and the kernel's multicast routing (`ipmr`) by hand."""

import socket
import struct
from contextlib import contextmanager
from ipaddress import ip_address

GROUPS = {4: "239.1.2.3", 6: "ff0e::123"}
PORT = 7000
_INIT, _ADD_INTERFACE, _ADD_ROUTE = 200, 202, 204  # MRT_* and MRT6_* alike
_BY_INDEX = 8  # VIFF_USE_IFINDEX
_INTERFACE4, _ROUTE4 = struct.Struct("=HBBIi4s"), struct.Struct("=4s4sH32s2x16x")
_INTERFACE6, _ROUTE6 = struct.Struct("=HBBH2xI"), struct.Struct("=28s28sH2x32s")
_ADDRESS6 = struct.Struct("=H6x16s4x")


def _group(version):
    return ip_address(GROUPS[version]).packed


def _sender(place, ifname, version):
    index = place.links()[ifname].index
    if version == 4:
        made = place.open_socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("=4s4si", bytes(4), bytes(4), index))
        made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 8)
    else:
        made = place.open_socket(socket.AF_INET6, socket.SOCK_DGRAM)
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 8)
    return made


def send(place, ifname, source):
    """A datagram to the group, from that address, out of that interface."""
    version = ip_address(source).version
    with _sender(place, ifname, version) as sender:
        sender.bind((source, 0))
        sender.sendto(b"hello", (GROUPS[version], PORT))


@contextmanager
def waiting(place, ifname, version):
    """A member of the group; calling it gives the next datagram's source."""
    index = place.links()[ifname].index
    with place.open_socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as member:
        member.settimeout(1)
        member.bind(("", PORT))
        if version == 4:
            wish = struct.pack("=4s4si", _group(4), bytes(4), index)
            member.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, wish)
        else:
            member.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, struct.pack("=16si", _group(6), index))
        yield lambda: member.recvfrom(100)[1][0]


@contextmanager
def multicast_router(place, iif, oif, source):
    """What this source sends to the group is forwarded from one interface to the other."""
    version = ip_address(source).version
    level, links = socket.IPPROTO_IP if version == 4 else socket.IPPROTO_IPV6, place.links()
    with _control(place, version) as control:
        control.setsockopt(level, _INIT, 1)
        for number, ifname in enumerate((iif, oif)):
            control.setsockopt(level, _ADD_INTERFACE, _interface(version, number, links[ifname].index))
        control.setsockopt(level, _ADD_ROUTE, _route(version, ip_address(source).packed))
        yield


def _control(place, version):
    if version == 4:
        return place.open_socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_IGMP)
    return place.open_socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)


def _interface(version, number, index):
    if version == 4:
        return _INTERFACE4.pack(number, _BY_INDEX, 1, 0, index, bytes(4))
    return _INTERFACE6.pack(number, 0, 1, index, 0)


def _route(version, source):
    """From interface number 0 to number 1."""
    if version == 4:
        return _ROUTE4.pack(source, _group(4), 0, b"\0\1" + bytes(30))
    ends = (_ADDRESS6.pack(socket.AF_INET6, one) for one in (source, _group(6)))
    return _ROUTE6.pack(*ends, 0, b"\2" + bytes(31))
