"""/ipam: the pools, and who holds which address."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Response

from app.api.deps import Backend, BackendDep, Limit
from app.api.docs import errors
from app.api.schemas import AllocationOut, HolderOut, PoolOut
from app.model.errors import (
    AddressOutsideSubnet,
    AddressTaken,
    EndpointInUse,
    Invalid,
    KernelRefused,
    NetworkInUse,
    NotFound,
    PoolExhausted,
    StoreFailed,
)
from app.model.spec import Allocation, AllocationKind, Network
from app.services import allocations
from app.services.catalog import page
from app.services.requests import AllocationCreate

router = APIRouter(prefix="/ipam", tags=["ipam"])
_FAILURES = (KernelRefused, StoreFailed)


def _out(backend: Backend, one: Allocation) -> AllocationOut:
    network = backend.catalog.network(one.network_id)
    return AllocationOut(
        id=one.id,
        address=str(one.address),
        network=network.id,
        network_name=network.name,
        holder=HolderOut(kind=one.kind, id=one.id, name=_holder_name(backend, one, network)),
        note=one.note,
        created_at=one.created_at,
    )


def _holder_name(backend: Backend, one: Allocation, network: Network) -> str:
    if one.kind is AllocationKind.GATEWAY:
        return network.name
    endpoint = backend.catalog.endpoints.get(one.endpoint_id or "")
    return endpoint.name if endpoint is not None else one.note


def _pools(backend: Backend, network: Network) -> list[PoolOut]:
    return [
        PoolOut(
            network=network.id,
            network_name=network.name,
            subnet=str(plan.subnet),
            ip_range=str(plan.ip_range),
            size=size,
            used=used,
            reserved=reserved,
            free=size - used - reserved,
        )
        for plan, size, used, reserved in backend.catalog.pools(network)
    ]


@router.get(
    "/pools", operation_id="list_pools", summary="Count the networks' addresses", responses=errors(NotFound, Invalid)
)
async def pools(backend: BackendDep, limit: Limit = None, network: str | None = None) -> list[PoolOut]:
    chosen = [backend.catalog.network(network)] if network is not None else list(backend.catalog.networks.values())
    return page((pool for one in chosen for pool in _pools(backend, one)), limit)


@router.get(
    "/allocations",
    operation_id="list_allocations",
    summary="Show who holds which address",
    responses=errors(NotFound, Invalid),
)
async def listing(backend: BackendDep, limit: Limit = None, network: str | None = None) -> list[AllocationOut]:
    chosen = [backend.catalog.network(network)] if network is not None else list(backend.catalog.networks.values())
    held = (one for each in chosen for one in backend.catalog.allocations(each))
    return [_out(backend, one) for one in page(held, limit)]


@router.post(
    "/allocations",
    operation_id="create_allocation",
    summary="Reserve an address",
    status_code=201,
    responses=errors(NotFound, Invalid, AddressOutsideSubnet, AddressTaken, PoolExhausted, *_FAILURES),
)
async def create(body: AllocationCreate, backend: BackendDep, response: Response) -> AllocationOut:
    allocation = await backend.change(partial(allocations.create, request=body))
    response.headers["Location"] = f"/ipam/allocations/{allocation.id}"
    return _out(backend, allocation)


@router.get(
    "/allocations/{allocation_id}",
    operation_id="show_allocation",
    summary="Show a reservation",
    responses=errors(NotFound, Invalid),
)
async def show(allocation_id: str, backend: BackendDep) -> AllocationOut:
    return _out(backend, backend.catalog.allocation(allocation_id))


@router.delete(
    "/allocations/{allocation_id}",
    operation_id="delete_allocation",
    summary="Give a reserved address back",
    status_code=204,
    response_class=Response,
    responses=errors(NotFound, Invalid, EndpointInUse, NetworkInUse, *_FAILURES),
)
async def delete(allocation_id: str, backend: BackendDep) -> None:
    await backend.change(partial(allocations.delete, allocation_id=allocation_id))
