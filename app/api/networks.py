"""/networks."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Response

from app.api.deps import BackendDep, Force, LabelQuery, label_filter
from app.api.docs import errors
from app.api.objects import CHANGED, CREATED, SHOWN, IfMatch, IfNoneMatch, Key, Resource
from app.api.paging import LISTED, PagingDep, by_age
from app.api.schemas import NetworkOut, network_out
from app.model.errors import (
    AddressOutsideSubnet,
    AddressTaken,
    IdempotencyMismatch,
    InterfaceExists,
    Invalid,
    KernelRefused,
    NameTaken,
    NetworkInUse,
    NotFound,
    PoolExhausted,
    PreconditionFailed,
    StoreFailed,
    SubnetOverlap,
)
from app.model.spec import Network
from app.model.status import Status
from app.services import networks
from app.services.context import View
from app.services.etags import matching
from app.services.requests import NetworkCreate, NetworkPatch

router = APIRouter(prefix="/networks", tags=["networks"])
_FAILURES = (KernelRefused, StoreFailed)


def _parts(view: View, network: Network) -> tuple[Network, Status]:
    return network, view.status(network.id)


_NETWORK = Resource("/networks", _parts, network_out)


@router.post(
    "",
    operation_id="create_network",
    summary="Make a network",
    status_code=201,
    response_model=NetworkOut,
    responses=CREATED
    | errors(
        Invalid,
        IdempotencyMismatch,
        AddressOutsideSubnet,
        NameTaken,
        SubnetOverlap,
        PoolExhausted,
        InterfaceExists,
        *_FAILURES,
    ),
)
async def create(body: NetworkCreate, backend: BackendDep, key: Key) -> Response:
    return await _NETWORK.create(backend, key, partial(networks.create, request=body), body)


@router.get(
    "",
    operation_id="list_networks",
    summary="List networks",
    response_model=list[NetworkOut],
    responses=LISTED | errors(Invalid),
)
async def listing(backend: BackendDep, paging: PagingDep, label: LabelQuery) -> Response:
    return _NETWORK.listed(backend, paging.part(backend.catalog.networks.values(), by_age, label_filter(label)))


@router.get(
    "/{ref}",
    operation_id="show_network",
    summary="Show a network",
    response_model=NetworkOut,
    responses=SHOWN | errors(NotFound, Invalid),
)
async def show(ref: str, backend: BackendDep, if_none_match: IfNoneMatch) -> Response:
    return _NETWORK.found(backend, backend.catalog.network(ref), if_none_match)


@router.patch(
    "/{ref}",
    operation_id="change_network",
    summary="Change a live network",
    response_model=NetworkOut,
    responses=CHANGED | errors(NotFound, Invalid, AddressOutsideSubnet, AddressTaken, PreconditionFailed, *_FAILURES),
)
async def change(ref: str, body: NetworkPatch, backend: BackendDep, if_match: IfMatch) -> Response:
    service = partial(networks.update, ref=ref, request=body)
    return await _NETWORK.change(backend, service, lambda context: context.network(ref), if_match)


@router.delete(
    "/{ref}",
    operation_id="delete_network",
    summary="Remove a network",
    status_code=204,
    response_class=Response,
    responses=errors(NotFound, Invalid, NetworkInUse, PreconditionFailed, *_FAILURES),
)
async def delete(ref: str, backend: BackendDep, if_match: IfMatch, force: Force = False) -> Response:
    service = partial(networks.delete, ref=ref, force=force)
    await backend.change(matching(service, lambda context: context.network(ref), if_match))
    return Response(status_code=204)
