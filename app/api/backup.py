"""/export and /import: the desired state as one document."""

from __future__ import annotations

import asyncio
from functools import partial

from fastapi import APIRouter, Response

from app.api.deps import BackendDep
from app.api.docs import errors
from app.api.objects import Key, once
from app.api.schemas import ImportOut
from app.model.errors import (
    AddressOutsideSubnet,
    AddressTaken,
    BridgeFull,
    Forbidden,
    IdempotencyMismatch,
    InterfaceExists,
    Invalid,
    KernelRefused,
    NameTaken,
    NotEmpty,
    NotFound,
    PortTaken,
    StoreFailed,
    SubnetOverlap,
)
from app.services import backup
from app.services.context import Object, View
from app.services.document import Document
from app.services.replies import Reply

router = APIRouter(tags=["system"])


@router.get(
    "/export",
    operation_id="export",
    summary="The desired state, as one document",
    response_model=Document,
    responses=errors(Forbidden, StoreFailed),
)
async def export(backend: BackendDep) -> Response:
    if backend.principal.networks is not None:
        raise Forbidden(f"{backend.principal.name} is for some networks only; use a token without --network")
    document = await asyncio.to_thread(backend.export)
    return Response(document.model_dump_json(), media_type="application/json")


@router.post(
    "/import",
    operation_id="import",
    summary="Make all that a document has, or nothing",
    responses=errors(
        NotFound,
        Invalid,
        IdempotencyMismatch,
        NotEmpty,
        NameTaken,
        AddressTaken,
        AddressOutsideSubnet,
        SubnetOverlap,
        PortTaken,
        InterfaceExists,
        BridgeFull,
        KernelRefused,
        StoreFailed,
    ),
)
async def restore(body: Document, backend: BackendDep, key: Key, response: Response) -> ImportOut:
    made = ImportOut(
        networks=len(body.networks),
        endpoints=len(body.endpoints),
        portmaps=len(body.portmaps),
        reservations=len(body.reservations),
    )

    def reply(_view: View, _subject: Object | None) -> Reply:
        return Reply(200, made.model_dump_json())

    answer = await backend.change(partial(backup.restore, document=body), once("/import", key, body, reply))
    if isinstance(answer, Reply) and answer.replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return made
