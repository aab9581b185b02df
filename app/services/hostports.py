"""Addresses and ports of the host that are published: whose they are, and which are free."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address

from app.model import ipam
from app.model.errors import InternalNetwork, Invalid, NoGateway, PortTaken
from app.model.ports import AUTOMATIC
from app.model.spec import Endpoint, IPAddress, Network, Portmap, Protocol
from app.services.context import Context

_LOOPBACK_ENDS = (IPv4Address("127.0.0.0"), IPv4Address("127.255.255.255"))
"""All of 127.0.0.0/8 is the host's, but for these."""


def host_ip(context: Context, text: str) -> IPAddress:
    """The address to publish on. Raises Invalid unless it is one of the host's, or stands for all of them."""
    address = ipam.parse_address(text, "host_ip")
    every = "0.0.0.0" if address.version == 4 else "::"  # noqa: S104 - a value
    if address.version == 6 and address.is_link_local:
        raise Invalid(
            f"host_ip {address} is link-local, which needs an interface; use a global one, or {every} for all"
        )
    if address in _LOOPBACK_ENDS:
        raise Invalid(f"host_ip {address} is the network or broadcast address of 127.0.0.0/8; use 127.0.0.1")
    if int(address) != 0 and not context.host.holds_address(address):
        raise Invalid(f"host_ip {address} is not an address of this host; use one that it has, or {every} for all")
    return address


def require_reachable(network: Network, endpoint: Endpoint, address: IPAddress) -> None:
    """Raises Invalid, InternalNetwork, NoGateway where nothing can be forwarded from the address to the endpoint."""
    version = address.version
    where = f"endpoint '{endpoint.name}' is on network '{network.name}'"
    if network.internal:
        raise InternalNetwork(
            f"{where}, which is internal: nothing reaches it from outside; "
            'PATCH the network with {"internal": false}, or publish an endpoint of another one'
        )
    if endpoint.address(version) is None:
        raise Invalid(
            f"host_ip {address} is IPv{version}, and {where}, which has no subnet6: use an IPv4 host_ip such as "
            "0.0.0.0, or an endpoint of a network with a subnet6"
        )
    if network.gateway_for(version) is None:
        field = "gateway" if version == 4 else "gateway6"
        raise NoGateway(
            f"{where}, which has no {field}: the host cannot reach it by IPv{version}; "
            f'PATCH the network with {{"{field}": "ADDRESS"}} first'
        )


def require_free(context: Context, portmap: Portmap) -> None:
    """Raises PortTaken with the mapping that holds a port; the kernel finds the processes that do."""
    other = context.store.portmap_in_the_way(portmap)
    if other is not None:
        holder = context.endpoint(other.endpoint_id)
        raise PortTaken(
            f"host port {portmap} is held by port mapping {other.id} ({other} to endpoint '{holder.name}'); "
            "choose another host_port"
        )


def next_port(context: Context, protocol: Protocol, address: IPAddress) -> int:
    """The lowest automatic port that neither a mapping nor a process holds. Raises PortTaken."""
    for port in _candidates(context, protocol, address):
        try:
            context.host.probe_port(protocol, address, port)
        except PortTaken:
            continue
        context.store.raise_port_floor(protocol, address, port + 1)
        return port
    raise PortTaken(f"no {protocol} port of {AUTOMATIC.start}-{AUTOMATIC.stop - 1} is free on {address}; name one")


def _candidates(context: Context, protocol: Protocol, address: IPAddress) -> Iterator[int]:
    """The automatic ports that no mapping holds, from where the last search ended; then those before it.

    Below that point only a process can have given one back: a mapping that goes moves the point.
    """
    floor = max(AUTOMATIC.start, context.store.port_floor(protocol, address) or AUTOMATIC.start)
    yield from _gaps(context, protocol, address, range(floor, AUTOMATIC.stop))
    yield from _gaps(context, protocol, address, range(AUTOMATIC.start, floor))


def _gaps(context: Context, protocol: Protocol, address: IPAddress, ports: range) -> Iterator[int]:
    port = ports.start
    if not ports:
        return
    for first, last in context.store.held_ports(protocol, address, ports.start, ports.stop - 1):
        yield from range(port, first)
        port = max(port, last + 1)
    yield from range(port, ports.stop)
