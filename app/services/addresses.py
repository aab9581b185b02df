"""Giving out addresses of a network, within the transaction that also writes their holder."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from app.model import ipam
from app.model.errors import AddressOutsideSubnet, AddressTaken, PoolExhausted
from app.model.spec import AddressPlan, Allocation, AllocationKind, IPAddress, Network
from app.services.context import Context


def describe_holder(context: Context, allocation: Allocation) -> str:
    """Who holds an address, in words."""
    if allocation.kind is AllocationKind.ENDPOINT and allocation.endpoint_id is not None:
        return f"endpoint '{context.endpoint(allocation.endpoint_id).name}'"
    if allocation.kind is AllocationKind.GATEWAY:
        return "the network's gateway"
    return f"reservation {allocation.id}" + (f" ({allocation.note})" if allocation.note else "")


def require_free(context: Context, network: Network, plan: AddressPlan, address: IPAddress, field: str) -> None:
    """Raises AddressOutsideSubnet, Invalid, or AddressTaken with the holder's name."""
    ipam.check_usable(address, plan.subnet, field)
    holder = context.store.holder(network, address)
    if holder is not None:
        hint = next_free(context, network, plan)
        free = f"; {hint} is free" if hint is not None else ""
        raise AddressTaken(
            f"{field} {address} of network '{network.name}' is held by {describe_holder(context, holder)}{free}"
        )


def next_free(context: Context, network: Network, plan: AddressPlan) -> IPAddress | None:
    """The next automatic address, round robin after the last one given; None when all are taken."""
    first, last = ipam.automatic_span(plan.subnet, plan.ip_range)

    def taken(low: int, high: int) -> Iterator[int]:
        return context.store.taken(network, ipam.address_at(plan.subnet, low), ipam.address_at(plan.subnet, high))

    value = ipam.next_free(first, last, context.store.cursor(network, plan.version), taken)
    return ipam.address_at(plan.subnet, value) if value is not None else None


def give(context: Context, network: Network, plan: AddressPlan, wanted: str | None, field: str) -> IPAddress:
    """The address asked for, or the next free one. Raises what `require_free` does, and PoolExhausted."""
    if wanted is not None:
        address = ipam.parse_address(wanted, field)
        require_free(context, network, plan, address, field)
        return address
    automatic = next_free(context, network, plan)
    if automatic is None:
        name = "ip_range" if plan.version == 4 else "ip_range6"
        raise PoolExhausted(
            f"every address of {plan.ip_range} of network '{network.name}' is taken: delete endpoints or "
            f"reservations, widen its {name}, or use another network"
        )
    context.store.move_cursor(network, automatic)
    return automatic


def plan_for(network: Network, wanted: str | None) -> AddressPlan:
    """The plan that an address belongs to; the IPv4 one where none is asked for. Raises AddressOutsideSubnet."""
    if wanted is None:
        return network.ipv4
    address = ipam.parse_address(wanted, "address")
    plan = network.plan(address.version)
    if plan is None:
        raise AddressOutsideSubnet(
            f"address {address} is IPv6, and network '{network.name}' has no subnet6; use one of {network.ipv4.subnet}"
        )
    return plan


def hold(
    context: Context,
    network: Network,
    address: IPAddress,
    kind: AllocationKind,
    *,
    holder_id: str,
    note: str = "",
    created_at: datetime | None = None,
) -> Allocation:
    """Writes that an address is held, since now by default; the id is its holder's, or a reservation's own."""
    allocation = Allocation(
        id=holder_id,
        network_id=network.id,
        address=address,
        kind=kind,
        endpoint_id=holder_id if kind is AllocationKind.ENDPOINT else None,
        note=note,
        created_at=created_at or context.now,
    )
    context.store.add_allocation(allocation)
    return allocation
