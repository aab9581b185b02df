"""Requests that wait together: planned in one open transaction, applied to the kernel, committed, answered."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session

from app.model.contracts import Kernel
from app.model.errors import BridgeheadError, Forbidden
from app.model.ops import Op
from app.model.spec import IPNetwork
from app.model.state import Attachment, Item, ItemKey
from app.planner.diff import diff
from app.reconcile.executor import Executor, Outcome, is_gone
from app.reconcile.render import Rendered, Subject, render
from app.reconcile.statuses import publish_statuses
from app.reconcile.watchlist import Watchlist
from app.services import audit
from app.services.catalog import Catalog
from app.services.context import Change, Context, Key
from app.services.replies import Once, Reply, Uncommitted
from app.store.repository import Repository
from app.store.session import require_room, store_failed

log = logging.getLogger("bridgehead.worker")

Service = Callable[[Context], Change]
Applied = dict[Key, dict[ItemKey, Item]]


class _Drifted(Exception):
    """The kernel is not as it was left: a full pass comes first, then the request once more."""


@dataclass(slots=True)
class Job:
    """A request on its way: what it does, and where its answer goes."""

    service: Service
    once: Once | None = None
    answer: Future[Subject | Reply] = field(default_factory=Future)
    healed: bool = False

    def begin(self) -> bool:
        """Whether somebody still waits for it; from then on nobody can call it off."""
        return self.answer.set_running_or_notify_cancel()

    def refuse(self, failure: BaseException) -> None:
        """Answers, unless it was answered before."""
        if not self.answer.done():
            self.answer.set_exception(failure)


@dataclass(slots=True)
class _Done:
    """A job whose kernel part is done and whose commit is to come."""

    job: Job
    change: Change
    rendered: dict[Key, Rendered]
    former: Applied
    outcome: Outcome
    reply: Reply | None


class Requests:
    """Runs jobs, on the worker's thread.

    applied: the state reached, by key. stale: a full pass is due, for something could not be left as it
    should be. lacking: what was refused of other objects than those that were asked for. dead: endpoints
    whose namespace is gone, by id, and how, as of the last look.
    """

    def __init__(
        self,
        engine: Engine,
        catalog: Catalog,
        pools: tuple[tuple[IPNetwork, int], ...],
        kernel: Kernel,
        executor: Executor,
        watchlist: Watchlist,
    ) -> None:
        self._engine = engine
        self._catalog = catalog
        self._pools = pools
        self._kernel = kernel
        self._executor = executor
        self._watchlist = watchlist
        self.dead: dict[str, str] = {}
        self.applied: Applied = {}
        self.stale = False
        self.lacking: set[ItemKey] = set()

    def run(self, jobs: list[Job]) -> list[Job]:
        """Answers them; gives back those that want a full pass first, and then another try."""
        done: list[_Done] = []
        again: list[Job] = []
        with Session(self._engine, expire_on_commit=False) as session:
            try:
                database = session.connection().connection.driver_connection
                for job in jobs:
                    self._run_one(session, database, job, done, again)
                if done:
                    session.commit()
            except SQLAlchemyError as failure:
                _abandon(session)
                self._take_back(done, jobs, again, store_failed(failure))
                done = []
        for one in done:
            self._publish(one)
            one.job.answer.set_result(one.reply or _subject(one.change, one.rendered))
        self.stale |= self._executor.stuck
        return again

    def _run_one(self, session: Session, database: Any, job: Job, done: list[_Done], again: list[Job]) -> None:
        """Raises SQLAlchemyError where the transaction itself is lost, with all that was done in it."""
        try:
            done.append(self._apply(session, job))
        except _Drifted:
            job.healed = True
            again.append(job)
        except BridgeheadError as refusal:
            job.refuse(refusal)
        except SQLAlchemyError as failure:
            # SQLite takes back the whole of a transaction by itself where, for one, the disk is full
            if not database.in_transaction:
                raise
            job.refuse(store_failed(failure))
        except Exception as failure:
            log.exception("a request failed unexpectedly")
            job.refuse(failure)

    def _apply(self, session: Session, job: Job) -> _Done:
        """One request within its savepoint: the store changed, the kernel changed, nothing committed."""
        self._kernel.refresh()
        store = Repository(session)
        former: Applied = {}
        outcome = Outcome()
        try:
            with session.begin_nested():
                context = Context(store, self._kernel, self._pools, progress=self._executor.progress)
                if job.once is not None and (reply := job.once.recall(store, context.now)) is not None:
                    _require_allowed(session, job.once, job.service, context)
                    return _Done(job, Change("", ()), {}, {}, outcome, reply)
                change = job.service(context)
                rendered = {key: render(store, key, self.dead) for key in change.keys}
                former = {key: self.applied.get(key, {}) for key in change.keys}
                require_room(self._engine)
                outcome = self._execute(job, _plan(rendered, former), own=change.subject)
                _raise_refused(job, outcome)
                reply = self._keep(job.once, context, change, rendered, outcome)
                self._record(rendered, outcome.refused)
        except Exception:
            if outcome.done:
                self._undo(outcome, former)
            raise
        return _Done(job, change, rendered, former, outcome, reply)

    def _keep(
        self, once: Once | None, context: Context, change: Change, rendered: dict[Key, Rendered], outcome: Outcome
    ) -> Reply | None:
        """Writes the answer of a request with a key beside what it made, as it will be once that is committed."""
        if once is None:
            return None
        statuses = Catalog()
        publish_statuses(statuses, rendered, outcome.refused, self._executor.hindrance)
        reply = once.reply(Uncommitted(context, statuses), _subject(change, rendered))
        once.keep(context.store, context.now, reply)
        return reply

    def _execute(self, job: Job, ops: list[Op], own: str) -> Outcome:
        """Raises _Drifted, once, where the refusal shows that somebody took away what the plan stands on."""
        try:
            return self._executor.run(ops, own)
        except BridgeheadError as refusal:
            if is_gone(refusal) and not job.healed:
                raise _Drifted from refusal
            raise

    def _undo(self, outcome: Outcome, former: Applied) -> None:
        self._executor.undo(outcome.done)
        self.applied.update(former)
        self.stale = True

    def _record(self, rendered: dict[Key, Rendered], refused: list[tuple[Op, BridgeheadError]]) -> None:
        """Remembers the state reached, not the state meant."""
        short = {op.item.key: op.before for op, _refusal in refused}
        for key, one in rendered.items():
            reached = reached_items(one.items, short)
            if reached:
                self.applied[key] = reached
            else:
                self.applied.pop(key, None)
        self.lacking.update(op.item.key for op, _refusal in refused if op.after is not None)

    def _take_back(self, done: list[_Done], jobs: Iterable[Job], again: list[Job], failure: BridgeheadError) -> None:
        """The kernel goes back to what is stored, and everybody gets the failure but those that are tried again."""
        for one in reversed(done):
            self._undo(one.outcome, one.former)
        for job in jobs:
            if not any(job is other for other in again):
                job.refuse(failure)

    def _publish(self, one: _Done) -> None:
        for key, rendered in one.rendered.items():
            self._watchlist.put(key, rendered.items)
            if rendered.subject is None:
                self.dead.pop(key[1], None)
            if key[0] in ("network", "endpoint", "portmap", "allocation"):
                audit.changed(one.change.by, key, self._catalog.held(key), rendered.subject)
                self._catalog.put(key, rendered.subject)
        publish_statuses(self._catalog, one.rendered, one.outcome.refused, self._executor.hindrance)


def _require_allowed(session: Session, once: Once, service: Service, context: Context) -> None:
    """Raises Forbidden where whoever asks again may not make the change (any more): it is tried, and taken back."""
    if once.by.unlimited:
        return
    trial = session.begin_nested()
    try:
        service(context)
    except Forbidden:
        raise
    except BridgeheadError:
        return  # most often it is there already; what else keeps it from being made again is no matter
    finally:
        trial.rollback()


def reached_items(wanted: dict[ItemKey, Item], short: dict[ItemKey, Item | None]) -> dict[ItemKey, Item]:
    """What is wanted, but for what was refused: that is as it was before, None for not there."""
    reached = {key: short.get(key, item) for key, item in wanted.items()}
    return {key: item for key, item in reached.items() if item is not None}


def _abandon(session: Session) -> None:
    try:
        session.rollback()
    except SQLAlchemyError:
        session.invalidate()  # the connection with it: what is left of its transaction is not known


def _raise_refused(job: Job, outcome: Outcome) -> None:
    """Raises where something would not go; and _Drifted, once, where another object's part was taken to be there."""
    for op, refusal in outcome.refused:
        gone = is_gone(refusal)
        if op.after is None and not gone:
            raise refusal
        if op.after is not None and op.before is not None and gone and not job.healed and not _is_known(op.before):
            raise _Drifted from refusal


def _is_known(before: Item) -> bool:
    """Whether the last full pass found it so: a veth that lives on without its namespace's path counts as down."""
    return isinstance(before, Attachment) and not before.up


def _subject(change: Change, rendered: dict[Key, Rendered]) -> Subject:
    """The object that the answer shows, as this change left it; None where it is gone."""
    return next((shown.subject for key, shown in rendered.items() if key[1] == change.subject), None)


def _plan(rendered: dict[Key, Rendered], former: Applied) -> list[Op]:
    desired: dict[ItemKey, Item] = {}
    observed: dict[ItemKey, Item] = {}
    for one in rendered.values():
        desired |= one.items
    for items in former.values():
        observed |= items
    return diff(desired, observed)
