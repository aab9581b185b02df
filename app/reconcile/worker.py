"""The worker: one thread, the only writer of database and kernel.

A request is planned in an open transaction, applied to the kernel, committed, answered. Requests that
wait together share one transaction, a savepoint each, and one commit. Healing runs on the same thread,
so that an object being made is never taken for an orphan.
"""

from __future__ import annotations

import errno
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session

from app.firewall.protocol import Firewall, report_of, trouble_of
from app.model.contracts import Kernel
from app.model.errors import BridgeheadError, KernelRefused, NamespaceMissing, ShuttingDown
from app.model.host import FirewallReport, HostFacts
from app.model.ops import Op
from app.model.spec import IPNetwork
from app.model.state import Item, ItemKey
from app.planner.diff import diff
from app.reconcile.executor import Executor, Outcome
from app.reconcile.healing import heal
from app.reconcile.render import Rendered, Subject, all_keys, render
from app.reconcile.statuses import publish_statuses
from app.services.catalog import Catalog
from app.services.context import Change, Context, Key
from app.store.repository import Repository
from app.store.session import store_failed, transaction

log = logging.getLogger("bridgehead.worker")

Service = Callable[[Context], Change]
_BATCH = 64
"""Requests that share a commit at most: bounds what one failing commit takes back."""
_HEAL_AGAIN = 5.0
"""Seconds until the next full pass where the last one left something undone."""


class _Drifted(Exception):
    """The kernel is not as it was left: a full pass comes first, then the request once more."""


@dataclass(slots=True)
class Job:
    """A request on its way: what it does, and where its answer goes."""

    service: Service
    answer: Future[Subject] = field(default_factory=Future)
    healed: bool = False


@dataclass(slots=True)
class _Look:
    """A question about the host, answered on the worker's thread."""

    answer: Future[tuple[HostFacts, FirewallReport]] = field(default_factory=Future)


@dataclass(slots=True)
class _Applied:
    """A job whose kernel part is done and whose commit is to come."""

    job: Job
    change: Change
    rendered: dict[Key, Rendered]
    former: dict[Key, dict[ItemKey, Item]]
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Parts:
    """What the worker works with; kernel and firewall are made on its own thread, to which they belong."""

    engine: Engine
    catalog: Catalog
    make_kernel: Callable[[], Kernel]
    make_firewall: Callable[[], Firewall]
    pools: tuple[tuple[IPNetwork, int], ...]
    resync_seconds: float = 60.0


