"""What tests need of netlink beyond the daemon's own: links without marks, plain routes, bound sockets.

Messages are packed by hand: few kinds, and a sandbox is built for every test.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address

from app.kernel.netlink import Rtnl
from app.kernel.parse import parse_link
from app.kernel.wire import (
    IFF_UP,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    RT_TABLE_MAIN,
    RTM_DELROUTE,
    RTM_GETLINK,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RTN_UNICAST,
    Netlink,
    Packed,
    attribute,
)
from app.model.spec import IPAddress, IPNetwork

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 1, 3, 4, 10, 18, 28
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_IFLA_NUM_TX_QUEUES, _IFLA_NUM_RX_QUEUES = 31, 32
_IFLA_AF_SPEC, _IFLA_INET6_ADDR_GEN_MODE, _ADDR_GEN_NONE = 26, 8, 1
_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_RTPROT_STATIC, _SCOPE_UNIVERSE, _SCOPE_LINK = 4, 0, 253
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY = 4, 20
_TCP_CLOSE, _TCP_LISTEN, _TCP_BOUND = 7, 10, 13


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def _mac(value: str | None) -> bytes:
    return b"" if value is None else attribute(_IFLA_ADDRESS, bytes.fromhex(value.replace(":", "")))


_IFINFOMSG = struct.Struct("=BxHiII")
_ONE_QUEUE = _number(_IFLA_NUM_TX_QUEUES, 1) + _number(_IFLA_NUM_RX_QUEUES, 1)


class PlainRtnl(Rtnl):
    """Rtnl that can also make what bears no mark of the daemon's: the administrator's own things."""

    def add_plain_veth(
        self,
        name: str,
        peer: str,
        peer_netns: int,
        *,
        mac: str | None = None,
        peer_mac: str | None = None,
        mtu: int = 1500,
        master: int = 0,
        up: bool = True,
    ) -> None:
        """A veth pair, the peer (down) in the namespace behind the file descriptor."""
        inside = _IFINFOMSG.pack(0, 0, 0, 0, 0) + _text(_IFLA_IFNAME, peer) + _mac(peer_mac)
        inside += _number(_IFLA_MTU, mtu) + _number(_IFLA_NET_NS_FD, peer_netns) + _ONE_QUEUE
        data = attribute(_IFLA_INFO_DATA, attribute(_VETH_INFO_PEER, inside))
        attributes = _mac(mac) + _number(_IFLA_MTU, mtu) + _ONE_QUEUE
        if master:
            attributes += _number(_IFLA_MASTER, master)
        self._add_plain(name, "veth", attributes, data, up)

    def add_plain_bridge(self, name: str, *, mac: str | None = None, up: bool = True) -> None:
        self._add_plain(name, "bridge", _mac(mac), b"", up)

    def _add_plain(self, name: str, kind: str, attributes: bytes, data: bytes, up: bool) -> None:
        flags = IFF_UP if up else 0
        info = attribute(_IFLA_LINKINFO, _text(_IFLA_INFO_KIND, kind) + data)
        body = _IFINFOMSG.pack(0, 0, 0, flags, flags) + _text(_IFLA_IFNAME, name) + attributes + info
        create = NLM_F_CREATE | NLM_F_EXCL
        self.change(Packed(body), RTM_NEWLINK, create, lambda: f"{self._ip} link add {name} type {kind}")

    def index_of(self, name: str) -> int:
        """Raises KernelRefused ENODEV where there is no such link."""
        body = _IFINFOMSG.pack(0, 0, 0, 0, 0) + _text(_IFLA_IFNAME, name)
        answers = self.change(Packed(body), RTM_GETLINK, 0, lambda: f"{self._ip} link show {name}")
        return parse_link(answers[0]).index

    def set_up(self, index: int, *, up: bool = True) -> None:
        body = _IFINFOMSG.pack(0, 0, index, IFF_UP if up else 0, IFF_UP)
        asked = f"{self._ip} link set index {index} {'up' if up else 'down'}"
        self.change(Packed(body), RTM_NEWLINK, 0, lambda: asked)

    def no_link_local(self, index: int) -> None:
        """The kernel makes no link-local address for this link."""
        family = attribute(socket.AF_INET6, attribute(_IFLA_INET6_ADDR_GEN_MODE, bytes([_ADDR_GEN_NONE])))
        body = _IFINFOMSG.pack(0, 0, index, 0, 0) + attribute(_IFLA_AF_SPEC, family)
        self.change(Packed(body), RTM_NEWLINK, 0, lambda: f"{self._ip} link set index {index} addrgenmode none")

    def add_plain_route(self, to: IPNetwork | None, index: int, via: IPAddress | None = None) -> None:
        """A static route; `to` None is the default route."""
        asked = f"{self._ip} route add {to or 'default'} via {via} dev index {index}"
        flags = NLM_F_CREATE | NLM_F_EXCL
        self.change(_route(to, index, via), RTM_NEWROUTE, flags, lambda: asked)

    def delete_plain_route(self, to: IPNetwork | None, index: int, via: IPAddress | None = None) -> None:
        asked = f"{self._ip} route delete {to or 'default'} via {via} dev index {index}"
        self.change(_route(to, index, via), RTM_DELROUTE, 0, lambda: asked)


def _route(to: IPNetwork | None, index: int, via: IPAddress | None) -> Packed:
    version = to.version if to is not None else via.version if via is not None else 4
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    scope = _SCOPE_LINK if via is None and version == 4 else _SCOPE_UNIVERSE
    prefix = to.prefixlen if to is not None else 0
    body = struct.pack("=8BI", family, prefix, 0, 0, RT_TABLE_MAIN, _RTPROT_STATIC, scope, RTN_UNICAST, 0)
    if to is not None:
        body += attribute(_RTA_DST, to.network_address.packed)
    if via is not None:
        body += attribute(_RTA_GATEWAY, via.packed)
    return Packed(body + _number(_RTA_OIF, index))


def bound_sockets() -> Iterator[tuple[str, IPAddress, int]]:
    """Protocol, address and port of each socket that is bound or listens in the calling thread's namespace.

    A TCP socket that is bound and does not listen is in no file under /proc; kernels before 6.8 do not show it
    here either.
    """
    with Netlink(_NETLINK_SOCK_DIAG) as diag:
        for family in (socket.AF_INET, socket.AF_INET6):
            for name, protocol in (("tcp", socket.IPPROTO_TCP), ("udp", socket.IPPROTO_UDP)):
                request = struct.pack("=BBBxI48x", family, protocol, 0, 0xFFFFFFFF)
                raws = diag.request(Packed(request), _SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, lambda: "ss -n -a -t -u")
                for raw in raws:
                    yield from _bound(name, family, raw)


def _bound(protocol: str, family: int, raw: bytes) -> Iterator[tuple[str, IPAddress, int]]:
    """inet_diag_msg (linux/inet_diag.h): family and state, then the ports and addresses."""
    state = raw[17]
    if state in (_TCP_CLOSE, _TCP_LISTEN, _TCP_BOUND):
        port = struct.unpack_from("!H", raw, 20)[0]
        size = 4 if family == socket.AF_INET else 16
        yield protocol, ip_address(raw[24 : 24 + size]), port
