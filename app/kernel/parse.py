"""What messages say of links, addresses, neighbours and routes; by hand, ten times as fast as by pyroute2."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

from app.kernel.wire import (
    AF_BRIDGE,
    GOING_GROUPS,
    IFF_UP,
    LINK_GROUP,
    LOOPBACK6,
    NTF_SELF,
    NUD_NOARP,
    ROUTE_PROTOCOL,
    RT_TABLE_MAIN,
    RTN_LOCAL,
    RTN_UNICAST,
    attributes,
    find,
)
from app.model.naming import ALIAS_PREFIX, owner_of
from app.model.spec import IPAddress, IPNetwork
from app.model.state import IPInterface

MARK = ALIAS_PREFIX.encode()
"""What an alias of ours begins with."""
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER = 1, 3, 4, 5, 10
_IFLA_PROTINFO, _IFLA_LINKINFO, _IFLA_IFALIAS, _IFLA_GROUP, _IFLA_LINK_NETNSID = 12, 18, 20, 27, 37
_IFLA_TARGET_NETNSID = 46
_IFLA_AF_SPEC, _IFLA_INET_CONF, _IFLA_INET6_CONF = 26, 1, 2
_INET_RP_FILTER, _INET6_DISABLE_IPV6 = 7, 26
"""Places in the arrays (linux/ip.h, IPV4_DEVCONF_RP_FILTER - 1; linux/ipv6.h, DEVCONF_DISABLE_IPV6)."""
_IFLA_INFO_KIND, _IFLA_INFO_SLAVE_KIND, _IFLA_INFO_SLAVE_DATA = 1, 4, 5
_IFLA_BRPORT_STATE, _IFLA_BRPORT_MODE, _IFLA_BRPORT_LEARNING = 1, 4, 8
_IFLA_BRPORT_ISOLATED, _IFLA_BRPORT_LOCKED = 33, 39
_OF_LINK = frozenset(
    (
        *(_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER),
        *(_IFLA_LINKINFO, _IFLA_IFALIAS, _IFLA_GROUP, _IFLA_LINK_NETNSID),
    )
)
_OF_PORT = frozenset(
    (_IFLA_BRPORT_STATE, _IFLA_BRPORT_MODE, _IFLA_BRPORT_LEARNING, _IFLA_BRPORT_ISOLATED, _IFLA_BRPORT_LOCKED)
)
"""What `parse_link` reads: a tenth of what a port's message has."""
_IFA_ADDRESS, _IFA_LOCAL, _IFA_PROTO = 1, 2, 11
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_MULTIPATH, _RTA_TABLE = 1, 4, 5, 6, 9, 15
_RTM_F_CLONED = 0x200
_NETNSA_NSID = 1
_NETCONFA_RP_FILTER = 3
_NDA_LLADDR = 2


@dataclass(frozen=True, slots=True)
class Link:
    """A link as the kernel shows it. `port_state` is the bridge port's STP state, None off a bridge.

    elsewhere: its other end is in another namespace; nsid: the id that this one gave to that.
    """

    index: int
    name: str
    mac: str
    mtu: int
    alias: str | None
    kind: str | None
    master: int | None
    group: int
    up: bool
    peer_index: int | None
    port_state: int | None
    hairpin: bool
    isolated: bool = False
    locked: bool = False
    learning: bool = True
    elsewhere: bool = False
    nsid: int | None = None

    @property
    def owner(self) -> str | None:
        """The id in our mark, which is alias and group together; None for somebody else's link.

        The alias alone is on inner ends too: a daemon that runs in a namespace that another one made sees those.
        """
        return owner_of(self.alias) if self._is_grouped else None

    @property
    def is_ours(self) -> bool:
        """Marked; or made by us and killed before the alias: our group, still down."""
        return self.owner is not None or (self._is_grouped and not self.up and self.alias is None)

    @property
    def is_going(self) -> bool:
        """In a group of links that are being removed."""
        return self.group in GOING_GROUPS

    @property
    def _is_grouped(self) -> bool:
        return self.group == LINK_GROUP or self.is_going


@dataclass(frozen=True, slots=True)
class Route:
    """A unicast route of the main table. `destination` None is the default route.

    ways: gateways and interfaces of one with several, of which `via` and `oif` are the first. IPv6 routes of equal
    metric become one such, whoever made them.
    """

    destination: IPNetwork | None
    version: int
    oif: int | None
    via: IPAddress | None
    protocol: int
    priority: int
    ways: tuple[tuple[IPAddress | None, int], ...] = field(default=(), compare=False)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.rstrip(b"\0").decode(errors="replace")


def _number(value: bytes | None) -> int | None:
    return None if value is None else int.from_bytes(value, sys.byteorder)


