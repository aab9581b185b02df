"""/portmaps."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Response

from app.api.deps import Backend, BackendDep, LabelQuery, Limit, label_filter
from app.api.docs import errors
from app.api.schemas import PortmapOut, portmap_out
from app.model.errors import (
    InternalNetwork,
    Invalid,
    KernelRefused,
    NoGateway,
    NotFound,
    PortTaken,
    StoreFailed,
    TooManyPorts,
)
from app.model.spec import Portmap
from app.services import portmaps
from app.services.catalog import page
from app.services.requests import PortmapCreate, PortmapPatch

router = APIRouter(prefix="/portmaps", tags=["portmaps"])
_FAILURES = (InternalNetwork, NoGateway, PortTaken, TooManyPorts, KernelRefused, StoreFailed)


def _out(backend: Backend, portmap: Portmap) -> PortmapOut:
    endpoint = backend.catalog.endpoint(portmap.endpoint_id)
    return portmap_out(portmap, endpoint, backend.catalog.status(portmap.id))


@router.post(
    "",
    operation_id="create_portmap",
    summary="Publish a port",
    status_code=201,
    responses=errors(NotFound, Invalid, *_FAILURES),
)
async def create(body: PortmapCreate, backend: BackendDep, response: Response) -> PortmapOut:
    portmap = await backend.change(partial(portmaps.create, request=body))
    response.headers["Location"] = f"/portmaps/{portmap.id}"
    return _out(backend, portmap)


@router.get("", operation_id="list_portmaps", summary="List port mappings", responses=errors(NotFound, Invalid))
async def listing(
    backend: BackendDep,
    limit: Limit = None,
    network: str | None = None,
    endpoint: str | None = None,
    label: LabelQuery = None,
) -> list[PortmapOut]:
    catalog = backend.catalog
    network_id = catalog.network(network).id if network is not None else None
    endpoint_id = catalog.endpoint(endpoint).id if endpoint is not None else None

    def on_network(one: Portmap) -> bool:
        member = catalog.endpoints.get(one.endpoint_id)
        return network_id is None or (member is not None and member.network_id == network_id)

    found = page(
        catalog.portmaps.values(),
        limit,
        label_filter(label),
        on_network,
        lambda one: endpoint_id is None or one.endpoint_id == endpoint_id,
    )
    return [_out(backend, portmap) for portmap in found]


@router.get("/{ref}", operation_id="show_portmap", summary="Show a port mapping", responses=errors(NotFound, Invalid))
async def show(ref: str, backend: BackendDep) -> PortmapOut:
    return _out(backend, backend.catalog.portmap(ref))


@router.patch(
    "/{ref}",
    operation_id="change_portmap",
    summary="Change a live port mapping",
    responses=errors(NotFound, Invalid, *_FAILURES),
)
async def change(ref: str, body: PortmapPatch, backend: BackendDep) -> PortmapOut:
    return _out(backend, await backend.change(partial(portmaps.update, portmap_id=ref, request=body)))


@router.delete(
    "/{ref}",
    operation_id="delete_portmap",
    summary="Stop publishing a port",
    status_code=204,
    response_class=Response,
    responses=errors(NotFound, Invalid, KernelRefused, StoreFailed),
)
async def delete(ref: str, backend: BackendDep) -> None:
    await backend.change(partial(portmaps.delete, portmap_id=ref))
