"""The messages that every endpoint's coming and going takes, packed by hand: pyroute2 is slower than the kernel.

Byte for byte what pyroute2 would make of the same, which a test compares.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping

from app.kernel.wire import (
    ADDRESS_PROTOCOL,
    IFF_UP,
    LINK_GROUP,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_ECHO,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    ROUTE_PROTOCOL,
    RT_SCOPE_UNIVERSE,
    RT_TABLE_MAIN,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELROUTE,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETNETCONF,
    RTM_GETNSID,
    RTM_GETROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNSID,
    RTM_NEWROUTE,
    RTM_SETLINK,
    RTN_UNICAST,
    Request,
    attribute,
)
from app.model.spec import IPAddress
from app.model.state import IPInterface

_IFINFOMSG = struct.Struct("=BxHiII")
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO = 1, 3, 4, 10, 18
_IFLA_IFALIAS, _IFLA_GROUP, _IFLA_NET_NS_FD, _IFLA_EXT_MASK = 20, 27, 28, 29
_IFLA_NUM_TX_QUEUES, _IFLA_NUM_RX_QUEUES, _IFLA_TARGET_NETNSID = 31, 32, 46
_INFO_KIND, _INFO_DATA, _INFO_SLAVE_KIND, _INFO_SLAVE_DATA, _VETH_INFO_PEER = 1, 2, 4, 5, 1
_BRPORT_FLUSH = 24
PORT_OPTIONS = {"hairpin": 4, "isolated": 33, "learning": 8, "locked": 39}
"""IFLA_BRPORT_* of the options of a bridge port, as bridge(8) names them."""
_EXT_SKIP_STATS = 8
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_PROTO, _IFA_F_NODAD = 1, 2, 4, 11, 0x02
_RTA_OIF, _RTA_GATEWAY = 4, 5
_NETNSA_NSID, _NETNSA_FD, _NETNSA_TARGET_NSID = 1, 3, 4
_NETCONFA_IFINDEX = 1
ALL_LINKS = -1


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def _number(kind: int, value: int) -> bytes:
    return struct.pack("=HHI", 8, kind, value)


def _mac(value: str) -> bytes:
    return attribute(_IFLA_ADDRESS, bytes.fromhex(value.replace(":", "")))


_ONE_QUEUE = _number(_IFLA_NUM_TX_QUEUES, 1) + _number(_IFLA_NUM_RX_QUEUES, 1)
_ANY_LINK = _IFINFOMSG.pack(0, 0, 0, 0, 0)


def get_link(name: str = "", index: int = 0, target: int | None = None) -> Request:
    """One link by name or index; target: the id that the asked namespace has for the one that the link is in."""
    body = _IFINFOMSG.pack(0, 0, index, 0, 0) + (_text(_IFLA_IFNAME, name) if name else b"")
    body += _number(_IFLA_EXT_MASK, _EXT_SKIP_STATS)
    if target is not None:
        body += _number(_IFLA_TARGET_NETNSID, target)
    return Request(RTM_GETLINK, 0, body, lambda: f"link show {name or index}")


def get_links() -> Request:
    """All links: a dump."""
    body = _ANY_LINK + _number(_IFLA_EXT_MASK, _EXT_SKIP_STATS)
    return Request(RTM_GETLINK, NLM_F_DUMP, body, lambda: "link show")


def get_addresses(index: int = 0) -> Request:
    """All addresses: a dump; index: of this link alone, where dumps are filtered."""
    body = struct.pack("=4BI", socket.AF_UNSPEC, 0, 0, 0, index)
    return Request(RTM_GETADDR, NLM_F_DUMP, body, lambda: "address show")


def get_routes(family: int = socket.AF_UNSPEC, table: int = 0, kind: int = 0) -> Request:
    """All routes, of all tables: a dump; table, kind: of these alone, where dumps are filtered."""
    body = struct.pack("=8BI", family, 0, 0, 0, table, 0, 0, kind, 0)
    version = "" if family == socket.AF_UNSPEC else "-4 " if family == socket.AF_INET else "-6 "
    return Request(RTM_GETROUTE, NLM_F_DUMP, body, lambda: f"{version}route show")


def get_nsids() -> Request:
    """The ids that a namespace gave to others: a dump."""
    return Request(RTM_GETNSID, NLM_F_DUMP, bytes(4), lambda: "netns list-id")


def move_link(index: int, group: int) -> Request:
    """Puts a link into a group."""
    body = _IFINFOMSG.pack(0, 0, index, 0, 0) + in_group(group)
    return Request(RTM_SETLINK, 0, body, lambda: f"link set index {index} group {group}")


def in_group(group: int) -> bytes:
    """What stands in the message of each link of a group."""
    return _number(_IFLA_GROUP, group)


def delete_link(index: int, name: str) -> Request:
    return Request(RTM_DELLINK, 0, _IFINFOMSG.pack(0, 0, index, 0, 0), lambda: f"link delete {name}")


def delete_group(group: int) -> Request:
    """Removes all links of a group."""
    return Request(RTM_DELLINK, 0, _ANY_LINK + in_group(group), lambda: f"link delete group {group}")


def new_bridge(name: str, *, mac: str, mtu: int) -> Request:
    """A bridge, down; echoed."""
    body = _ANY_LINK + _text(_IFLA_IFNAME, name) + _mac(mac) + _number(_IFLA_MTU, mtu) + in_group(LINK_GROUP)
    body += attribute(_IFLA_LINKINFO, _text(_INFO_KIND, "bridge"))
    asked = f"link add {name} address {mac} mtu {mtu} type bridge"
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ECHO, body, lambda: asked)


def new_veth(name: str, *, master: int, mtu: int, peer: str, peer_mac: str, peer_netns: int) -> Request:
    """A veth pair, both ends down, the peer in the namespace behind a file descriptor; echoed."""
    inside = _ANY_LINK + _text(_IFLA_IFNAME, peer) + _mac(peer_mac) + _number(_IFLA_MTU, mtu)
    inside += _number(_IFLA_NET_NS_FD, peer_netns) + _ONE_QUEUE
    info = _text(_INFO_KIND, "veth") + attribute(_INFO_DATA, attribute(_VETH_INFO_PEER, inside))
    body = _ANY_LINK + _text(_IFLA_IFNAME, name) + _number(_IFLA_MTU, mtu) + in_group(LINK_GROUP)
    body += _number(_IFLA_MASTER, master) + _ONE_QUEUE + attribute(_IFLA_LINKINFO, info)
    asked = f"link add {name} mtu {mtu} type veth peer name {peer} address {peer_mac}"
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ECHO, body, lambda: asked)


def _port(port: Mapping[str, bool]) -> bytes:
    options = b"".join(attribute(PORT_OPTIONS[name], bytes([value])) for name, value in port.items())
    if port.get("locked"):
        # what the port learnt before would pass until it ages
        options += attribute(_BRPORT_FLUSH, b"")
    return attribute(_IFLA_LINKINFO, _text(_INFO_SLAVE_KIND, "bridge") + attribute(_INFO_SLAVE_DATA, options))


def set_link(
    index: int,
    *,
    up: bool | None = None,
    mtu: int | None = None,
    mac: str | None = None,
    alias: str | None = None,
    master: int | None = None,
    port: Mapping[str, bool] | None = None,
) -> Request:
    """Changes what is given of a link; the kernel takes options of a bridge port before its being up.

    port: of hairpin, isolated, learning and locked.
    """
    body = _IFINFOMSG.pack(0, 0, index, IFF_UP if up else 0, 0 if up is None else IFF_UP)
    if mtu is not None:
        body += _number(_IFLA_MTU, mtu)
    if mac is not None:
        body += _mac(mac)
    if alias is not None:
        body += _text(_IFLA_IFALIAS, alias)
    if master is not None:
        body += _number(_IFLA_MASTER, master)
    if port:
        body += _port(port)

    def asked() -> str:
        words = [] if up is None else ["up" if up else "down"]
        plain = {"mtu": mtu, "address": mac, "ifalias": alias, "master": master}
        words += [f"{key} {value}" for key, value in plain.items() if value is not None]
        words += ["type bridge_slave"] if port else []
        words += [f"{name} {'on' if value else 'off'}" for name, value in (port or {}).items()]
        return f"link set index {index} {' '.join(words)}"

    return Request(RTM_NEWLINK, 0, body, asked)


def _address(index: int, address: IPInterface, flags: int = 0) -> bytes:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    header = struct.pack("=BBBBI", family, address.network.prefixlen, flags, 0, index)
    packed = address.ip.packed
    return header + attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed)


def new_address(index: int, address: IPInterface) -> Request:
    """An address with our mark, usable at once; its being there already is as good."""
    body = _address(index, address, 0 if address.version == 4 else _IFA_F_NODAD)
    body += attribute(_IFA_PROTO, bytes([ADDRESS_PROTOCOL]))
    if address.version == 4 and address.network.prefixlen < 31:
        body += attribute(_IFA_BROADCAST, address.network.broadcast_address.packed)
    asked = f"address add {address} dev index {index}{' nodad' if address.version == 6 else ''}"
    return Request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, body, lambda: asked)


def delete_address(index: int, address: IPInterface) -> Request:
    return Request(RTM_DELADDR, 0, _address(index, address), lambda: f"address delete {address} dev index {index}")


def _default_route(via: IPAddress, index: int) -> bytes:
    family = socket.AF_INET if via.version == 4 else socket.AF_INET6
    header = struct.pack("=8BI", family, 0, 0, 0, RT_TABLE_MAIN, ROUTE_PROTOCOL, RT_SCOPE_UNIVERSE, RTN_UNICAST, 0)
    return header + attribute(_RTA_GATEWAY, via.packed) + _number(_RTA_OIF, index)


def new_default_route(via: IPAddress, index: int, *, replace: bool) -> Request:
    """The default route, with our mark; `replace` changes the one that is there."""
    flags = NLM_F_CREATE | (NLM_F_REPLACE if replace else NLM_F_EXCL)
    asked = f"route {'replace' if replace else 'add'} default via {via} dev index {index}"
    six = "-6 " if via.version == 6 else ""
    return Request(RTM_NEWROUTE, flags, _default_route(via, index), lambda: six + asked)


def delete_default_route(via: IPAddress, index: int) -> Request:
    asked = f"route delete default via {via} dev index {index}"
    return Request(RTM_DELROUTE, 0, _default_route(via, index), lambda: asked)


def get_filter(index: int) -> Request:
    """The IPv4 settings of a link, or of `ALL_LINKS`, which apply to each: reverse path filtering among them."""
    body = struct.pack("=B3x", socket.AF_INET) + struct.pack("=HHi", 8, _NETCONFA_IFINDEX, index)
    return Request(RTM_GETNETCONF, 0, body, lambda: f"netconf show dev index {index}")


def get_nsid(netns: int, target: int | None = None) -> Request:
    """The id that a namespace gave to the one behind a file descriptor; target: of which namespace, see `get_link`."""
    body = bytes(4) + _number(_NETNSA_FD, netns)
    if target is not None:
        body += _number(_NETNSA_TARGET_NSID, target)
    return Request(RTM_GETNSID, 0, body, lambda: "netns list-id")


def new_nsid(netns: int) -> Request:
    """An id for the namespace behind a file descriptor, whichever is free."""
    body = bytes(4) + _number(_NETNSA_FD, netns) + _number(_NETNSA_NSID, 0xFFFFFFFF)
    return Request(RTM_NEWNSID, 0, body, lambda: "netns set HOST auto")
