"""The only place where the parts are put together: the application, and the daemon around it."""

from __future__ import annotations

import contextlib
import gc
import logging
import ssl
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import uvloop
from fastapi import Depends, FastAPI
from pydantic import ValidationError
from sqlalchemy import Engine
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

import app
from app.api import backup, docs, endpoints, ipam, networks, portmaps, problems, system
from app.api.audit import AuditRefusals
from app.api.deps import Backend, known_query
from app.api.direct import Direct
from app.api.guards import HostGuard, PeerGuard, TokenGuard
from app.api.middleware import Admission, BodyLimit, Client, RateLimit, holder, user
from app.firewall.nfnetlink import nf_tables_loaded
from app.firewall.nft_foreign import OUR_TABLE
from app.firewall.selection import open_firewall
from app.host import auditlog, claim, heap, listeners, privileges, serve, tls
from app.host.tokens import TokenStore
from app.kernel.linux import LinuxKernel
from app.model.errors import BridgeheadError, StartupError
from app.reconcile.monitor import Monitor
from app.reconcile.worker import Parts, Worker
from app.services import audit
from app.services.backup import save
from app.services.catalog import Catalog
from app.services.document import Document
from app.settings import Settings
from app.store.session import database_path, is_writable, open_database, read

log = logging.getLogger("bridgehead")

_REQUESTS_MAX = 1024
"""Requests at once, on each listener."""
_READABLE = ["ETag", "Idempotency-Replayed", "Link", "Location", "Retry-After"]
"""What a script of an allowed origin may read of an answer's headers."""


def create_app(backend: Backend | None = None) -> FastAPI:
    """The API; without a backend only its schema is of use."""
    # FastAPI's own field of a body has an alias; it says so itself where a model is built at once
    warnings.filterwarnings("ignore", message="The 'alias' attribute with value 'body'")
    application = FastAPI(
        title="Bridgehead",
        version=app.__version__,
        docs_url=None,
        redoc_url=None,
        strict_content_type=False,
        redirect_slashes=False,
        separate_input_output_schemas=False,
    )
    application.state.backend = backend
    operations: list[BaseRoute] = []
    for module in (networks, endpoints, portmaps, ipam, backup, system):
        application.include_router(module.router, dependencies=[Depends(known_query)])
        operations += module.router.routes
    docs.install(application)
    problems.install(application)
    application.add_middleware(Direct, routes=operations)
    application.add_middleware(BodyLimit)
    return application


def for_socket(application: ASGIApp, settings: Settings) -> Admission:
    """The application as the unix socket has it."""
    guarded = PeerGuard(AuditRefusals(application), allow_foreign=settings.allow_foreign_namespaces)
    return Admission(_limited(guarded, user, settings), _REQUESTS_MAX)


def for_tcp(application: ASGIApp, settings: Settings, tokens: TokenStore) -> Admission:
    """The application as the TCP listener has it."""
    guarded: ASGIApp = TokenGuard(application, tokens.find)
    if settings.cors_origin:
        guarded = CORSMiddleware(
            guarded,
            allow_origins=settings.cors_origin,
            allow_methods=["GET", "POST", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "If-Match", "If-None-Match"],
            expose_headers=_READABLE,
        )
    guarded = AuditRefusals(HostGuard(guarded, settings.host_name))
    return Admission(_limited(guarded, holder(tokens.find), settings), _REQUESTS_MAX)


def _limited(application: ASGIApp, client: Client, settings: Settings) -> ASGIApp:
    if not settings.rate:
        return application
    return RateLimit(application, client, settings.rate, max(1, int(2 * settings.rate)))


