"""Port mappings: made, changed, removed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from app.model import ipam, naming
from app.model.errors import InternalNetwork, Invalid, NoGateway, PortTaken
from app.model.spec import Endpoint, IPAddress, Network, Portmap, Protocol
from app.services.context import Change, Context, Key, unique
from app.services.requests import PortmapCreate, PortmapPatch, refuse_null

AUTOMATIC = range(49153, 65536)


def create(context: Context, request: PortmapCreate) -> Change:
    """Raises NotFound, Invalid, InternalNetwork, NoGateway, PortTaken."""
    endpoint = context.endpoint(request.endpoint)
    _require_reachable(context.network(endpoint.network_id), endpoint)
    host_ip = _host_ip(context, endpoint, request.host_ip)
    protocol = Protocol(request.protocol)
    host_port = request.host_port or _next_port(context, protocol, host_ip)
    portmap = Portmap(
        id=naming.new_id(),
        endpoint_id=endpoint.id,
        protocol=protocol,
        host_ip=host_ip,
        host_port=host_port,
        target_port=request.target_port or host_port,
        labels=request.labels,
        created_at=context.now,
        updated_at=context.now,
    )
    _require_free(context, portmap)
    context.store.add_portmap(portmap)
    return Change(portmap.id, _affected(portmap, endpoint))


def _affected(portmap: Portmap, *endpoints: Endpoint) -> tuple[Key, ...]:
    keys: list[Key] = [("portmap", portmap.id)]
    for endpoint in endpoints:
        keys += [("network", endpoint.network_id), ("endpoint", endpoint.id)]
    return unique(keys)


def _require_reachable(network: Network, endpoint: Endpoint) -> None:
    if network.internal:
        raise InternalNetwork(
            f"endpoint '{endpoint.name}' is on network '{network.name}', which is internal: nothing reaches it "
            'from outside; PATCH the network with {"internal": false}, or publish an endpoint of another one'
        )
    if not network.routed:
        raise NoGateway(
            f"endpoint '{endpoint.name}' is on network '{network.name}', which has no gateway: the host cannot "
            'reach it; PATCH the network with {"gateway": "ADDRESS"} first'
        )


def _host_ip(context: Context, endpoint: Endpoint, text: str) -> IPAddress:
    address = ipam.parse_address(text, "host_ip")
    if endpoint.address(address.version) is None:
        raise Invalid(f"host_ip {address} is IPv{address.version}, which endpoint '{endpoint.name}' lacks")
    if int(address) != 0 and not context.host.holds_address(address):
        raise Invalid(f"host_ip {address} is not an address of this host; use one that it has, or 0.0.0.0 for all")
    return address


def _require_free(context: Context, portmap: Portmap) -> None:
    """Raises PortTaken with the mapping or process that holds the port; an unspecified address meets every other."""
    for other in context.store.portmaps_on(portmap.protocol, portmap.host_port):
        if other.id != portmap.id and _meet(other.host_ip, portmap.host_ip):
            holder = context.endpoint(other.endpoint_id)
            raise PortTaken(
                f"host port {portmap} is held by port mapping {other.id} ({other} to endpoint '{holder.name}'); "
                "choose another host_port"
            )


def _meet(one: IPAddress, other: IPAddress) -> bool:
    return one.version == other.version and (one == other or int(one) == 0 or int(other) == 0)


def _next_port(context: Context, protocol: Protocol, host_ip: IPAddress) -> int:
    for port in _candidates(context, protocol, host_ip):
        try:
            context.host.probe_port(protocol, host_ip, port)
        except PortTaken:
            continue
        return port
    raise PortTaken(f"no {protocol} port of {AUTOMATIC.start}-{AUTOMATIC.stop - 1} is free on {host_ip}; name one")


def _candidates(context: Context, protocol: Protocol, host_ip: IPAddress) -> Iterator[int]:
    """The automatic ports that no mapping holds, ascending."""
    held = context.store.ports_from(protocol, AUTOMATIC.start, host_ip)
    upcoming = next(held, None)
    for port in AUTOMATIC:
        if port == upcoming:
            while upcoming == port:
                upcoming = next(held, None)
            continue
        yield port


def update(context: Context, portmap_id: str, request: PortmapPatch) -> Change:
    """Raises NotFound, Invalid, InternalNetwork, NoGateway, PortTaken."""
    portmap = context.portmap(portmap_id)
    refuse_null(request)
    before = context.endpoint(portmap.endpoint_id)
    endpoint = context.endpoint(request.endpoint) if request.endpoint is not None else before
    if endpoint.id != before.id:
        _require_reachable(context.network(endpoint.network_id), endpoint)
    host_ip = portmap.host_ip
    if request.host_ip is not None:
        host_ip = _host_ip(context, endpoint, request.host_ip)
    changed = replace(
        portmap,
        endpoint_id=endpoint.id,
        host_ip=host_ip,
        host_port=request.host_port or portmap.host_port,
        target_port=request.target_port or portmap.target_port,
        labels=request.labels if request.labels is not None else portmap.labels,
        updated_at=context.now,
    )
    _require_free(context, changed)
    context.store.update_portmap(changed)
    return Change(portmap.id, _affected(changed, before, endpoint))


def delete(context: Context, portmap_id: str) -> Change:
    """Raises NotFound."""
    portmap = context.portmap(portmap_id)
    endpoint = context.endpoint(portmap.endpoint_id)
    context.store.delete_portmap(portmap)
    return Change(portmap.id, _affected(portmap, endpoint))
