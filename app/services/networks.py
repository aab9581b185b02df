"""Networks: made, changed, removed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from app.drivers import DRIVERS
from app.model import ipam, naming
from app.model.errors import (
    AddressTaken,
    InterfaceExists,
    Invalid,
    NameTaken,
    NetworkInUse,
    PoolExhausted,
    SubnetOverlap,
)
from app.model.spec import AddressPlan, AllocationKind, IPAddress, IPNetwork, Network
from app.services import addresses, endpoints
from app.services.context import HOST, Change, Context, Key, unique
from app.services.requests import NetworkCreate, NetworkPatch, refuse_null

_DRIVER = DRIVERS["bridge"]
_VERSION = 4
"""Of a network's `subnet`."""


def create(context: Context, request: NetworkCreate) -> Change:
    """Raises Invalid, NameTaken, InterfaceExists, SubnetOverlap, PoolExhausted, AddressOutsideSubnet."""
    held = context.store.network(request.name)
    if held is not None and held.name == request.name:
        raise NameTaken(f"network name '{request.name}' is taken by network {held.id}; choose another")
    network_id = naming.new_id()
    subnet = _subnet(context, request.subnet)
    network = Network(
        id=network_id,
        name=request.name,
        bridge=_bridge(context, request, network_id),
        plans=(_plan(request, subnet),),
        mtu=request.mtu or context.host.default_mtu(),
        internal=request.internal,
        isolated=request.isolated,
        masquerade=request.masquerade,
        labels=request.labels,
        created_at=context.now,
        updated_at=context.now,
    )
    _DRIVER.validate(network)
    _check_overlap(context, subnet)
    context.store.add_network(network)
    _hold_gateway(context, network)
    return Change(network.id, (("network", network.id), HOST))


def _subnet(context: Context, wanted: str | None) -> IPNetwork:
    if wanted is not None:
        subnet = ipam.parse_network(wanted, "subnet")
        if subnet.version != _VERSION:
            raise Invalid(f"subnet {subnet} is IPv{subnet.version}; give an IPv4 one, such as 192.168.15.0/24")
        return subnet
    free = ipam.lowest_free_subnet(context.pools, lambda candidate: _in_the_way(context, candidate))
    if free is None:
        pools = ", ".join(ipam.usual_form(pool) for pool in context.pools)
        raise PoolExhausted(f"no subnet of the pools ({pools}) is free: name one, or start with another --pool")
    return free


def _in_the_way(context: Context, subnet: IPNetwork) -> IPNetwork | None:
    network = context.store.network_overlapping(subnet)
    if network is not None:
        return network.ipv4.subnet
    route = context.host.route_in_the_way(subnet)
    return route[0] if route is not None else None


def _check_overlap(context: Context, subnet: IPNetwork) -> None:
    network = context.store.network_overlapping(subnet)
    if network is not None:
        raise SubnetOverlap(
            f"subnet {subnet} overlaps {network.ipv4.subnet} of network '{network.name}'; "
            "choose another, or leave subnet out to get a free one"
        )
    route = context.host.route_in_the_way(subnet)
    if route is not None:
        raise SubnetOverlap(
            f"subnet {subnet} overlaps the host's route to {route[0]} by interface '{route[1]}'; "
            "choose another, or leave subnet out to get a free one"
        )


def _plan(request: NetworkCreate, subnet: IPNetwork) -> AddressPlan:
    if "gateway" not in request.model_fields_set:
        gateway: IPAddress | None = ipam.first_usable(subnet)
    else:
        gateway = ipam.parse_address(request.gateway, "gateway") if request.gateway is not None else None
    ip_range = ipam.parse_network(request.ip_range, "ip_range") if request.ip_range is not None else subnet
    return AddressPlan(subnet, gateway, ip_range)


def _bridge(context: Context, request: NetworkCreate, network_id: str) -> str:
    if request.bridge is not None:
        _require_free_bridge(context, request.bridge)
        return request.bridge
    free = not context.host.link_exists(request.name) and context.store.network_with_bridge(request.name) is None
    if naming.is_ifname(request.name) and free:
        return request.name
    return f"bh-{naming.short_hash(network_id)}"


