"""Port mappings: made, changed, removed."""

from __future__ import annotations

from dataclasses import replace

from app.model import naming
from app.model.ports import check_target, parse_ports
from app.model.spec import Endpoint, Portmap, Protocol
from app.services import hostports
from app.services.context import Change, Context, Key
from app.services.requests import PortmapCreate, PortmapPatch, refuse_null


def create(context: Context, request: PortmapCreate) -> Change:
    """Raises NotFound, Forbidden, Invalid, InternalNetwork, NoGateway, PortTaken."""
    endpoint = context.endpoint(request.endpoint)
    network = context.network(endpoint.network_id)
    context.require(network)
    host_ip = hostports.host_ip(context, request.host_ip)
    hostports.require_reachable(network, endpoint, host_ip)
    protocol = Protocol(request.protocol)
    if request.host_port is not None:
        host_port, count = parse_ports(request.host_port)
    else:
        host_port, count = hostports.next_port(context, protocol, host_ip), 1
    portmap = Portmap(
        id=naming.new_id(),
        endpoint_id=endpoint.id,
        protocol=protocol,
        host_ip=host_ip,
        host_port=host_port,
        target_port=request.target_port or host_port,
        count=count,
        labels=request.labels,
        created_at=context.now,
        updated_at=context.now,
    )
    before = _led(context, endpoint)
    add(context, portmap)
    return Change(portmap.id, _affected(portmap, before, _led(context, endpoint)))


def add(context: Context, portmap: Portmap) -> None:
    """Stores a new mapping. Raises Invalid, PortTaken."""
    check_target(portmap.target_port, portmap.count)
    hostports.require_free(context, portmap)
    context.store.add_portmap(portmap)


_Led = dict[Key, object]


def _led(context: Context, *endpoints: Endpoint) -> _Led:
    """What else is made one way or the other for the ports that lead there: by key, all of them that it depends on."""
    store = context.store
    found: _Led = {}
    for endpoint in endpoints:
        network = context.network(endpoint.network_id)
        found["network", network.id] = [store.has_local_ports(network, plan.version) for plan in network.plans]
        found["endpoint", endpoint.id] = store.has_portmaps(endpoint)
    return found


def _affected(portmap: Portmap, before: _Led, after: _Led) -> tuple[Key, ...]:
    """Most often it is itself alone: an endpoint's first port and its last one change the endpoint too."""
    return ("portmap", portmap.id), *(key for key, state in after.items() if before[key] != state)


def update(context: Context, portmap_id: str, request: PortmapPatch) -> Change:
    """Raises NotFound, Forbidden, Invalid, InternalNetwork, NoGateway, PortTaken."""
    portmap = context.portmap(portmap_id)
    refuse_null(request)
    before = context.endpoint(portmap.endpoint_id)
    endpoint = context.endpoint(request.endpoint) if request.endpoint is not None else before
    context.require(context.network(before.network_id), context.network(endpoint.network_id))
    host_ip = portmap.host_ip
    if request.host_ip is not None:
        host_ip = hostports.host_ip(context, request.host_ip)
    if (endpoint.id, host_ip.version) != (before.id, portmap.host_ip.version):
        hostports.require_reachable(context.network(endpoint.network_id), endpoint, host_ip)
    host_port, count = portmap.host_port, portmap.count
    if request.host_port is not None:
        host_port, count = parse_ports(request.host_port)
    changed = replace(
        portmap,
        endpoint_id=endpoint.id,
        host_ip=host_ip,
        host_port=host_port,
        target_port=request.target_port or portmap.target_port,
        count=count,
        labels=request.labels if request.labels is not None else portmap.labels,
        updated_at=context.now,
    )
    check_target(changed.target_port, count)
    hostports.require_free(context, changed)
    led = _led(context, before, endpoint)
    context.store.update_portmap(changed)
    return Change(portmap.id, _affected(changed, led, _led(context, before, endpoint)))


def delete(context: Context, portmap_id: str) -> Change:
    """Raises NotFound, Forbidden."""
    portmap = context.portmap(portmap_id)
    endpoint = context.endpoint(portmap.endpoint_id)
    context.require(context.network(endpoint.network_id))
    before = _led(context, endpoint)
    context.store.delete_portmap(portmap)
    return Change(portmap.id, _affected(portmap, before, _led(context, endpoint)))
