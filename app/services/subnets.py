"""A network's address plans, one for each IP version: from what a request says to checked subnets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from app.model import ipam
from app.model.errors import Invalid, PoolExhausted, SubnetOverlap
from app.model.spec import AddressPlan, IPAddress, IPNetwork, Network, Version
from app.services.context import Context
from app.services.requests import AUTO, NetworkCreate

_ULA_TRIES = 16


@dataclass(frozen=True, slots=True)
class Fields:
    """What a plan's parts are called in requests."""

    version: Version
    subnet: str
    gateway: str
    ip_range: str


IPV4 = Fields(4, "subnet", "gateway", "ip_range")
IPV6 = Fields(6, "subnet6", "gateway6", "ip_range6")
FIELDS = (IPV4, IPV6)


def plans(context: Context, request: NetworkCreate) -> tuple[AddressPlan, ...]:
    """The plans of a new network. Raises Invalid, PoolExhausted, SubnetOverlap."""
    given = request.given()
    made = [_plan(IPV4, _subnet4(context, request.subnet), given)]
    if request.subnet6 is not None:
        made.append(_plan(IPV6, _subnet6(context, request.subnet6), given))
    for name in (IPV6.gateway, IPV6.ip_range):
        if request.subnet6 is None and given.get(name) is not None:
            raise Invalid(f'{name} {given[name]} needs a subnet6; give one, such as "auto", or leave {name} out')
    return tuple(made)


def _plan(fields: Fields, subnet: IPNetwork, given: dict[str, Any]) -> AddressPlan:
    return changed(AddressPlan(subnet, None, subnet), fields, {fields.gateway: _default_gateway(subnet), **given})


def _default_gateway(subnet: IPNetwork) -> str:
    return str(ipam.first_usable(subnet))


def changed(plan: AddressPlan, fields: Fields, given: dict[str, Any]) -> AddressPlan:
    """The plan with the gateway and range that were given; null takes the gateway away, and the range back."""
    if fields.gateway in given:
        gateway = given[fields.gateway]
        plan = replace(plan, gateway=ipam.parse_address(gateway, fields.gateway) if gateway is not None else None)
    if fields.ip_range in given:
        ip_range = given[fields.ip_range]
        plan = replace(plan, ip_range=ipam.parse_network(ip_range, fields.ip_range) if ip_range else plan.subnet)
    return plan


def patched(network: Network, given: dict[str, Any]) -> tuple[AddressPlan, ...]:
    """The plans of a changed network. Raises Invalid for a field of an IP version that it lacks."""
    for name in (IPV6.gateway, IPV6.ip_range):
        if network.plan(6) is None and given.get(name) is not None:
            raise Invalid(
                f"{name} {given[name]}: network '{network.name}' has no subnet6, and subnets cannot be changed; "
                "make a network with one"
            )
    fields = {one.version: one for one in FIELDS}
    return tuple(changed(plan, fields[plan.version], given) for plan in network.plans)


def _subnet4(context: Context, wanted: str | None) -> IPNetwork:
    if wanted is not None:
        return _parsed(IPV4, wanted, "192.168.15.0/24")
    free = ipam.lowest_free_subnet(context.pools, lambda candidate: _in_the_way(context, candidate))
    if free is None:
        pools = ", ".join(ipam.usual_form(pool) for pool in context.pools)
        raise PoolExhausted(f"no subnet of the pools ({pools}) is free: name one, or start with another --pool")
    return free


def _subnet6(context: Context, wanted: str) -> IPNetwork:
    if wanted != AUTO:
        return _parsed(IPV6, wanted, "fd00:15::/64")
    for _try in range(_ULA_TRIES):
        candidate = ipam.random_ula()
        if _in_the_way(context, candidate) is None:
            return candidate
    raise PoolExhausted(
        f"{_ULA_TRIES} random unique local prefixes overlap networks or routes of the host; name a subnet6"
    )


def _parsed(fields: Fields, wanted: str, example: str) -> IPNetwork:
    subnet = ipam.parse_network(wanted, fields.subnet)
    if subnet.version != fields.version:
        raise Invalid(
            f"{fields.subnet} {subnet} is IPv{subnet.version}; give an IPv{fields.version} one, such as {example}"
        )
    return subnet


def _in_the_way(context: Context, subnet: IPNetwork) -> IPNetwork | None:
    network = context.store.network_overlapping(subnet)
    if network is not None:
        return _subnet_of(network, subnet.version)
    route = context.host.route_in_the_way(subnet)
    return route[0] if route is not None else None


def _subnet_of(network: Network, version: Version) -> IPNetwork:
    plan = network.plan(version)
    if plan is None:
        raise LookupError(f"network {network.id} overlaps in IPv{version}, which it lacks")
    return plan.subnet


def check_overlap(context: Context, network: Network) -> None:
    """Raises SubnetOverlap with the network or the route of the host that is in the way of a new network."""
    for fields, plan in zip(FIELDS, network.plans, strict=False):
        other = context.store.network_overlapping(plan.subnet)
        route = context.host.route_in_the_way(plan.subnet)
        if other is not None:
            met = f"{_subnet_of(other, plan.version)} of network '{other.name}'"
        elif route is not None:
            met = f"the host's route to {route[0]} by interface '{route[1]}'"
        else:
            continue
        instead = f"leave {fields.subnet} out" if fields is IPV4 else f'"{fields.subnet}": "{AUTO}"'
        raise SubnetOverlap(
            f"{fields.subnet} {plan.subnet} overlaps {met}; choose another, or {instead} to get a free one"
        )


def gateway_of(network: Network, version: Version) -> IPAddress | None:
    """The bridge's address of one IP version, also where the network is internal."""
    plan = network.plan(version)
    return plan.gateway if plan is not None else None
