"""The worker: one thread, the only writer of database and kernel.

A request is planned in an open transaction, applied to the kernel, committed, answered. Healing runs on
the same thread, so that an object being made is never taken for an orphan.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from sqlalchemy import Engine

from app.firewall.protocol import Firewall, report_of
from app.host import heap
from app.model.access import DAEMON
from app.model.contracts import Kernel
from app.model.errors import BridgeheadError, ShuttingDown
from app.model.host import FirewallReport, HostFacts
from app.model.spec import IPNetwork
from app.model.state import ItemKey
from app.reconcile.batch import Requests
from app.reconcile.brake import FAST_REPAIRS, Brake
from app.reconcile.executor import Executor
from app.reconcile.group import Job, Service
from app.reconcile.healer import Healer
from app.reconcile.render import Subject
from app.reconcile.watchlist import Findings, Watchlist
from app.services import audit
from app.services.catalog import Catalog
from app.services.replies import Once, Reply
from app.store.session import read

log = logging.getLogger("bridgehead.worker")

_BATCH = 64
"""Requests that share a commit at most: bounds what one failing commit takes back."""
_BREATH = 0.001
"""Seconds that what nobody waits for is put off after an answer."""
_UNTOLD_MAX = 64
"""Groups of requests whose lines the log waits for at most, where one comes after the other without a break."""
_HEAL_AGAIN = 5.0
"""Seconds until the next full pass where the last one left something undone; doubled each time it does."""


@dataclass(slots=True)
class _Look:
    """A question about the host, answered on the worker's thread."""

    answer: Future[tuple[HostFacts, FirewallReport]] = field(default_factory=Future)


class _Wake:
    """Something may need healing."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the worker works with; kernel and firewall are made on its own thread, to which they belong."""

    engine: Engine
    catalog: Catalog
    make_kernel: Callable[[], Kernel]
    make_firewall: Callable[[], Firewall]
    pools: tuple[tuple[IPNetwork, int], ...]
    resync_seconds: float = 60.0
    fast_repairs: int = FAST_REPAIRS


