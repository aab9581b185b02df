"""/ipam: the pools, and who holds which address."""

from __future__ import annotations

from functools import partial
from itertools import chain

from fastapi import APIRouter, Response

from app.api.deps import Backend, BackendDep
from app.api.docs import errors
from app.api.objects import CREATED, SHOWN, IfMatch, IfNoneMatch, Key, Resource, json_list
from app.api.paging import LISTED, PagingDep, Part, by_address, by_age, rest_of
from app.api.schemas import AllocationOut, HolderOut, PoolOut
from app.model.errors import (
    AddressOutsideSubnet,
    AddressTaken,
    EndpointInUse,
    IdempotencyMismatch,
    Invalid,
    KernelRefused,
    NetworkInUse,
    NotFound,
    PoolExhausted,
    PreconditionFailed,
    StoreFailed,
)
from app.model.spec import AddressPlan, Allocation, AllocationKind, Network
from app.services import allocations
from app.services.context import View
from app.services.etags import matching
from app.services.requests import AllocationCreate

router = APIRouter(prefix="/ipam", tags=["ipam"])
_FAILURES = (KernelRefused, StoreFailed)


def _parts(view: View, one: Allocation) -> tuple[Allocation, Network, str]:
    network = view.network(one.network_id)
    return one, network, _holder_name(view, one, network)


def _out(one: Allocation, network: Network, holder: str) -> AllocationOut:
    return AllocationOut(
        id=one.id,
        address=str(one.address),
        network=network.id,
        network_name=network.name,
        holder=HolderOut(kind=one.kind, id=one.id, name=holder),
        note=one.note,
        created_at=one.created_at,
    )


def _holder_name(view: View, one: Allocation, network: Network) -> str:
    if one.kind is AllocationKind.GATEWAY:
        return network.name
    return view.endpoint(one.endpoint_id).name if one.endpoint_id is not None else one.note


_RESERVATION = Resource("/ipam/allocations", _parts, _out)


def _pool(backend: Backend, network: Network, plan: AddressPlan) -> PoolOut:
    size, used, reserved = backend.catalog.pool(network, plan)
    return PoolOut(
        network=network.id,
        network_name=network.name,
        subnet=str(plan.subnet),
        ip_range=str(plan.ip_range),
        size=size,
        used=used,
        reserved=reserved,
        free=size - used - reserved,
    )


def _networks(backend: Backend, ref: str | None) -> list[Network]:
    """The one asked for, or all. Raises NotFound."""
    return [backend.catalog.network(ref)] if ref is not None else list(backend.catalog.networks.values())


@router.get(
    "/pools",
    operation_id="list_pools",
    summary="Count the networks' addresses",
    response_model=list[PoolOut],
    responses=LISTED | errors(NotFound, Invalid),
)
async def pools(backend: BackendDep, paging: PagingDep, network: str | None = None) -> Response:
    plans = [(one, plan) for one in _networks(backend, network) for plan in one.plans]
    part = paging.part(plans, lambda pair: [*by_age(pair[0]), pair[1].version == 6])
    return json_list([_pool(backend, *pair).model_dump_json() for pair in part.values], part.headers)


@router.get(
    "/allocations",
    operation_id="list_allocations",
    summary="Show who holds which address",
    response_model=list[AllocationOut],
    responses=LISTED | errors(NotFound, Invalid),
)
async def listing(backend: BackendDep, paging: PagingDep, network: str | None = None) -> Response:
    chosen, catalog = _networks(backend, network), backend.catalog
    begun, number = paging.within(chosen)
    rest = [begun] if begun is not None else []
    following = rest_of(chosen, by_age, by_age(begun) if begun is not None else paging.after)
    held = chain(
        ((each, one) for each in rest for one in catalog.allocations(each, number)),
        ((each, one) for each in following for one in catalog.allocations(each)),
    )
    part = paging.first(held, lambda pair: by_address(*pair))
    return _RESERVATION.listed(backend, Part([one for _network, one in part.values], part.headers))


@router.post(
    "/allocations",
    operation_id="create_allocation",
    summary="Reserve an address",
    status_code=201,
    response_model=AllocationOut,
    responses=CREATED
    | errors(NotFound, Invalid, IdempotencyMismatch, AddressOutsideSubnet, AddressTaken, PoolExhausted, *_FAILURES),
)
async def create(body: AllocationCreate, backend: BackendDep, key: Key) -> Response:
    return await _RESERVATION.create(backend, key, partial(allocations.create, request=body), body)


@router.get(
    "/allocations/{allocation_id}",
    operation_id="show_allocation",
    summary="Show a reservation",
    response_model=AllocationOut,
    responses=SHOWN | errors(NotFound, Invalid),
)
async def show(allocation_id: str, backend: BackendDep, if_none_match: IfNoneMatch) -> Response:
    return _RESERVATION.found(backend, backend.catalog.allocation(allocation_id), if_none_match)


@router.delete(
    "/allocations/{allocation_id}",
    operation_id="delete_allocation",
    summary="Give a reserved address back",
    status_code=204,
    response_class=Response,
    responses=errors(NotFound, Invalid, EndpointInUse, NetworkInUse, PreconditionFailed, *_FAILURES),
)
async def delete(allocation_id: str, backend: BackendDep, if_match: IfMatch) -> Response:
    service = partial(allocations.delete, allocation_id=allocation_id)
    await backend.change(matching(service, lambda context: context.allocation(allocation_id), if_match))
    return Response(status_code=204)
