"""Forgetting flows that would keep going where a changed mapping no longer sends them."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from app.kernel.wire import CT_DELETE, CT_GET, NLM_F_DUMP, Netlink, Packed, attribute, attributes
from app.model.errors import KernelRefused
from app.model.spec import IPAddress, IPNetwork, Protocol
from app.model.state import PortForward

_NESTED = 0x8000
_CTA_TUPLE_ORIG, _CTA_TUPLE_REPLY, _CTA_ID, _CTA_FILTER = 1, 2, 12, 25
_CTA_TUPLE_IP, _CTA_TUPLE_PROTO = 1, 2
_CTA_IP_V4_SRC, _CTA_IP_V4_DST, _CTA_IP_V6_SRC, _CTA_IP_V6_DST = 1, 2, 3, 4
_CTA_PROTO_NUM, _CTA_PROTO_DST_PORT, _CTA_FILTER_ORIG_FLAGS = 1, 3, 1
_FILTER_PROTO_NUM, _FILTER_PROTO_DST_PORT = 1 << 3, 1 << 5  # ctnetlink's CTA_FILTER_F_*

_NUMBERS = {Protocol.UDP: socket.IPPROTO_UDP, Protocol.SCTP: socket.IPPROTO_SCTP}
"""Protocols whose flows outlive a changed mapping; TCP's connections live on, and new ones are new flows."""


@dataclass(frozen=True, slots=True)
class Flow:
    """A conntrack entry's original direction; `key` is the attributes that name it for deletion.

    target: who answers; another one than the destination where it was DNATed.
    """

    destination: IPAddress
    target: IPAddress
    port: int
    key: bytes


class Conntrack(Netlink):
    """The connection tracking table of one namespace (linux/netfilter/nfnetlink_conntrack.h)."""

    def __init__(self) -> None:
        super().__init__(12)  # NETLINK_NETFILTER, likewise

    def flows(self, family: int, protocol: int, port: int | None = None) -> Iterator[Flow]:
        """The flows of one transport protocol, to one port or to any: one dump.

        The kernel filters it (CTA_FILTER, Linux 5.8); an older one sends all, and we filter.
        """
        transport = attribute(_CTA_PROTO_NUM, bytes([protocol]))
        flags = _FILTER_PROTO_NUM
        if port is not None:
            transport += attribute(_CTA_PROTO_DST_PORT, port.to_bytes(2, "big"))
            flags |= _FILTER_PROTO_DST_PORT
        wanted = attribute(_CTA_TUPLE_ORIG | _NESTED, attribute(_CTA_TUPLE_PROTO | _NESTED, transport))
        wanted += attribute(_CTA_FILTER | _NESTED, attribute(_CTA_FILTER_ORIG_FLAGS, struct.pack("=I", flags)))
        body = struct.pack("=BBH", family, 0, 0) + wanted
        for raw in self.request(Packed(body), CT_GET, NLM_F_DUMP, lambda: "conntrack -L"):
            found = attributes(raw, 20)
            original = attributes(found[_CTA_TUPLE_ORIG], 0)
            proto = attributes(original[_CTA_TUPLE_PROTO], 0)
            if proto[_CTA_PROTO_NUM][0] != protocol or _CTA_PROTO_DST_PORT not in proto:
                continue
            address = attributes(original[_CTA_TUPLE_IP], 0)
            answer = attributes(attributes(found[_CTA_TUPLE_REPLY], 0)[_CTA_TUPLE_IP], 0)
            yield Flow(
                destination=ip_address(address[_CTA_IP_V4_DST if family == socket.AF_INET else _CTA_IP_V6_DST]),
                target=ip_address(answer[_CTA_IP_V4_SRC if family == socket.AF_INET else _CTA_IP_V6_SRC]),
                port=int.from_bytes(proto[_CTA_PROTO_DST_PORT], "big"),
                key=attribute(_CTA_TUPLE_ORIG | _NESTED, found[_CTA_TUPLE_ORIG]) + attribute(_CTA_ID, found[_CTA_ID]),
            )

    def delete(self, flow: Flow, family: int) -> None:
        """Forgets one flow; its being gone already is as good."""
        request = Packed(struct.pack("=BBH", family, 0, 0) + flow.key)
        try:
            self.change(request, CT_DELETE, 0, lambda: f"conntrack -D --orig-dst {flow.destination}")
        except KernelRefused as refusal:
            if refusal.errno != errno.ENOENT:
                raise


def needs_flush(forward: PortForward) -> bool:
    """Whether its flows are forgotten when it comes, changes or goes."""
    return forward.protocol in _NUMBERS


def flush(forwards: Collection[PortForward], is_host_address: Callable[[IPAddress], bool]) -> int:
    """Deletes the flows to these host ports; returns how many. One dump for each protocol and IP version.

    The original direction counts: the host's port, never the container's. A transit flow to a foreign
    address with the same port number is not ours (row 10). Raises KernelRefused.
    """
    groups: dict[tuple[int, Protocol], dict[int, list[PortForward]]] = {}
    for forward in forwards:
        if not needs_flush(forward):
            continue
        family: int = socket.AF_INET if forward.host_ip.version == 4 else socket.AF_INET6
        ports = groups.setdefault((family, forward.protocol), {})
        for port in range(forward.host_port, forward.host_port + forward.count):
            ports.setdefault(port, []).append(forward)
    if not groups:
        return 0
    flushed = 0
    with Conntrack() as table:
        for (family, protocol), ports in groups.items():
            # one port is filtered by the kernel, several are here
            single = next(iter(ports)) if len(ports) == 1 else None
            for flow in list(table.flows(family, _NUMBERS[protocol], single)):
                if any(_concerns(forward, flow, is_host_address) for forward in ports.get(flow.port, ())):
                    table.delete(flow, family)
                    flushed += 1
    return flushed


def flush_into(subnets: Collection[IPNetwork], is_host_address: Callable[[IPAddress], bool]) -> int:
    """Deletes the flows to addresses of the host that were DNATed into these subnets; returns how many.

    For rules that went and nobody knows: a dump for each protocol and IP version. Raises KernelRefused.
    """
    flushed = 0
    with Conntrack() as table:
        for version in {subnet.version for subnet in subnets}:
            family: int = socket.AF_INET if version == 4 else socket.AF_INET6
            for flow in [flow for number in _NUMBERS.values() for flow in table.flows(family, number)]:
                mapped = flow.target != flow.destination and any(flow.target in subnet for subnet in subnets)
                if mapped and (flow.destination.is_loopback or is_host_address(flow.destination)):
                    table.delete(flow, family)
                    flushed += 1
    return flushed


def _concerns(forward: PortForward, flow: Flow, is_host_address: Callable[[IPAddress], bool]) -> bool:
    destination = flow.destination
    if int(forward.host_ip) != 0:
        return bool(destination == forward.host_ip)
    return destination.is_loopback or is_host_address(destination)
