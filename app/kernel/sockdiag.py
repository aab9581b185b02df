"""Which sockets of the host hold a port (sock_diag(7))."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

from app.kernel.wire import NLM_F_DUMP, Netlink, Packed, attributes
from app.model.spec import IPAddress

_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY = 4, 20  # the first one Python's socket module lacks
_ALL_STATES = 0xFFFFFFFF
_INET_DIAG_SKV6ONLY = 11
_AF_INET = 2


@dataclass(frozen=True, slots=True)
class Bound:
    """A socket's local address and inode; `v6only`: it is IPv6's and takes no IPv4."""

    address: IPAddress
    v6only: bool
    inode: int

    def collides(self, address: IPAddress) -> bool:
        """Whether it keeps others from its port on that address; 0.0.0.0 and :: stand for every one."""
        held = self.address
        if isinstance(held, IPv6Address) and held.ipv4_mapped is not None:
            held = held.ipv4_mapped
        if held.version != address.version:
            return address.version == 4 and int(held) == 0 and not self.v6only
        return 0 in (int(held), int(address)) or held == address


class SockDiag(Netlink):
    """Sockets of one namespace."""

    def __init__(self) -> None:
        super().__init__(_NETLINK_SOCK_DIAG)

    def bound(self, family: int, protocol: int, port: int) -> Iterator[Bound]:
        """Each listening, bound or connected socket with this source port (linux/inet_diag.h)."""
        request = Packed(struct.pack("=BBBxI48x", family, protocol, 0, _ALL_STATES))
        raws = self.request(request, _SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, lambda: f"ss -n -a sport = :{port}")
        for raw in raws:
            inode = struct.unpack_from("=I", raw, 84)[0]
            if struct.unpack_from("!H", raw, 20)[0] != port or not inode:
                continue
            address = ip_address(raw[24:28] if raw[16] == _AF_INET else raw[24:40])
            v6only = any(attributes(raw, 88).get(_INET_DIAG_SKV6ONLY, b""))
            yield Bound(address, v6only, inode)
