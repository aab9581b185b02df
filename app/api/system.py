"""Health, readiness, version."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Response

import app
from app.api.deps import BackendDep
from app.api.schemas import HealthOut, ReadyOut, VersionOut

router = APIRouter(tags=["system"])


@router.get("/healthz", operation_id="health", summary="The process is up")
async def health() -> HealthOut:
    return HealthOut(status="ok")


@router.get(
    "/readyz",
    operation_id="ready",
    summary="Ready for changes",
    responses={503: {"model": ReadyOut, "description": "Not ready yet, or not any more"}},
)
async def ready(backend: BackendDep, response: Response) -> ReadyOut:
    writable = await asyncio.to_thread(backend.database_writable)
    found = ReadyOut(
        ready=backend.worker.alive and backend.worker.ready and writable,
        reconciled=backend.worker.ready,
        worker=backend.worker.alive,
        database=writable,
    )
    response.status_code = 200 if found.ready else 503
    return found


@router.get("/version", operation_id="version", summary="Which version this is")
async def version(backend: BackendDep) -> VersionOut:
    return VersionOut(version=app.__version__, firewall=backend.firewall)
