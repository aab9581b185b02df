"""/portmaps."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Response

from app.api.deps import BackendDep, LabelQuery, label_filter
from app.api.docs import errors
from app.api.objects import CHANGED, CREATED, SHOWN, IfMatch, IfNoneMatch, Key, Resource
from app.api.paging import LISTED, PagingDep, by_age
from app.api.schemas import PortmapOut, portmap_out
from app.model.errors import (
    IdempotencyMismatch,
    InternalNetwork,
    Invalid,
    KernelRefused,
    NoGateway,
    NotFound,
    PortTaken,
    PreconditionFailed,
    StoreFailed,
    TooManyPorts,
)
from app.model.spec import Endpoint, Portmap
from app.model.status import Status
from app.services import portmaps
from app.services.context import View
from app.services.etags import matching
from app.services.requests import PortmapCreate, PortmapPatch

router = APIRouter(prefix="/portmaps", tags=["portmaps"])
_FAILURES = (InternalNetwork, NoGateway, PortTaken, TooManyPorts, KernelRefused, StoreFailed)


def _parts(view: View, portmap: Portmap) -> tuple[Portmap, Endpoint, Status]:
    return portmap, view.endpoint(portmap.endpoint_id), view.status(portmap.id)


_PORTMAP = Resource("/portmaps", _parts, portmap_out)


@router.post(
    "",
    operation_id="create_portmap",
    summary="Publish a port",
    status_code=201,
    response_model=PortmapOut,
    responses=CREATED | errors(NotFound, Invalid, IdempotencyMismatch, *_FAILURES),
)
async def create(body: PortmapCreate, backend: BackendDep, key: Key) -> Response:
    return await _PORTMAP.create(backend, key, partial(portmaps.create, request=body), body)


@router.get(
    "",
    operation_id="list_portmaps",
    summary="List port mappings",
    response_model=list[PortmapOut],
    responses=LISTED | errors(NotFound, Invalid),
)
async def listing(
    backend: BackendDep,
    paging: PagingDep,
    label: LabelQuery,
    network: str | None = None,
    endpoint: str | None = None,
) -> Response:
    catalog = backend.catalog
    found = list(catalog.portmaps.values())
    if network is not None:
        members = {one.id for one in catalog.endpoints_on(catalog.network(network))}
        found = [one for one in found if one.endpoint_id in members]
    if endpoint is not None:
        endpoint_id = catalog.endpoint(endpoint).id
        found = [one for one in found if one.endpoint_id == endpoint_id]
    return _PORTMAP.listed(backend, paging.part(found, by_age, label_filter(label)))


@router.get(
    "/{ref}",
    operation_id="show_portmap",
    summary="Show a port mapping",
    response_model=PortmapOut,
    responses=SHOWN | errors(NotFound, Invalid),
)
async def show(ref: str, backend: BackendDep, if_none_match: IfNoneMatch) -> Response:
    return _PORTMAP.found(backend, backend.catalog.portmap(ref), if_none_match)


@router.patch(
    "/{ref}",
    operation_id="change_portmap",
    summary="Change a live port mapping",
    response_model=PortmapOut,
    responses=CHANGED | errors(NotFound, Invalid, PreconditionFailed, *_FAILURES),
)
async def change(ref: str, body: PortmapPatch, backend: BackendDep, if_match: IfMatch) -> Response:
    service = partial(portmaps.update, portmap_id=ref, request=body)
    return await _PORTMAP.change(backend, service, lambda context: context.portmap(ref), if_match)


@router.delete(
    "/{ref}",
    operation_id="delete_portmap",
    summary="Stop publishing a port",
    status_code=204,
    response_class=Response,
    responses=errors(NotFound, Invalid, PreconditionFailed, KernelRefused, StoreFailed),
)
async def delete(ref: str, backend: BackendDep, if_match: IfMatch) -> Response:
    service = partial(portmaps.delete, portmap_id=ref)
    await backend.change(matching(service, lambda context: context.portmap(ref), if_match))
    return Response(status_code=204)
