"""Giving out addresses of a network, within the transaction that also writes their holder."""

from __future__ import annotations

from collections.abc import Iterator

from app.model import ipam
from app.model.errors import AddressTaken, PoolExhausted
from app.model.spec import Allocation, AllocationKind, IPAddress, Network
from app.services.context import Context


def describe_holder(context: Context, allocation: Allocation) -> str:
    """Who holds an address, in words."""
    if allocation.kind is AllocationKind.ENDPOINT and allocation.endpoint_id is not None:
        return f"endpoint '{context.endpoint(allocation.endpoint_id).name}'"
    if allocation.kind is AllocationKind.GATEWAY:
        return "the network's gateway"
    return f"reservation {allocation.id}" + (f" ({allocation.note})" if allocation.note else "")


def require_free(context: Context, network: Network, address: IPAddress, field: str = "address") -> None:
    """Raises AddressOutsideSubnet, Invalid, or AddressTaken with the holder's name."""
    ipam.check_usable(address, network.ipv4.subnet, field)
    holder = context.store.holder(network, address)
    if holder is not None:
        hint = next_free(context, network)
        free = f"; {hint} is free" if hint is not None else ""
        raise AddressTaken(
            f"{field} {address} of network '{network.name}' is held by {describe_holder(context, holder)}{free}"
        )


def next_free(context: Context, network: Network) -> IPAddress | None:
    """The next automatic address, round robin after the last one given; None when all are taken."""
    plan = network.ipv4
    first, last = ipam.automatic_span(plan.subnet, plan.ip_range)
    cursor = context.store.cursor(network)

    def taken(low: int, high: int) -> Iterator[int]:
        return context.store.taken(network, ipam.address_at(plan.subnet, low), ipam.address_at(plan.subnet, high))

    value = ipam.next_free(first, last, int(cursor) if cursor is not None else None, taken)
    return ipam.address_at(plan.subnet, value) if value is not None else None


def give(context: Context, network: Network, address: str | None) -> IPAddress:
    """The address asked for, or the next free one. Raises what `require_free` does, and PoolExhausted."""
    if address is not None:
        wanted = ipam.parse_address(address, "address")
        require_free(context, network, wanted)
        return wanted
    automatic = next_free(context, network)
    if automatic is None:
        plan = network.ipv4
        raise PoolExhausted(
            f"every address of {plan.ip_range} of network '{network.name}' is taken: delete endpoints or "
            "reservations, widen its ip_range, or use another network"
        )
    context.store.move_cursor(network, automatic)
    return automatic


def hold(
    context: Context,
    network: Network,
    address: IPAddress,
    kind: AllocationKind,
    *,
    holder_id: str,
    note: str = "",
) -> Allocation:
    """Writes that an address is held; the allocation's id is its holder's, or a reservation's own."""
    allocation = Allocation(
        id=holder_id,
        network_id=network.id,
        address=address,
        kind=kind,
        endpoint_id=holder_id if kind is AllocationKind.ENDPOINT else None,
        note=note,
        created_at=context.now,
    )
    context.store.add_allocation(allocation)
    return allocation