def _require_free_bridge(context: Context, bridge: str) -> None:
    network = context.store.network_with_bridge(bridge)
    if network is not None:
        raise InterfaceExists(f"bridge '{bridge}' is that of network '{network.name}'; choose another")
    endpoint = context.store.endpoint_with_host_ifname(bridge)
    if endpoint is not None or context.host.link_exists(bridge):
        owner = f"endpoint '{endpoint.name}'" if endpoint else "somebody else"
        raise InterfaceExists(
            f"the host's interface '{bridge}' belongs to {owner} and is not taken over; choose another bridge name"
        )


def _hold_gateway(context: Context, network: Network) -> None:
    gateway = network.ipv4.gateway
    if gateway is not None:
        addresses.hold(context, network, gateway, AllocationKind.GATEWAY, holder_id=network.id)


def update(context: Context, ref: str, request: NetworkPatch) -> Change:
    """Raises NotFound, Invalid, AddressTaken, AddressOutsideSubnet."""
    network = context.network(ref)
    refuse_null(request, "gateway", "ip_range")
    given = request.given()
    changed = replace(
        network,
        plans=(_changed_plan(network.ipv4, given),),
        updated_at=context.now,
        **{name: given[name] for name in ("mtu", "internal", "isolated", "masquerade", "labels") if name in given},
    )
    _DRIVER.validate(changed)
    if changed.ipv4.gateway != network.ipv4.gateway:
        _move_gateway(context, network, changed)
    context.store.update_network(changed)
    return Change(network.id, _affected(context, network, changed))


def _changed_plan(plan: AddressPlan, given: dict[str, Any]) -> AddressPlan:
    if "gateway" in given:
        gateway = given["gateway"]
        plan = replace(plan, gateway=ipam.parse_address(gateway, "gateway") if gateway is not None else None)
    if "ip_range" in given:
        ip_range = given["ip_range"]
        plan = replace(plan, ip_range=ipam.parse_network(ip_range, "ip_range") if ip_range else plan.subnet)
    return plan


def _move_gateway(context: Context, network: Network, changed: Network) -> None:
    gateway = changed.ipv4.gateway
    if gateway is not None:
        holder = context.store.holder(network, gateway)
        if holder is not None:
            raise AddressTaken(
                f"gateway {gateway} is held by {addresses.describe_holder(context, holder)}; choose a free address"
            )
    former = context.store.gateway_allocation(network)
    if former is not None:
        context.store.delete_allocation(former)
    _hold_gateway(context, changed)


def _affected(context: Context, network: Network, changed: Network) -> tuple[Key, ...]:
    """The network itself; its endpoints where what they are made of changed, or their way out."""
    keys: list[Key] = [("network", network.id), HOST]
    way_out = (network.internal, network.ipv4.gateway) != (changed.internal, changed.ipv4.gateway)
    if way_out or network.mtu != changed.mtu:
        for endpoint in context.store.endpoints_of(network):
            keys.append(("endpoint", endpoint.id))
            keys.append(("namespace", endpoint.namespace_key))
            keys += [("portmap", portmap.id) for portmap in context.store.portmaps_of(endpoint)]
    return unique(keys)


def delete(context: Context, ref: str, *, force: bool) -> Change:
    """Raises NotFound, NetworkInUse where it has endpoints and `force` is not set."""
    network = context.network(ref)
    members = context.store.endpoints_of(network)
    if members and not force:
        names = ", ".join(f"'{endpoint.name}'" for endpoint in members[:5]) + (", ..." if len(members) > 5 else "")
        raise NetworkInUse(
            f"network '{network.name}' has {len(members)} endpoints ({names}); delete them first, or use ?force=true"
        )
    keys: list[Key] = []
    for endpoint in members:
        keys += endpoints.remove(context, endpoint)
    context.store.delete_network(network)
    return Change(network.id, unique([*keys, ("network", network.id), HOST]))
