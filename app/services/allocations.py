"""Reserved addresses: held and given back without an endpoint."""

from __future__ import annotations

from app.model.errors import EndpointInUse, NetworkInUse
from app.model.naming import new_id
from app.model.spec import AllocationKind
from app.services import addresses
from app.services.context import Change, Context
from app.services.requests import AllocationCreate


def create(context: Context, request: AllocationCreate) -> Change:
    """Raises NotFound, Forbidden, AddressTaken, AddressOutsideSubnet, Invalid, PoolExhausted."""
    network = context.network(request.network)
    context.require(network)
    plan = addresses.plan_for(network, request.address)
    address = addresses.give(context, network, plan, request.address, "address")
    allocation = addresses.hold(
        context, network, address, AllocationKind.RESERVATION, holder_id=new_id(), note=request.note
    )
    return Change(allocation.id, (("allocation", allocation.id),))


def delete(context: Context, allocation_id: str) -> Change:
    """Raises NotFound, Forbidden; EndpointInUse and NetworkInUse for an address that is more than reserved."""
    allocation = context.allocation(allocation_id)
    network = context.network(allocation.network_id)
    context.require(network)
    if allocation.kind is AllocationKind.ENDPOINT:
        holder = addresses.describe_holder(context, allocation)
        raise EndpointInUse(f"address {allocation.address} is that of {holder}; delete the endpoint instead")
    if allocation.kind is AllocationKind.GATEWAY:
        field = "gateway" if allocation.address.version == 4 else "gateway6"
        raise NetworkInUse(
            f"address {allocation.address} is the gateway of network '{network.name}'; PATCH its {field} instead"
        )
    context.store.delete_allocation(allocation)
    return Change(allocation.id, (("allocation", allocation.id),))
