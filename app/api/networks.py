"""/networks."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Response

from app.api.deps import BackendDep, Force, LabelQuery, Limit, label_filter
from app.api.docs import errors
from app.api.schemas import NetworkOut, network_out
from app.model.errors import (
    AddressOutsideSubnet,
    AddressTaken,
    InterfaceExists,
    Invalid,
    KernelRefused,
    NameTaken,
    NetworkInUse,
    NotFound,
    PoolExhausted,
    StoreFailed,
    SubnetOverlap,
)
from app.services import networks
from app.services.catalog import page
from app.services.requests import NetworkCreate, NetworkPatch

router = APIRouter(prefix="/networks", tags=["networks"])
_FAILURES = (KernelRefused, StoreFailed)


@router.post(
    "",
    operation_id="create_network",
    summary="Make a network",
    status_code=201,
    responses=errors(
        Invalid, AddressOutsideSubnet, NameTaken, SubnetOverlap, PoolExhausted, InterfaceExists, *_FAILURES
    ),
)
async def create(body: NetworkCreate, backend: BackendDep, response: Response) -> NetworkOut:
    network = await backend.change(partial(networks.create, request=body))
    response.headers["Location"] = f"/networks/{network.id}"
    return network_out(network, backend.catalog.status(network.id))


@router.get("", operation_id="list_networks", summary="List networks", responses=errors(Invalid))
async def listing(backend: BackendDep, limit: Limit = None, label: LabelQuery = None) -> list[NetworkOut]:
    found = page(backend.catalog.networks.values(), limit, label_filter(label))
    return [network_out(network, backend.catalog.status(network.id)) for network in found]


@router.get("/{ref}", operation_id="show_network", summary="Show a network", responses=errors(NotFound, Invalid))
async def show(ref: str, backend: BackendDep) -> NetworkOut:
    network = backend.catalog.network(ref)
    return network_out(network, backend.catalog.status(network.id))


@router.patch(
    "/{ref}",
    operation_id="change_network",
    summary="Change a live network",
    responses=errors(NotFound, Invalid, AddressOutsideSubnet, AddressTaken, *_FAILURES),
)
async def change(ref: str, body: NetworkPatch, backend: BackendDep) -> NetworkOut:
    network = await backend.change(partial(networks.update, ref=ref, request=body))
    return network_out(network, backend.catalog.status(network.id))


@router.delete(
    "/{ref}",
    operation_id="delete_network",
    summary="Remove a network",
    status_code=204,
    response_class=Response,
    responses=errors(NotFound, Invalid, NetworkInUse, *_FAILURES),
)
async def delete(ref: str, backend: BackendDep, force: Force = False) -> None:
    await backend.change(partial(networks.delete, ref=ref, force=force))
