"""/endpoints."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Response

from app.api.deps import Backend, BackendDep, Force, LabelQuery, Limit, label_filter
from app.api.docs import errors
from app.api.schemas import EndpointOut, endpoint_out
from app.model.errors import (
    AddressOutsideSubnet,
    AddressTaken,
    BridgeFull,
    EndpointInUse,
    InterfaceExists,
    Invalid,
    KernelRefused,
    NamespaceMissing,
    NameTaken,
    NotFound,
    PoolExhausted,
    StoreFailed,
)
from app.model.spec import Endpoint, NetnsKind
from app.services import endpoints
from app.services.catalog import page
from app.services.requests import EndpointCreate, EndpointPatch

router = APIRouter(prefix="/endpoints", tags=["endpoints"])
_FAILURES = (KernelRefused, StoreFailed)


def _out(backend: Backend, endpoint: Endpoint) -> EndpointOut:
    network = backend.catalog.network(endpoint.network_id)
    return endpoint_out(endpoint, network, backend.catalog.status(endpoint.id))


@router.post(
    "",
    operation_id="create_endpoint",
    summary="Connect a namespace to a network",
    status_code=201,
    responses=errors(
        NotFound,
        NamespaceMissing,
        Invalid,
        AddressOutsideSubnet,
        NameTaken,
        AddressTaken,
        PoolExhausted,
        InterfaceExists,
        BridgeFull,
        *_FAILURES,
    ),
)
async def create(body: EndpointCreate, backend: BackendDep, response: Response) -> EndpointOut:
    endpoint = await backend.change(partial(endpoints.create, request=body))
    response.headers["Location"] = f"/endpoints/{endpoint.id}"
    return _out(backend, endpoint)


@router.get("", operation_id="list_endpoints", summary="List endpoints", responses=errors(NotFound, Invalid))
async def listing(
    backend: BackendDep,
    limit: Limit = None,
    network: str | None = None,
    namespace: str | None = None,
    label: LabelQuery = None,
) -> list[EndpointOut]:
    network_id = backend.catalog.network(network).id if network is not None else None
    found = page(
        backend.catalog.endpoints.values(),
        limit,
        label_filter(label),
        lambda one: network_id is None or one.network_id == network_id,
        lambda one: namespace is None or (one.netns.kind is NetnsKind.NAME and one.netns.value == namespace),
    )
    return [_out(backend, endpoint) for endpoint in found]


@router.get("/{ref}", operation_id="show_endpoint", summary="Show an endpoint", responses=errors(NotFound, Invalid))
async def show(ref: str, backend: BackendDep) -> EndpointOut:
    return _out(backend, backend.catalog.endpoint(ref))


@router.patch(
    "/{ref}",
    operation_id="change_endpoint",
    summary="Change a live endpoint",
    responses=errors(NotFound, Invalid, NameTaken, *_FAILURES),
)
async def change(ref: str, body: EndpointPatch, backend: BackendDep) -> EndpointOut:
    return _out(backend, await backend.change(partial(endpoints.update, ref=ref, request=body)))


@router.delete(
    "/{ref}",
    operation_id="delete_endpoint",
    summary="Disconnect an endpoint",
    status_code=204,
    response_class=Response,
    responses=errors(NotFound, Invalid, EndpointInUse, *_FAILURES),
)
async def delete(ref: str, backend: BackendDep, force: Force = False) -> None:
    await backend.change(partial(endpoints.delete, ref=ref, force=force))