def parse_link(raw: bytes) -> Link:
    """The link that an RTM_*LINK message describes (linux/if_link.h)."""
    index, flags = struct.unpack_from("=iI", raw, 20)
    found = attributes(raw, 32, _OF_LINK)
    info = attributes(found.get(_IFLA_LINKINFO, b""), 0)
    is_port = _text(info.get(_IFLA_INFO_SLAVE_KIND)) == "bridge"
    port = attributes(info.get(_IFLA_INFO_SLAVE_DATA, b""), 0, _OF_PORT) if is_port else {}
    return Link(
        index=index,
        name=_text(found.get(_IFLA_IFNAME)) or "",
        mac=found.get(_IFLA_ADDRESS, b"").hex(":"),
        mtu=_number(found.get(_IFLA_MTU)) or 0,
        alias=_text(found.get(_IFLA_IFALIAS)),
        kind=_text(info.get(_IFLA_INFO_KIND)),
        master=_number(found.get(_IFLA_MASTER)),
        group=_number(found.get(_IFLA_GROUP)) or 0,
        up=bool(flags & IFF_UP),
        peer_index=_number(found.get(_IFLA_LINK)),
        **_port_options(port),
        elsewhere=_IFLA_LINK_NETNSID in found,
        nsid=_number(found.get(_IFLA_LINK_NETNSID)),
    )


def parse_link_settings(raw: bytes) -> tuple[bool, int]:
    """Whether the link of an RTM_*LINK message has IPv6, and its own reverse path filtering."""
    families = attributes(find(raw, 32, _IFLA_AF_SPEC) or b"", 0)
    off = _place(find(families.get(socket.AF_INET6, b""), 0, _IFLA_INET6_CONF), _INET6_DISABLE_IPV6)
    own = _place(find(families.get(socket.AF_INET, b""), 0, _IFLA_INET_CONF), _INET_RP_FILTER)
    return off == 0, own or 0


def _place(numbers: bytes | None, place: int) -> int | None:
    """One of an array of 32-bit numbers, None where there is none."""
    if numbers is None or len(numbers) < 4 * place + 4:
        return None
    return int(struct.unpack_from("=i", numbers, 4 * place)[0])


def parse_port_state(raw: bytes) -> int | None:
    """The STP state of the bridge port of an RTM_NEWLINK message; None off a bridge."""
    info = find(raw, 32, _IFLA_LINKINFO) or b""
    return _number(find(find(info, 0, _IFLA_INFO_SLAVE_DATA) or b"", 0, _IFLA_BRPORT_STATE))


def parse_owner(raw: bytes) -> str | None:
    """`Link.owner` of the link of an RTM_*LINK message, at less cost than all of it."""
    if MARK not in raw:
        return None
    group = _number(find(raw, 32, _IFLA_GROUP))
    return owner_of(parse_alias(raw)) if group == LINK_GROUP or group in GOING_GROUPS else None


def parse_alias(raw: bytes) -> str | None:
    """The alias of the link of an RTM_*LINK message."""
    return _text(find(raw, 32, _IFLA_IFALIAS))


def has_target(raw: bytes) -> bool:
    """Whether an RTM_NEWLINK message is about another namespace, by its id: a kernel before 4.20 knows no such."""
    return find(raw, 32, _IFLA_TARGET_NETNSID) is not None


def parse_index(raw: bytes) -> int:
    """The interface index of an RTM_*LINK message."""
    return int.from_bytes(raw[20:24], sys.byteorder)


def parse_up_and_name(raw: bytes) -> tuple[bool, str]:
    """Whether the link of an RTM_*LINK message is up, and its name, which comes first of all."""
    length, kind = struct.unpack_from("=HH", raw, 32)
    name = raw[36 : 32 + length] if kind == _IFLA_IFNAME else find(raw, 32, _IFLA_IFNAME)
    flags = struct.unpack_from("=I", raw, 24)[0]
    return bool(flags & IFF_UP), _text(name) or ""


def parse_pair(raw: bytes) -> tuple[int, int | None]:
    """The indices of a veth and, where the message has it, of its other end."""
    return struct.unpack_from("=i", raw, 20)[0], _number(find(raw, 32, _IFLA_LINK))


def is_bridge_port_event(raw: bytes) -> bool:
    """Whether an RTM_*LINK message speaks of a bridge port (AF_BRIDGE): its DELLINK leaves the link there."""
    return raw[16] == AF_BRIDGE


def with_port_options(link: Link, raw: bytes) -> Link:
    """The link with its bridge port's options as such a message has them."""
    port = attributes(attributes(raw, 32).get(_IFLA_PROTINFO, b""), 0)
    return replace(link, **_port_options(port)) if port else link


