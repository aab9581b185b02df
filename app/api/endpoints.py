"""/endpoints."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Response

from app.api.deps import BackendDep, Force, LabelQuery, label_filter
from app.api.docs import errors
from app.api.objects import CHANGED, CREATED, SHOWN, IfMatch, IfNoneMatch, Key, Resource
from app.api.paging import LISTED, PagingDep, by_age
from app.api.schemas import EndpointOut, endpoint_out
from app.model.errors import (
    AddressOutsideSubnet,
    AddressTaken,
    BridgeFull,
    EndpointInUse,
    IdempotencyMismatch,
    InterfaceExists,
    Invalid,
    KernelRefused,
    NamespaceMissing,
    NameTaken,
    NotFound,
    PoolExhausted,
    PreconditionFailed,
    StoreFailed,
)
from app.model.spec import Endpoint, NetnsKind, Network
from app.model.status import Status
from app.services import endpoints
from app.services.context import View
from app.services.etags import matching
from app.services.requests import EndpointCreate, EndpointPatch

router = APIRouter(prefix="/endpoints", tags=["endpoints"])
_FAILURES = (KernelRefused, StoreFailed)


def _parts(view: View, endpoint: Endpoint) -> tuple[Endpoint, Network, Status]:
    return endpoint, view.network(endpoint.network_id), view.status(endpoint.id)


_ENDPOINT = Resource("/endpoints", _parts, endpoint_out)


@router.post(
    "",
    operation_id="create_endpoint",
    summary="Connect a namespace to a network",
    status_code=201,
    response_model=EndpointOut,
    responses=CREATED
    | errors(
        NotFound,
        NamespaceMissing,
        Invalid,
        IdempotencyMismatch,
        AddressOutsideSubnet,
        NameTaken,
        AddressTaken,
        PoolExhausted,
        InterfaceExists,
        BridgeFull,
        *_FAILURES,
    ),
)
async def create(body: EndpointCreate, backend: BackendDep, key: Key) -> Response:
    return await _ENDPOINT.create(backend, key, partial(endpoints.create, request=body), body)


@router.get(
    "",
    operation_id="list_endpoints",
    summary="List endpoints",
    response_model=list[EndpointOut],
    responses=LISTED | errors(NotFound, Invalid),
)
async def listing(
    backend: BackendDep,
    paging: PagingDep,
    label: LabelQuery,
    network: str | None = None,
    namespace: str | None = None,
) -> Response:
    catalog = backend.catalog
    members = catalog.endpoints.values() if network is None else catalog.endpoints_on(catalog.network(network))

    def within(one: Endpoint) -> bool:
        return one.netns.kind is NetnsKind.NAME and one.netns.value == namespace

    found = paging.part(members, by_age, label_filter(label), within if namespace is not None else None)
    return _ENDPOINT.listed(backend, found)


@router.get(
    "/{ref}",
    operation_id="show_endpoint",
    summary="Show an endpoint",
    response_model=EndpointOut,
    responses=SHOWN | errors(NotFound, Invalid),
)
async def show(ref: str, backend: BackendDep, if_none_match: IfNoneMatch) -> Response:
    return _ENDPOINT.found(backend, backend.catalog.endpoint(ref), if_none_match)


@router.patch(
    "/{ref}",
    operation_id="change_endpoint",
    summary="Change a live endpoint",
    response_model=EndpointOut,
    responses=CHANGED | errors(NotFound, Invalid, NameTaken, PreconditionFailed, *_FAILURES),
)
async def change(ref: str, body: EndpointPatch, backend: BackendDep, if_match: IfMatch) -> Response:
    service = partial(endpoints.update, ref=ref, request=body)
    return await _ENDPOINT.change(backend, service, lambda context: context.endpoint(ref), if_match)


@router.delete(
    "/{ref}",
    operation_id="delete_endpoint",
    summary="Disconnect an endpoint",
    status_code=204,
    response_class=Response,
    responses=errors(NotFound, Invalid, EndpointInUse, PreconditionFailed, *_FAILURES),
)
async def delete(ref: str, backend: BackendDep, if_match: IfMatch, force: Force = False) -> Response:
    service = partial(endpoints.delete, ref=ref, force=force)
    await backend.change(matching(service, lambda context: context.endpoint(ref), if_match))
    return Response(status_code=204)
