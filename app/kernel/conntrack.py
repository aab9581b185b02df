"""Forgetting flows that would keep going where a changed mapping no longer sends them."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from app.kernel.wire import CT_DELETE, CT_GET, NLM_F_DUMP, Netlink, Packed, attribute, attributes, find
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

    def flows(self, family: int, protocol: int, ports: Collection[int] | None = None) -> Iterator[Flow]:
        """The flows of one transport protocol, to some ports or to any: one dump.

        The kernel filters it (CTA_FILTER, Linux 5.8) by the protocol and, where it is but one, by the port; an older
        one sends all, and we filter.
        """
        transport = attribute(_CTA_PROTO_NUM, bytes([protocol]))
        flags = _FILTER_PROTO_NUM
        if ports is not None and len(ports) == 1:
            transport += attribute(_CTA_PROTO_DST_PORT, next(iter(ports)).to_bytes(2, "big"))
            flags |= _FILTER_PROTO_DST_PORT
        wanted = attribute(_CTA_TUPLE_ORIG | _NESTED, attribute(_CTA_TUPLE_PROTO | _NESTED, transport))
        wanted += attribute(_CTA_FILTER | _NESTED, attribute(_CTA_FILTER_ORIG_FLAGS, struct.pack("=I", flags)))
        body = struct.pack("=BBH", family, 0, 0) + wanted
        for raw in self.request(Packed(body), CT_GET, NLM_F_DUMP, lambda: "conntrack -L"):
            original = find(raw, 20, _CTA_TUPLE_ORIG) or b""
            proto = attributes(find(original, 0, _CTA_TUPLE_PROTO) or b"", 0)
            if proto[_CTA_PROTO_NUM][0] != protocol or _CTA_PROTO_DST_PORT not in proto:
                continue
            port = int.from_bytes(proto[_CTA_PROTO_DST_PORT], "big")
            if ports is None or port in ports:  # a host has thousands of others
                yield _flow(raw, family, port)

    def delete(self, flow: Flow, family: int) -> None:
        """Forgets one flow; its being gone already is as good."""
        request = Packed(struct.pack("=BBH", family, 0, 0) + flow.key)
        try:
            self.change(request, CT_DELETE, 0, lambda: f"conntrack -D --orig-dst {flow.destination}")
        except KernelRefused as refusal:
            if refusal.errno != errno.ENOENT:
                raise


def _flow(raw: bytes, family: int, port: int) -> Flow:
    found = attributes(raw, 20)
    address = attributes(attributes(found[_CTA_TUPLE_ORIG], 0)[_CTA_TUPLE_IP], 0)
    answer = attributes(attributes(found[_CTA_TUPLE_REPLY], 0)[_CTA_TUPLE_IP], 0)
    return Flow(
        destination=ip_address(address[_CTA_IP_V4_DST if family == socket.AF_INET else _CTA_IP_V6_DST]),
        target=ip_address(answer[_CTA_IP_V4_SRC if family == socket.AF_INET else _CTA_IP_V6_SRC]),
        port=port,
        key=attribute(_CTA_TUPLE_ORIG | _NESTED, found[_CTA_TUPLE_ORIG]) + attribute(_CTA_ID, found[_CTA_ID]),
    )


def needs_flush(forward: PortForward) -> bool:
    """Whether its flows are forgotten when it comes, changes or goes."""
    return forward.protocol in _NUMBERS


class Flows:
    """What is forgotten of one namespace's flows: that of the thread that asks first.

    Its socket stays open. To close one waits until nf_tables has freed what the last change of rules took away,
    which is 4 to 20 ms.
    """

    def __init__(self) -> None:
        self._opened: Conntrack | None = None

    @property
    def _table(self) -> Conntrack:
        if self._opened is None:
            self._opened = Conntrack()
        return self._opened

    def close(self) -> None:
        """It is opened again at the next use."""
        if self._opened is not None:
            self._opened.close()
        self._opened = None

    def flush(self, forwards: Collection[PortForward], is_host_address: Callable[[IPAddress], bool]) -> int:
        """Deletes the flows to these host ports; returns how many. One dump for each protocol and IP version.

        The original direction counts: the host's port, never the container's. A transit flow to a foreign
        address with the same port number is not ours (row 10). Raises KernelRefused.
        """
        flushed = 0
        for (family, protocol), ports in _wanted(forwards).items():
            for flow in list(self._table.flows(family, _NUMBERS[protocol], ports)):
                if any(_concerns(forward, flow, is_host_address) for forward in ports[flow.port]):
                    self._table.delete(flow, family)
                    flushed += 1
        return flushed

    def flush_into(self, subnets: Collection[IPNetwork], is_host_address: Callable[[IPAddress], bool]) -> int:
        """Deletes the flows to addresses of the host that were DNATed into these subnets; returns how many.

        For rules that went and nobody knows: a dump for each protocol and IP version. Raises KernelRefused.
        """
        flushed = 0
        for version in {subnet.version for subnet in subnets}:
            family: int = socket.AF_INET if version == 4 else socket.AF_INET6
            for flow in [flow for number in _NUMBERS.values() for flow in self._table.flows(family, number)]:
                mapped = flow.target != flow.destination and any(flow.target in subnet for subnet in subnets)
                if mapped and (flow.destination.is_loopback or is_host_address(flow.destination)):
                    self._table.delete(flow, family)
                    flushed += 1
        return flushed


_ByPort = dict[int, list[PortForward]]


def _wanted(forwards: Iterable[PortForward]) -> dict[tuple[int, Protocol], _ByPort]:
    """Those whose flows are forgotten, by what one dump shows."""
    groups: dict[tuple[int, Protocol], _ByPort] = {}
    for forward in filter(needs_flush, forwards):
        family: int = socket.AF_INET if forward.host_ip.version == 4 else socket.AF_INET6
        ports = groups.setdefault((family, forward.protocol), {})
        for port in range(forward.host_port, forward.host_port + forward.count):
            ports.setdefault(port, []).append(forward)
    return groups


def _concerns(forward: PortForward, flow: Flow, is_host_address: Callable[[IPAddress], bool]) -> bool:
    destination = flow.destination
    if int(forward.host_ip) != 0:
        return bool(destination == forward.host_ip)
    return destination.is_loopback or is_host_address(destination)