def _port_options(port: dict[int, bytes]) -> dict[str, Any]:
    return {
        "port_state": _number(port.get(_IFLA_BRPORT_STATE)),
        "hairpin": bool(_number(port.get(_IFLA_BRPORT_MODE))),
        "isolated": bool(_number(port.get(_IFLA_BRPORT_ISOLATED))),
        "locked": bool(_number(port.get(_IFLA_BRPORT_LOCKED))),
        "learning": _number(port.get(_IFLA_BRPORT_LEARNING)) != 0,
    }


def parse_address(raw: bytes) -> tuple[int, IPInterface, int]:
    """The interface index, the address and its protocol, of an RTM_*ADDR message (linux/if_addr.h)."""
    found = attributes(raw, 24)
    address = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS, b"")
    index = struct.unpack_from("=I", raw, 20)[0]
    return index, ip_interface((ip_address(address), raw[17])), _number(found.get(_IFA_PROTO)) or 0


def parse_nsid(raw: bytes) -> int | None:
    """The id of an RTM_*NSID message (linux/net_namespace.h), None where there is none."""
    nsid = struct.unpack("=i", attributes(raw, 20)[_NETNSA_NSID])[0]
    return nsid if nsid >= 0 else None


def parse_filter(raw: bytes) -> int:
    """The reverse path filtering that an RTM_NEWNETCONF message tells of (linux/netconf.h)."""
    return _number(find(raw, 20, _NETCONFA_RP_FILTER)) or 0


def parse_static_fdb(raw: bytes) -> tuple[int, str] | None:
    """Port index and MAC of a bridge's static forwarding entry (linux/neighbour.h), None for any other."""
    index, state, flags = struct.unpack_from("=iHB", raw, 20)
    mac = attributes(raw, 28).get(_NDA_LLADDR, b"")
    return (index, mac.hex(":")) if state & NUD_NOARP and not flags & NTF_SELF else None


def parse_neighbour(raw: bytes) -> tuple[int, str]:
    """The interface index and the MAC of an RTM_*NEIGH message."""
    return struct.unpack_from("=i", raw, 20)[0], attributes(raw, 28).get(_NDA_LLADDR, b"").hex(":")


def parse_route(raw: bytes) -> Route | None:
    """The unicast main-table route of an RTM_*ROUTE message (linux/rtnetlink.h), None for any other."""
    family, prefix, _source, _tos, table, protocol, _scope, kind, flags = struct.unpack_from("=8BI", raw, 16)
    if kind != RTN_UNICAST or family not in (socket.AF_INET, socket.AF_INET6) or flags & _RTM_F_CLONED:
        return None
    found = attributes(raw, 28)
    if (_number(found.get(_RTA_TABLE)) or table) != RT_TABLE_MAIN:
        return None
    ways = tuple(_ways(found.get(_RTA_MULTIPATH, b"")))
    destination, gateway = found.get(_RTA_DST), found.get(_RTA_GATEWAY)
    via, oif = ways[0] if ways else (_address(gateway) if gateway else None, _number(found.get(_RTA_OIF)))
    return Route(
        destination=_network(destination, prefix) if destination else None,
        version=4 if family == socket.AF_INET else 6,
        oif=oif,
        via=via,
        protocol=protocol,
        priority=_number(found.get(_RTA_PRIORITY)) or 0,
        ways=ways,
    )


# the routes of a thousand namespaces are to few places
_address = lru_cache(maxsize=256)(ip_address)


@lru_cache(maxsize=256)
def _network(address: bytes, prefix: int) -> IPNetwork:
    return ip_network((ip_address(address), prefix))


def _ways(raw: bytes) -> Iterator[tuple[IPAddress | None, int]]:
    """Gateway and interface of each struct rtnexthop (linux/rtnetlink.h)."""
    while len(raw) >= 8:
        length, _flags, _hops, index = struct.unpack_from("=HBBi", raw)
        if length < 8:
            return
        gateway = attributes(raw[:length], 8).get(_RTA_GATEWAY)
        yield _address(gateway) if gateway else None, index
        raw = raw[(length + 3) & ~3 :]


def is_default(raw: bytes) -> bool:
    """Whether the message of a route is about a default one, which has no prefix (rtnetlink(7), struct rtmsg)."""
    return raw[17] == 0


def parse_own_loopback(raw: bytes) -> int | None:
    """The interface index of a local route of ::1 that bears our mark, None for any other route."""
    family, prefix, _source, _tos, _table, protocol, _scope, kind, _flags = struct.unpack_from("=8BI", raw, 16)
    if (family, prefix, protocol, kind) != (socket.AF_INET6, 128, ROUTE_PROTOCOL, RTN_LOCAL):
        return None
    found = attributes(raw, 28)
    return _number(found.get(_RTA_OIF)) if found.get(_RTA_DST) == LOOPBACK6.packed else None