class Worker:
    """Start it, submit to it, stop it."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._jobs: queue.SimpleQueue[Job | _Look | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._main, name="worker", daemon=True)
        self._opened: Future[None] = Future()
        self._passed = threading.Event()
        self._stopping = False
        self._applied: dict[Key, dict[ItemKey, Item]] = {}
        self._next_pass = 0.0

    def start(self) -> None:
        """Returns once kernel and firewall are open; the first full pass goes on. Raises what they refuse."""
        self._thread.start()
        self._opened.result()

    def stop(self) -> None:
        """Finishes what waits, refuses what comes later, and leaves the kernel as it is."""
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
    def ready(self) -> bool:
        """Whether the first full pass is done."""
        return self._passed.is_set()

    def submit(self, service: Service) -> Future[Subject]:
        """Queues a change. The future yields its subject once committed, or raises the error to answer with."""
        job = Job(service)
        if self._stopping:
            job.answer.set_exception(ShuttingDown("the daemon is shutting down; try again once it is back"))
        else:
            self._jobs.put(job)
        return job.answer

    def describe(self) -> Future[tuple[HostFacts, FirewallReport]]:
        """The host and its rules as they are now; raises what the kernel refuses."""
        look = _Look()
        if self._stopping:
            look.answer.set_exception(ShuttingDown("the daemon is shutting down; try again once it is back"))
        else:
            self._jobs.put(look)
        return look.answer

    # --- the thread

    def _main(self) -> None:
        try:
            self._kernel = self._parts.make_kernel()
            self._firewall = self._parts.make_firewall()
        except Exception as failure:  # noqa: BLE001 - it is raised again in the thread that started this one
            self._opened.set_exception(failure)
            return
        self._executor = Executor(self._kernel, self._firewall)
        self._opened.set_result(None)
        last = False
        while not last:
            # nothing is answered before the kernel was seen once
            if time.monotonic() >= self._next_pass:
                self._heal_safely()
            batch, last = self._next_batch()
            if batch:
                self._run(batch)
        self._kernel.close()

    def _next_batch(self) -> tuple[list[Job], bool]:
        """The jobs that wait, after waiting for one; and whether they are the last."""
        batch: list[Job] = []
        try:
            entry = self._jobs.get(timeout=max(0.0, self._next_pass - time.monotonic()))
            while entry is not None:
                self._look(entry) if isinstance(entry, _Look) else batch.append(entry)
                if len(batch) == _BATCH:
                    return batch, False
                entry = self._jobs.get_nowait()
        except queue.Empty:
            return batch, False
        return batch, True

    def _look(self, look: _Look) -> None:
        try:
            look.answer.set_result((self._kernel.describe(), report_of(self._firewall)))
        except Exception as failure:  # noqa: BLE001 - it is raised again where it is waited for
            look.answer.set_exception(failure)

    def _heal_safely(self) -> None:
        try:
            self._full_pass()
        except BridgeheadError as failure:
            log.warning("full pass not done, it will be tried again: %s", failure.detail)
            self._next_pass = time.monotonic() + _HEAL_AGAIN
        except Exception:
            log.exception("full pass failed unexpectedly, it will be tried again")
            self._next_pass = time.monotonic() + _HEAL_AGAIN

    def _full_pass(self) -> None:
        """Brings the kernel to the database, whatever is there."""
        with transaction(self._parts.engine) as session:
            store = Repository(session)
            rendered = {key: render(store, key) for key in all_keys(store)}
        for key, one in rendered.items():
            if one.subject is not None:
                self._parts.catalog.put(key, one.subject)
        healed = heal(self._kernel, self._firewall, self._executor, rendered)
        self._applied = healed.applied
        publish_statuses(self._parts.catalog, rendered, healed.refused, self._obstacle)
        wait = _HEAL_AGAIN if healed.refused else self._parts.resync_seconds
        self._next_pass = time.monotonic() + wait
        self._passed.set()

    # --- requests

    def _run(self, batch: list[Job]) -> None:
        applied: list[_Applied] = []
        again: list[Job] = []
        with Session(self._parts.engine, expire_on_commit=False) as session:
            for job in batch:
                try:
                    applied.append(self._apply(session, job))
                except _Drifted:
                    job.healed = True
                    again.append(job)
                except BridgeheadError as refusal:
                    job.answer.set_exception(refusal)
                except SQLAlchemyError as failure:
                    job.answer.set_exception(store_failed(failure))
                except Exception as failure:
                    log.exception("a request failed unexpectedly")
                    job.answer.set_exception(failure)
            try:
                session.commit()
            except SQLAlchemyError as failure:
                session.rollback()
                self._take_back(applied, store_failed(failure))
                applied = []
        for one in applied:
            self._publish(one)
            one.job.answer.set_result(_subject(one))
        if again:
            self._heal_safely()
            self._run(again)

    def _apply(self, session: Session, job: Job) -> _Applied:
        """One request within its savepoint: the store changed, the kernel changed, nothing committed."""
        self._kernel.refresh()
        store = Repository(session)
        outcome = Outcome()
        try:
            with session.begin_nested():
                change = job.service(Context(store, self._kernel, self._parts.pools))
                rendered = {key: render(store, key) for key in change.keys}
                former = {key: self._applied.get(key, {}) for key in change.keys}
                outcome = self._execute(job, _plan(rendered, former))
                self._record(rendered, outcome.refused)
                self._raise_stuck(outcome)
        except SQLAlchemyError:
            self._executor.undo(outcome.done)
            self._next_pass = time.monotonic()
            raise
        return _Applied(job, change, rendered, former, outcome)

    def _execute(self, job: Job, ops: list[Op]) -> Outcome:
        """Raises _Drifted, once, where the refusal shows that somebody took away what the plan stands on."""
        try:
            return self._executor.run(ops)
        except (KernelRefused, NamespaceMissing) as refusal:
            gone = isinstance(refusal, NamespaceMissing) or refusal.errno in (errno.ENODEV, errno.ENOENT)
            if gone and not job.healed:
                raise _Drifted from refusal
            raise

    def _raise_stuck(self, outcome: Outcome) -> None:
        """Raises where something would not go; what went with it is built again, for its object is still wanted."""
        for op, refusal in outcome.refused:
            if op.after is None:
                self._next_pass = time.monotonic()
                raise refusal

    def _record(self, rendered: dict[Key, Rendered], refused: Iterable[tuple[Op, BridgeheadError]]) -> None:
        """Remembers the state reached, not the state meant."""
        missing = {op.item.key for op, _refusal in refused}
        for key, one in rendered.items():
            reached = {item_key: item for item_key, item in one.items.items() if item_key not in missing}
            self._applied[key] = reached
            if not reached:
                del self._applied[key]

    def _take_back(self, applied: list[_Applied], failure: BridgeheadError) -> None:
        for one in reversed(applied):
            self._executor.undo(one.outcome.done)
            self._applied.update(one.former)
            one.job.answer.set_exception(failure)

    def _publish(self, one: _Applied) -> None:
        for key, rendered in one.rendered.items():
            if key[0] in ("network", "endpoint", "portmap", "allocation"):
                self._parts.catalog.put(key, rendered.subject)
        publish_statuses(self._parts.catalog, one.rendered, one.outcome.refused, self._obstacle)

    def _obstacle(self, owner: str) -> str:
        return trouble_of(self._firewall, owner)


def _subject(one: _Applied) -> Subject:
    """The object that the answer shows, as this change left it; None where it is gone."""
    return next((shown.subject for key, shown in one.rendered.items() if key[1] == one.change.subject), None)


def _plan(rendered: dict[Key, Rendered], former: dict[Key, dict[ItemKey, Item]]) -> list[Op]:
    desired: dict[ItemKey, Item] = {}
    observed: dict[ItemKey, Item] = {}
    for one in rendered.values():
        desired |= one.items
    for items in former.values():
        observed |= items
    return diff(desired, observed)
