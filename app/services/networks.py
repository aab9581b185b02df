"""Networks: made, changed, removed."""

from __future__ import annotations

from dataclasses import replace

from app.drivers import DRIVERS
from app.model import ipam, naming
from app.model.errors import (
    AddressTaken,
    InterfaceExists,
    Invalid,
    NameTaken,
    NetworkInUse,
)
from app.model.spec import AllocationKind, IPAddress, Network
from app.services import addresses, endpoints, subnets
from app.services.context import HOST, Change, Context, Key, unique
from app.services.requests import NetworkCreate, NetworkPatch, refuse_null

_DRIVER = DRIVERS["bridge"]
_PLAIN = ("mtu", "internal", "isolated", "icc", "masquerade", "spoof_protection", "labels")
"""What a PATCH takes over as it stands."""


def create(context: Context, request: NetworkCreate) -> Change:
    """Raises Forbidden, Invalid, NameTaken, InterfaceExists, SubnetOverlap, PoolExhausted, AddressOutsideSubnet."""
    context.require_every_network("make networks")
    require_free_name(context, request.name)
    network_id = naming.new_id()
    network = Network(
        id=network_id,
        name=request.name,
        bridge=_bridge(context, request, network_id),
        plans=subnets.plans(context, request),
        mtu=request.mtu or context.host.default_mtu(),
        internal=request.internal,
        isolated=request.isolated,
        icc=request.icc,
        masquerade=request.masquerade,
        snat_address=_source(request),
        spoof_protection=request.spoof_protection,
        labels=request.labels,
        created_at=context.now,
        updated_at=context.now,
    )
    add(context, network)
    return Change(network.id, (("network", network.id), HOST))


def require_free_name(context: Context, name: str) -> None:
    """Raises NameTaken."""
    held = context.store.network(name)
    if held is not None and held.name == name:
        raise NameTaken(f"network name '{name}' is taken by network {held.id}; choose another")


def add(context: Context, network: Network) -> None:
    """Stores a new network whose name and bridge are free. Raises Invalid, SubnetOverlap, AddressOutsideSubnet."""
    _DRIVER.validate(network)
    _check_source(context, network, given=True)
    subnets.check_overlap(context, network)
    context.store.add_network(network)
    for plan in network.plans:
        _hold_gateway(context, network, plan.gateway)


def _bridge(context: Context, request: NetworkCreate, network_id: str) -> str:
    if request.bridge is not None:
        require_free_bridge(context, request.bridge)
        return request.bridge
    free = not context.host.link_exists(request.name) and context.store.network_with_bridge(request.name) is None
    if naming.is_ifname(request.name) and free:
        return request.name
    return f"bh-{naming.short_hash(network_id)}"


def require_free_bridge(context: Context, bridge: str) -> None:
    """Raises InterfaceExists."""
    network = context.store.network_with_bridge(bridge)
    if network is not None:
        raise InterfaceExists(f"bridge '{bridge}' is that of network '{network.name}'; choose another")
    endpoint = context.store.endpoint_with_host_ifname(bridge)
    if endpoint is not None or context.host.link_exists(bridge):
        owner = f"endpoint '{endpoint.name}'" if endpoint else "somebody else"
        raise InterfaceExists(
            f"the host's interface '{bridge}' belongs to {owner} and is not taken over; choose another bridge name"
        )


def _check_source(context: Context, network: Network, *, given: bool) -> None:
    """Raises Invalid unless the fixed source address is the host's, of use, and of a version the network has."""
    address = network.snat_address
    if address is None:
        return
    if not network.masquerade:
        raise Invalid(
            f"snat_address {address} contradicts masquerade false, with which outbound traffic keeps its addresses; "
            'give one of "snat_address": null and "masquerade": true'
        )
    if network.plan(address.version) is None:
        raise Invalid(
            f"snat_address {address} is IPv{address.version}, and network '{network.name}' has no "
            f"subnet{address.version}; use an IPv4 address of the host, or a network with one"
        )
    usable = int(address) != 0 and not (address.is_loopback or address.is_multicast)
    usable = usable and not (address.version == 6 and address.is_link_local)
    if given and not (usable and context.host.holds_address(address)):
        raise Invalid(
            f"snat_address {address} is not an address of this host that others can answer to; "
            "use one of an interface of the host, or null for the uplink's"
        )


def _hold_gateway(context: Context, network: Network, gateway: IPAddress | None) -> None:
    if gateway is not None:
        addresses.hold(context, network, gateway, AllocationKind.GATEWAY, holder_id=network.id)


def update(context: Context, ref: str, request: NetworkPatch) -> Change:
    """Raises NotFound, Forbidden, Invalid, AddressTaken, AddressOutsideSubnet."""
    network = context.network(ref)
    context.require(network)
    refuse_null(request, "gateway", "gateway6", "ip_range", "ip_range6", "snat_address")
    given = request.given()
    changed = replace(
        network,
        plans=subnets.patched(network, given),
        updated_at=context.now,
        **{name: given[name] for name in _PLAIN if name in given},
    )
    if "snat_address" in given:
        changed = replace(changed, snat_address=_source(request))
    _DRIVER.validate(changed)
    _check_source(context, changed, given=given.get("snat_address") is not None)
    for fields in subnets.FIELDS:
        _move_gateway(context, network, changed, fields)
    context.store.update_network(changed)
    return Change(network.id, _affected(context, network, changed))


def _source(request: NetworkCreate | NetworkPatch) -> IPAddress | None:
    return ipam.parse_address(request.snat_address, "snat_address") if request.snat_address is not None else None


def _move_gateway(context: Context, network: Network, changed: Network, fields: subnets.Fields) -> None:
    former, gateway = (subnets.gateway_of(one, fields.version) for one in (network, changed))
    if former == gateway:
        return
    holder = context.store.holder(network, gateway) if gateway is not None else None
    if holder is not None:
        raise AddressTaken(
            f"{fields.gateway} {gateway} is held by {addresses.describe_holder(context, holder)}; choose a free address"
        )
    held = context.store.holder(network, former) if former is not None else None
    if held is not None:
        context.store.delete_allocation(held)
    _hold_gateway(context, changed, gateway)


def _affected(context: Context, network: Network, changed: Network) -> tuple[Key, ...]:
    """The network itself; its endpoints where what they are made of changed, or their way out."""
    keys: list[Key] = [("network", network.id), HOST]
    ways = [[one.gateway_for(version) for version in (4, 6)] for one in (network, changed)]
    way_out = ways[0] != ways[1]
    made_of = [(one.mtu, one.icc, one.spoof_protection) for one in (network, changed)]
    if not way_out and made_of[0] == made_of[1]:
        return tuple(keys)
    for endpoint in context.store.endpoints_of(network):
        keys.append(("endpoint", endpoint.id))
        if way_out:
            keys.append(("namespace", endpoint.namespace_key))
            keys += [("portmap", portmap.id) for portmap in context.store.portmaps_of(endpoint)]
    return unique(keys)


def delete(context: Context, ref: str, *, force: bool) -> Change:
    """Raises NotFound, Forbidden, NetworkInUse where it has endpoints and `force` is not set."""
    network = context.network(ref)
    context.require_every_network("remove networks")
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
