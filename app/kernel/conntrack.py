"""Forgetting flows that would keep going where a changed mapping no longer sends them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection

from app.kernel.netlink import Conntrack, Flow
from app.model.spec import IPAddress, Protocol
from app.model.state import PortForward

_NUMBERS = {Protocol.UDP: socket.IPPROTO_UDP}
"""Protocols without connections of their own; TCP's live on."""


def needs_flush(forward: PortForward) -> bool:
    return forward.protocol in _NUMBERS


def flush(forwards: Collection[PortForward], is_host_address: Callable[[IPAddress], bool]) -> int:
    """Deletes the flows to these host ports; returns how many. One dump for each protocol and IP version.

    The original direction counts: the host's port, never the container's. A transit flow to a foreign
    address with the same port number is not ours (row 10). Raises KernelRefused.
    """
    groups: dict[tuple[int, Protocol], list[PortForward]] = {}
    for forward in forwards:
        family: int = socket.AF_INET if forward.target_ip.version == 4 else socket.AF_INET6
        groups.setdefault((family, forward.protocol), []).append(forward)
    if not groups:
        return 0
    flushed = 0
    with Conntrack() as table:
        for (family, protocol), group in groups.items():
            ports = {forward.host_port for forward in group}
            single = next(iter(ports)) if len(ports) == 1 else None
            for flow in list(table.flows(family, _NUMBERS[protocol], single)):
                if flow.port in ports and any(_concerns(forward, flow, is_host_address) for forward in group):
                    table.delete(flow, family)
                    flushed += 1
    return flushed


def _concerns(forward: PortForward, flow: Flow, is_host_address: Callable[[IPAddress], bool]) -> bool:
    destination = flow.destination
    if forward.host_port != flow.port:
        return False
    if int(forward.host_ip) != 0:
        return bool(destination == forward.host_ip)
    return destination.is_loopback or is_host_address(destination)