class Worker:
    """Start it, submit to it, stop it."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._jobs: queue.SimpleQueue[Job | _Look | _Wake | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._main, name="worker", daemon=True)
        self._opened: Future[None] = Future()
        self._passed = threading.Event()
        self._gate = threading.Lock()
        self._stopping = False
        self._busy_since: float | None = None
        self._next_pass = 0.0
        self._patience = _HEAL_AGAIN
        self._lacking: frozenset[ItemKey] = frozenset()
        self._found = Findings()
        self._pointed = False
        self.watchlist = Watchlist()
        """What events are compared with."""

    def start(self) -> None:
        """Returns once kernel and firewall are open and what is stored can be read; the first full pass goes on.

        Raises what refuses it.
        """
        self._thread.start()
        self._opened.result()

    def stop(self) -> None:
        """Finishes what waits, refuses what comes later, and leaves the kernel as it is."""
        with self._gate:
            self._stopping = True
            self._jobs.put(None)
        self._thread.join()

    @property
    def firewall(self) -> str:
        """The name of the backend in use, once started."""
        return self._firewall.name

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def busy_seconds(self) -> float:
        """How long it is at one step of a batch or a full pass by now; 0 while it waits."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - max(since, self._executor.progress_at)

    @property
    def ready(self) -> bool:
        """Whether the first full pass is done."""
        return self._passed.is_set()

    def submit(self, service: Service, once: Once | None = None) -> Future[Subject | Reply]:
        """Queues a change. The future yields its subject once committed, or raises the error to answer with.

        With a key, it yields the answer, which may be that of an earlier request.
        """
        job = Job(service, once)
        with self._gate:
            if self._stopping:
                job.refuse(ShuttingDown("the daemon is shutting down; try again once it is back"))
            else:
                self._jobs.put(job)
        return job.answer

    def report(self, found: Findings) -> None:
        """Has these looked at soon, between two requests; much that is found at once is one look."""
        with self._gate:
            waiting = bool(self._found)
            self._found.add(found)
            if not waiting and found and not self._stopping:
                self._jobs.put(_Wake())

    @property
    def looks(self) -> tuple[int, int]:
        """How many full passes there were, and looks at single objects; once started."""
        return self._healer.passes, self._healer.looks

    def describe(self) -> Future[tuple[HostFacts, FirewallReport]]:
        """The host and its rules as they are now; raises what the kernel refuses."""
        look = _Look()
        with self._gate:
            if self._stopping:
                look.answer.set_exception(ShuttingDown("the daemon is shutting down; try again once it is back"))
            else:
                self._jobs.put(look)
        return look.answer

    # --- the thread

    def _main(self) -> None:
        parts = self._parts
        try:
            self._kernel = parts.make_kernel()
            self._firewall = parts.make_firewall()
            with heap.uncollected():
                store = read(parts.engine)
                parts.catalog.fill(store)
        except Exception as failure:  # noqa: BLE001 - it is raised again in the thread that started this one
            self._opened.set_exception(failure)
            return
        self._executor = Executor(self._kernel, self._firewall)
        engine, catalog, kernel, watchlist = parts.engine, parts.catalog, self._kernel, self.watchlist
        self._requests = Requests(engine, store, catalog, parts.pools, kernel, self._executor, watchlist)
        brake = Brake(parts.resync_seconds, parts.fast_repairs)
        self._healer = Healer(catalog, kernel, self._firewall, self._executor, self._requests, watchlist, brake)
        self._opened.set_result(None)
        last = False
        while not last:
            # nothing is changed before the kernel was seen once
            self._busy_since = time.monotonic()
            if self._busy_since >= self._next_pass:
                self._heal_safely()
            if self._pointed:
                self._heal_found()
            self._kernel.settle()
            self._busy_since = None
            batch, last = self._next_batch()
            self._busy_since = time.monotonic()
            if batch:
                self._run(batch)
        self._requests.tell()
        self._requests.close()
        self._kernel.close()

    def _next_batch(self) -> tuple[list[Job], bool]:
        """The jobs that wait, after waiting for one; and whether they are the last."""
        batch: list[Job] = []
        try:
            entry = self._first_entry()
            while entry is not None:
                if isinstance(entry, _Wake):
                    self._pointed = True
                    return batch, False
                if isinstance(entry, _Look):
                    self._look(entry)
                elif entry.begin():
                    batch.append(entry)
                if len(batch) == _BATCH:
                    return batch, False
                entry = self._jobs.get_nowait()
        except queue.Empty:
            return batch, False
        return batch, True

    def _first_entry(self) -> Job | _Look | _Wake | None:
        """Waits for it. Raises queue.Empty where a full pass is due.

        Where none comes at once, the log is written and the kernel's events are read: whoever was answered, and
        whoever asks next, has the interpreter first.
        """
        untold = len(self._requests.untold)
        if untold >= _UNTOLD_MAX:
            self._requests.tell()
        elif untold:
            try:
                return self._jobs.get(timeout=_BREATH)
            except queue.Empty:
                self._catch_up()
        return self._jobs.get(timeout=max(0.0, self._next_pass - time.monotonic()))

    def _catch_up(self) -> None:
        self._requests.tell()
        try:
            self._kernel.refresh()
        except Exception:
            log.exception("the kernel's events cannot be read: everything is looked at")
            self._next_pass = time.monotonic()

    def _run(self, batch: list[Job]) -> None:
        try:
            again = self._requests.run(batch)
            if again:
                self._heal_safely()
                self._requests.run(again)
        except Exception as failure:
            log.exception("requests failed unexpectedly")
            self._requests.stale = True
            for job in batch:
                job.refuse(failure)
        now = time.monotonic()
        if self._requests.stale:
            self._next_pass = now
        elif self._requests.lacking - self._lacking:
            self._next_pass = min(self._next_pass, now + _HEAL_AGAIN)

    def _look(self, look: _Look) -> None:
        if not look.answer.set_running_or_notify_cancel():
            return  # the client left
        try:
            look.answer.set_result((self._kernel.describe(), report_of(self._firewall)))
        except Exception as failure:  # noqa: BLE001 - it is raised again where it is waited for
            look.answer.set_exception(failure)

    # --- healing

    def _heal_found(self) -> None:
        """What the monitor pointed at; a full pass where events were lost, and later where something is left."""
        self._requests.tell()
        with self._gate:
            found, self._found, self._pointed = self._found, Findings(), False
        if found.missed or not self._passed.is_set():
            self._heal_safely()
            return
        try:
            whole = self._healer.heal(found)
        except BridgeheadError as failure:
            log.warning("not healed, it will be tried again: %s", failure.detail)
            whole = False
        except Exception:
            log.exception("healing failed unexpectedly, it will be tried again")
            whole = False
        if self._requests.stale or self._executor.stuck or not whole:
            self._next_pass = min(self._next_pass, time.monotonic() + _HEAL_AGAIN)

    def _heal_safely(self) -> None:
        self._requests.tell()
        stale, self._requests.stale, self._executor.stuck = self._requests.stale, False, False
        self._requests.lacking.clear()
        try:
            if stale:
                self._read_again()
            lacking = self._healer.full_pass()
            self._passed.set()
            if self._executor.stuck:
                lacking |= {("flows",)}
        except BridgeheadError as failure:
            log.warning("full pass not done, it will be tried again: %s", failure.detail)
            lacking = frozenset({("pass",)})
        except Exception:
            log.exception("full pass failed unexpectedly, it will be tried again")
            lacking = frozenset({("pass",)})
        self._requests.stale |= stale and ("pass",) in lacking
        self._schedule(lacking)

    def _read_again(self) -> None:
        """Whether a commit that failed was one is known by reading only. Raises StoreFailed."""
        words = "its commit was reported as failed, and found written"
        self._requests.store = read(self._parts.engine)
        for key, before, after in self._parts.catalog.fill(self._requests.store):
            audit.changed(self._requests.unsure.get(key, DAEMON), key, before, after, words)
        self._requests.unsure.clear()

    def _schedule(self, lacking: frozenset[ItemKey]) -> None:
        """Soon where something is lacking, later and later where it is the same as before."""
        longest = self._parts.resync_seconds
        same = lacking and lacking == self._lacking
        self._patience = min(self._patience * 2, longest) if same else _HEAL_AGAIN
        self._lacking = lacking
        self._next_pass = time.monotonic() + (min(self._patience, longest) if lacking else longest)
