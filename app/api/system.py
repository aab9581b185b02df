"""Health, readiness, version, and the host."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Response

import app
from app.api.deps import BackendDep
from app.api.docs import errors
from app.api.hostout import HostOut, host_out
from app.api.schemas import HealthOut, ReadyOut, VersionOut
from app.model.errors import KernelRefused, ShuttingDown

router = APIRouter(tags=["system"])


@router.get("/healthz", operation_id="health", summary="The process is up")
async def health() -> HealthOut:
    return HealthOut(status="ok")


@router.get(
    "/readyz",
    operation_id="ready",
    summary="Ready for changes",
    response_model=ReadyOut,
    responses={503: {"model": ReadyOut, "description": "Not ready yet, or not any more"}},
)
async def ready(backend: BackendDep) -> Response:
    writable = await asyncio.to_thread(backend.database_writable)
    found = ReadyOut(
        ready=backend.worker.alive and backend.worker.ready and writable,
        reconciled=backend.worker.ready,
        worker=backend.worker.alive,
        database=writable,
    )
    # the short way: while the daemon starts, whoever waits for it asks again and again
    return Response(found.model_dump_json(), 200 if found.ready else 503, media_type="application/json")


@router.get("/version", operation_id="version", summary="Which version this is")
async def version(backend: BackendDep) -> VersionOut:
    return VersionOut(version=app.__version__, firewall=backend.firewall)


@router.get(
    "/host",
    operation_id="host",
    summary="The host and its rules, looked at now",
    responses=errors(KernelRefused, ShuttingDown),
)
async def host(backend: BackendDep) -> HostOut:
    facts, firewall = await asyncio.wrap_future(backend.worker.describe())
    return host_out(facts, firewall, list(backend.catalog.networks.values()))