def run(settings: Settings) -> int:
    """Serves until SIGTERM or SIGINT; the exit status. What keeps it from starting is one line on stderr."""
    heap.share_one()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    # a record need not find out which line, thread and process it comes from, which takes longer than to write it
    logging._srcfile = None  # Logging HOWTO, "Optimization"
    logging.logThreads = logging.logMultiprocessing = logging.logProcesses = False
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
    claim.require_capabilities()
    _check_database(settings)
    stack.enter_context(claim.namespace())
    bound = stack.enter_context(_listening(settings))
    stack.enter_context(claim.state_dir(Path(settings.state_dir)))
    tokens = TokenStore(Path(settings.state_dir), settings.allow_foreign_namespaces, audit.token_changed)
    tokens.ensure_first()
    context = _tls(settings)
    auditlog.open_file(settings.audit_log)
    engine = open_database(settings.database_url)
    stack.callback(engine.dispose)
    # what wants more rights is done, and no thread is there yet
    privileges.drop()
    # what is loaded by now stays: the collector need not walk it, which would pause requests; nor now, for garbage
    # of which there is next to none
    gc.freeze()
    gc.enable()
    backend, worker = _start_worker(settings, engine, stack)
    application = create_app(backend)
    served = []
    if bound.unix is not None:
        gate = for_socket(application, settings)
        served.append(serve.Served(settings.socket, bound.unix, gate, gate))
    if bound.tcp is not None:
        gate = for_tcp(application, settings, tokens)
        served.append(serve.Served(settings.listen, bound.tcp, gate, gate, context))
    log.info("Bridgehead %s serves %s", app.__version__, ", ".join(one.where for one in served))
    uvloop.run(serve.run(served, _vital(backend, worker)))
    log.info("stopping: networks stay up")


def _check_database(settings: Settings) -> None:
    """Before anything is made for a daemon that will not start. Raises StartupError."""
    place = Path(database_path(settings.database_url)).absolute().parent
    if not place.is_dir() and place != Path(settings.state_dir).absolute():
        raise StartupError(f"database '{settings.database_url}': {place} is no directory; make it, or name another")


def _start_worker(settings: Settings, engine: Engine, stack: contextlib.ExitStack) -> tuple[Backend, Worker]:
    """Raises StartupError."""
    catalog = Catalog()
    worker = Worker(_parts(settings, engine, catalog))
    monitor = Monitor(worker.watchlist, worker.report, rules=OUR_TABLE, nf_tables_loaded=nf_tables_loaded)
    try:
        monitor.start()
        stack.callback(monitor.stop)
        worker.start()
        stack.callback(worker.stop)
    except BridgeheadError as failure:
        raise StartupError(failure.detail) from failure
    except OSError as refusal:
        raise StartupError(f"the kernel's events cannot be heard: {refusal.strerror or refusal}") from refusal
    return Backend(catalog, worker, lambda: is_writable(engine), worker.firewall, lambda: export(engine)), worker


def _vital(backend: Backend, worker: Worker) -> serve.Vital:
    catalog = backend.catalog

    def status() -> str:
        counts = f"{len(catalog.networks)} networks, {len(catalog.endpoints)} endpoints, {len(catalog.portmaps)} ports"
        return f"{counts}; {backend.firewall}"

    return serve.Vital(lambda: worker.ready, lambda: worker.alive, lambda: worker.busy_seconds, status)


def export(engine: Engine) -> Document:
    """The desired state as it is stored. Raises StoreFailed."""
    return save(read(engine))


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
        fast_repairs=settings.fast_repairs,
    )


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if not settings.listen or not settings.tls_cert:
        return None
    return tls.server_context(settings.tls_cert, settings.tls_key, settings.tls_client_ca)


@contextlib.contextmanager
def _listening(settings: Settings) -> Iterator[listeners.Bound]:
    """The sockets, bound. Raises StartupError."""
    with contextlib.ExitStack() as stack:
        if not settings.socket and not settings.listen:
            raise StartupError("--socket and --listen are both empty: there would be no way to reach the daemon")
        anywhere = settings.insecure_listen or bool(settings.tls_cert)
        yield listeners.Bound(
            stack.enter_context(listeners.unix(Path(settings.socket))) if settings.socket else None,
            stack.enter_context(listeners.tcp(settings.listen, anywhere=anywhere)) if settings.listen else None,
        )


def load_settings(**flags: object) -> Settings:
    """Settings from flags, then environment, then defaults. Raises StartupError."""
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as failure:
        first = failure.errors()[0]
        given_as = f", not '{first['input']}'" if first["type"] != "value_error" else ""
        field = ".".join(map(str, first["loc"]))  # empty where it is about several together
        words = first["msg"].removeprefix("Value error, ") + given_as
        raise StartupError(f"{field}: {words}" if field else words) from None
