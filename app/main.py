"""The only place where the parts are put together: the application, and the daemon around it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn
import uvloop
from fastapi import Depends, FastAPI
from pydantic import ValidationError
from sqlalchemy import Engine
from starlette.types import ASGIApp

import app
from app.api import docs, endpoints, ipam, networks, portmaps, problems, system
from app.api.deps import Backend, known_query
from app.api.middleware import BodyLimit, TokenGuard
from app.firewall.selection import open_firewall
from app.host import claim, listeners
from app.kernel.linux import LinuxKernel
from app.model.errors import BridgeheadError, StartupError
from app.reconcile.worker import Parts, Worker
from app.services.catalog import Catalog
from app.settings import Settings
from app.store.session import is_writable, open_database

log = logging.getLogger("bridgehead")

_GRACE = 10
"""Seconds that running requests get when the daemon is told to stop."""


@dataclass(frozen=True, slots=True)
class _Listener:
    """A listening socket; `guarded`: requests want the token."""

    where: str
    guarded: bool
    bound: socket.socket


def create_app(backend: Backend | None = None) -> FastAPI:
    """The API; without a backend only its schema is of use."""
    application = FastAPI(
        title="Bridgehead",
        version=app.__version__,
        docs_url=None,
        redoc_url=None,
        strict_content_type=False,
        separate_input_output_schemas=False,
    )
    application.state.backend = backend
    for module in (networks, endpoints, portmaps, ipam, system):
        application.include_router(module.router, dependencies=[Depends(known_query)])
    docs.install(application)
    problems.install(application)
    application.add_middleware(BodyLimit)
    return application


def run(settings: Settings) -> int:
    """Serves until SIGTERM or SIGINT; the exit status. What keeps it from starting is one line on stderr."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for chatty in ("uvicorn", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        with contextlib.ExitStack() as stack:
            _serve(settings, stack)
    except StartupError as failure:
        print(f"bridgehead: {failure.detail}", file=sys.stderr)  # noqa: T201 - the command's own words
        return 1
    return 0


def _serve(settings: Settings, stack: contextlib.ExitStack) -> None:
    state_dir = Path(settings.state_dir)
    claim.require_capabilities()
    stack.enter_context(claim.namespace())
    open_sockets = stack.enter_context(_listening(settings))
    stack.enter_context(claim.state_dir(state_dir))
    token = claim.token(state_dir / "token")
    engine = open_database(settings.database_url)
    stack.callback(engine.dispose)
    catalog = Catalog()
    worker = Worker(_parts(settings, engine, catalog))
    try:
        worker.start()
    except BridgeheadError as failure:
        raise StartupError(failure.detail) from failure
    stack.callback(worker.stop)
    backend = Backend(catalog, worker, lambda: is_writable(engine), worker.firewall)
    application = create_app(backend)
    log.info("Bridgehead %s serves %s", app.__version__, ", ".join(one.where for one in open_sockets))
    guarded = TokenGuard(application, token)
    served: list[tuple[ASGIApp, socket.socket]] = [
        (guarded if one.guarded else application, one.bound) for one in open_sockets
    ]
    # what is loaded by now stays: the collector need not walk it, which would pause requests
    gc.collect()
    gc.freeze()
    uvloop.run(_run_servers(served))
    log.info("stopping: networks stay up")


def _parts(settings: Settings, engine: Engine, catalog: Catalog) -> Parts:
    def make_kernel() -> LinuxKernel:
        return LinuxKernel(Path(settings.state_dir))

    return Parts(
        engine=engine,
        catalog=catalog,
        make_kernel=make_kernel,
        make_firewall=lambda: open_firewall(settings.firewall),
        pools=settings.pools,
        resync_seconds=settings.resync,
    )


@contextlib.contextmanager
def _listening(settings: Settings) -> Iterator[list[_Listener]]:
    """The sockets, bound. Raises StartupError."""
    with contextlib.ExitStack() as stack:
        found: list[_Listener] = []
        if settings.socket:
            bound = stack.enter_context(listeners.unix(Path(settings.socket)))
            found.append(_Listener(settings.socket, guarded=False, bound=bound))
        if settings.listen:
            bound = stack.enter_context(listeners.tcp(settings.listen))
            found.append(_Listener(settings.listen, guarded=True, bound=bound))
        if not found:
            raise StartupError("--socket and --listen are both empty: there would be no way to reach the daemon")
        yield found


class _Server(uvicorn.Server):
    """A server that leaves the process's signals to us: there may be two."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _run_servers(served: list[tuple[ASGIApp, socket.socket]]) -> None:
    servers = [
        (
            _Server(
                uvicorn.Config(
                    application,
                    log_config=None,
                    access_log=False,
                    lifespan="off",
                    http="httptools",
                    proxy_headers=False,
                    server_header=False,
                    timeout_graceful_shutdown=_GRACE,
                )
            ),
            bound,
        )
        for application, bound in served
    ]

    def stop() -> None:
        for server, _bound in servers:
            server.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    await asyncio.gather(*(server.serve(sockets=[bound]) for server, bound in servers))


def load_settings(**flags: object) -> Settings:
    """Settings from flags, then environment, then defaults. Raises StartupError."""
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as failure:
        first = failure.errors()[0]
        raise StartupError(
            f"{'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}"
        ) from None
