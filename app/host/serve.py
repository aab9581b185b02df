"""Serving until a signal: the HTTP servers on one event loop, the word to the service manager, and the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import uvicorn
from starlette.types import ASGIApp

from app.host.http import Connection
from app.host.notify import notify, watchdog_seconds

log = logging.getLogger("bridgehead")

GRACE = 10.0
"""Seconds that running requests get when the daemon is told to stop."""
STUCK_AFTER = 120.0
"""Seconds that the worker may be at one batch or one full pass before it counts as stuck."""
_STATUS_EVERY = 10.0
_READY_POLL = 0.05


class Gate(Protocol):
    """What stands before a server's application."""

    async def drain(self, seconds: float) -> None:
        """Lets nothing in any more, and returns when all that is in has left, or the time is over."""


@dataclass(frozen=True, slots=True)
class Served:
    """A listening socket, bound, and what answers on it."""

    where: str
    bound: socket.socket
    application: ASGIApp
    gate: Gate
    tls: ssl.SSLContext | None = None


@dataclass(frozen=True, slots=True)
class Vital:
    """How the daemon fares, as the service manager is told.

    busy: seconds that the worker is at what it does, 0 while it waits.
    """

    ready: Callable[[], bool]
    alive: Callable[[], bool]
    busy: Callable[[], float]
    status: Callable[[], str]

    @property
    def well(self) -> bool:
        return self.alive() and self.busy() < STUCK_AFTER


class _Server(uvicorn.Server):
    """A server that leaves the process's signals to us: there may be two."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _server(one: Served) -> _Server:
    config = uvicorn.Config(
        one.application,
        log_config=None,
        access_log=False,
        lifespan="off",
        http=Connection,
        ws="none",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=1,  # they had theirs at the gate
    )
    config.load()
    config.ssl = one.tls
    return _Server(config)


async def run(served: Sequence[Served], vital: Vital) -> None:
    """Serves until SIGTERM or SIGINT. Requests that run then are finished, later ones are refused."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    servers = [_server(one) for one in served]
    serving = [
        asyncio.create_task(server.serve(sockets=[one.bound])) for server, one in zip(servers, served, strict=True)
    ]
    telling = asyncio.create_task(_tell(vital))
    stopping = asyncio.create_task(stopped.wait())
    try:
        await asyncio.wait([stopping, *serving], return_when=asyncio.FIRST_COMPLETED)
    finally:
        telling.cancel()
        stopping.cancel()
    say("STOPPING=1", "STATUS=finishing what runs; networks stay up")
    await asyncio.gather(*(one.gate.drain(GRACE) for one in served))
    for server in servers:
        server.should_exit = True
    await asyncio.gather(*serving)


async def _tell(vital: Vital) -> None:
    """Tells the service manager when the daemon is ready, and then, while all is well, that it is."""
    while not vital.ready():
        if vital.well:
            say("WATCHDOG=1")
        await asyncio.sleep(_READY_POLL)
    say("READY=1", f"STATUS={vital.status()}")
    within = watchdog_seconds()
    every = min(_STATUS_EVERY, within / 3) if within is not None else _STATUS_EVERY
    told_sick = False
    while True:
        await asyncio.sleep(every)
        if vital.well:
            say("WATCHDOG=1", f"STATUS={vital.status()}")
        elif not told_sick:
            log.error("the worker is %s", "stuck" if vital.alive() else "dead")
            say("STATUS=the worker does not work any more")
        told_sick = not vital.well


def say(*words: str) -> None:
    """Sends to the service manager, where there is one; a manager that does not listen is no reason to stop."""
    try:
        notify(*words)
    except OSError as refusal:
        log.warning("the service manager cannot be told '%s': %s", words[0], refusal)
