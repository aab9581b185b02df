"""Requests that wait together: planned in memory, applied to the kernel as one, committed as one, each answered.

A group is carried out as if it were one change: what goes goes together, the rules change once. Where that is
refused, it is taken back, and each of its requests is tried by itself and gets its own error.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from app.model.access import Principal
from app.model.contracts import Kernel
from app.model.errors import BridgeheadError, Forbidden
from app.model.ops import Op
from app.model.spec import IPNetwork
from app.model.state import Attachment, Item, ItemKey
from app.planner.diff import diff
from app.reconcile.executor import Executor, Outcome, is_gone
from app.reconcile.render import Rendered, Subject, render, subject_of
from app.reconcile.statuses import publish_statuses
from app.reconcile.watchlist import Watchlist
from app.services import audit
from app.services.catalog import Catalog
from app.services.context import Change, Context, Key
from app.services.replies import Once, Reply, Uncommitted
from app.store.repository import Mark, Repository
from app.store.session import require_room, store_failed

log = logging.getLogger("bridgehead.worker")

Service = Callable[[Context], Change]
Applied = dict[Key, dict[ItemKey, Item]]
_SHOWN = ("network", "endpoint", "portmap", "allocation")


class _Drifted(Exception):
    """The kernel is not as it was left: a full pass comes first, then the request once more."""


@dataclass(slots=True)
class Job:
    """A request on its way: what it does, and where its answer goes.

    healed: what is missing in the kernel is known. stored_only: the kernel is left to the full pass that comes next.
    """

    service: Service
    once: Once | None = None
    answer: Future[Subject | Reply] = field(default_factory=Future)
    healed: bool = False
    stored_only: bool = False

    def begin(self) -> bool:
        """Whether somebody still waits for it; from then on nobody can call it off."""
        return self.answer.set_running_or_notify_cancel()

    def refuse(self, failure: BaseException) -> None:
        """Answers, unless it was answered before."""
        if not self.answer.done():
            self.answer.set_exception(failure)


@dataclass(slots=True)
class _Planned:
    """A job that is in the store and not in the kernel. subjects: its objects as it left them; reply: if kept."""

    job: Job
    context: Context
    change: Change
    subjects: dict[Key, Subject]
    reply: Reply | None = None

    @property
    def subject(self) -> Subject:
        """The object that the answer shows; None where it is gone."""
        return next((shown for key, shown in self.subjects.items() if key[1] == self.change.subject), None)


@dataclass(slots=True)
class _Group:
    """Jobs whose changes go to the kernel together. mark: the store before them."""

    mark: Mark
    planned: list[_Planned] = field(default_factory=list)
    namespaces: set[Key] = field(default_factory=set)
    rendered: dict[Key, Rendered] = field(default_factory=dict)
    former: Applied = field(default_factory=dict)
    outcome: Outcome = field(default_factory=Outcome)

    def takes(self, planned: _Planned) -> bool:
        """Adds it; not where it was planned for a namespace that is about to change, or is to be carried out once."""
        namespaces = {key for key in planned.change.keys if key[0] == "namespace"}
        alone = any(one.job.once is not None for one in (*self.planned[-1:], planned))
        if self.planned and (alone or namespaces & self.namespaces):
            return False
        self.planned.append(planned)
        self.namespaces |= namespaces
        return True

    @property
    def healed(self) -> bool:
        """Whether a full pass has gone before, for all of them."""
        return all(one.job.healed for one in self.planned)

    @property
    def stored_only(self) -> bool:
        """Whether the kernel is left as it is."""
        return all(one.job.stored_only for one in self.planned)


class Requests:
    """Runs jobs, on the worker's thread.

    store: the objects as they are committed, between two runs. applied: the state reached, by key. stale: a full
    pass is due, for something could not be left as it should be. lacking: what was refused of other objects than
    those that were asked for. dead: endpoints whose namespace is gone, by id, and how, as of the last look. unsure:
    what a commit that failed was about, and who asked: whether it was written all the same is seen by reading.
    """

    def __init__(
        self,
        engine: Engine,
        store: Repository,
        catalog: Catalog,
        pools: tuple[tuple[IPNetwork, int], ...],
        kernel: Kernel,
        executor: Executor,
        watchlist: Watchlist,
    ) -> None:
        self._engine = engine
        self.store = store
        self._catalog = catalog
        self._pools = pools
        self._kernel = kernel
        self._executor = executor
        self._watchlist = watchlist
        self._connection: Connection | None = None
        self.dead: dict[str, str] = {}
        self.applied: Applied = {}
        self.stale = False
        self.unsure: dict[Key, Principal] = {}
        self.lacking: set[ItemKey] = set()

    # --- the transaction

    def run(self, jobs: list[Job]) -> list[Job]:
        """Answers them; gives back those that want a full pass first, and then another try."""
        done: list[_Group] = []
        again: list[Job] = []
        try:
            with self._transaction() as connection:
                self._run_all(jobs, done, again)
                if done:
                    self._commit(connection)
        except SQLAlchemyError as failure:
            self._take_back(done, jobs, again, store_failed(failure))
            done = []
        for group in done:
            self._publish(group)
        for group in done:
            self._executor.tell(group.outcome)
        self.stale |= self._executor.stuck
        return again

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """Rolled back unless committed. The connection is kept: another one takes time, and room on the disk."""
        if self._connection is None:
            self._connection = self._engine.connect()
        connection = self._connection
        try:
            connection.begin()
            self.store.begin(connection)
            yield connection
            if connection.in_transaction():
                connection.rollback()
        except BaseException:
            self._abandon(connection)
            raise

    def _abandon(self, connection: Connection) -> None:
        try:
            connection.rollback()
            connection.connection.rollback()  # a commit that failed may have left the driver within
        except (SQLAlchemyError, self._engine.dialect.loaded_dbapi.Error):
            self._connection = None
            connection.invalidate()  # what is left of its transaction is not known
            connection.close()

    def close(self) -> None:
        """Gives the connection back."""
        if self._connection is not None:
            self._connection.close()

    def _commit(self, connection: Connection) -> None:
        """Raises SQLAlchemyError where it may not have been one."""
        self.store.flush()
        connection.commit()
        self.store.settle()

    def _take_back(self, done: list[_Group], jobs: Iterable[Job], again: list[Job], failure: BridgeheadError) -> None:
        """The kernel goes back to what is stored, and everybody gets the failure but those that are tried again."""
        for group in reversed(done):
            self._undo(group)
            self.unsure |= {key: one.change.by for one in group.planned for key in one.subjects}
        self.store.rollback()
        for job in jobs:
            if not any(job is other for other in again):
                job.refuse(failure)

    # --- groups

    def _run_all(self, jobs: Iterable[Job], done: list[_Group], again: list[Job]) -> None:
        """Raises SQLAlchemyError where the transaction itself is lost, with all that was done in it."""
        waiting = deque(jobs)
        while waiting:
            with self._kernel.visiting():
                again_alone = self._run_group(waiting, done, again)
            for job in again_alone:
                self._run_all([job], done, again)

    def _run_group(self, waiting: deque[Job], done: list[_Group], again: list[Job]) -> list[Job]:
        """The first that may go together; gives them back where they cannot."""
        group = self._gather(waiting)
        try:
            if group.planned:
                self._carry_out(group)
                done.append(group)
        except SQLAlchemyError:
            raise
        except Exception as failure:  # noqa: BLE001 - it is answered
            if len(group.planned) > 1:
                return [one.job for one in group.planned]
            _turn_down(group.planned[0].job, failure, again)
        return []

    def _gather(self, waiting: deque[Job]) -> _Group:
        """Plans as many as may go together. What is refused by itself is answered."""
        self._kernel.refresh()
        group = _Group(self.store.mark())
        while waiting:
            mark = self.store.mark()
            try:
                planned = self._plan(waiting[0])
            except SQLAlchemyError:
                raise
            except Exception as failure:  # noqa: BLE001 - it is answered
                self.store.rollback(mark)
                if group.planned:
                    break  # what the group is about to change may be what is in its way
                _turn_down(waiting.popleft(), failure, [])
                continue
            if not group.takes(planned):
                self.store.rollback(mark)
                break
            waiting.popleft()
        return group

    def _plan(self, job: Job) -> _Planned:
        """The store as the request wants it. Raises what refuses it."""
        context = Context(self.store, self._kernel, self._pools, progress=self._executor.progress)
        if job.once is not None and (reply := job.once.recall(self.store, context.now)) is not None:
            _require_allowed(job.once, job.service, context)
            return _Planned(job, context, Change("", ()), {}, reply)
        change = job.service(context)
        require_room(self._engine)
        shown = {key: subject_of(self.store, key) for key in change.keys if key[0] in _SHOWN}
        return _Planned(job, context, change, shown)

    def _carry_out(self, group: _Group) -> None:
        """The kernel changed, nothing committed; or as if nothing had been, and what refused it raised."""
        try:
            keys = dict.fromkeys(key for one in group.planned for key in one.change.keys)
            group.rendered = {key: render(self.store, key, self.dead) for key in keys}
            group.former = {key: self.applied.get(key, {}) for key in keys}
            if not group.stored_only:
                group.outcome = self._execute(group)
            _raise_refused(group)
            for one in group.planned:
                self._keep(one, group)
            if not group.stored_only:
                self._record(group)
        except Exception:
            if group.outcome.done:
                self._undo(group)
            self.store.rollback(group.mark)
            raise

    def _execute(self, group: _Group) -> Outcome:
        """Raises _Drifted, once, where the refusal shows that somebody took away what the plan stands on."""
        own = {one.change.subject for one in group.planned}
        try:
            return self._executor.run(_operations(group.rendered, group.former), own)
        except BridgeheadError as refusal:
            if is_gone(refusal) and not group.healed:
                raise _Drifted from refusal
            raise

    def _keep(self, one: _Planned, group: _Group) -> None:
        """Writes the answer of a request with a key beside what it made, as it will be once that is committed."""
        if one.job.once is not None and one.reply is None:
            statuses = Catalog()
            publish_statuses(statuses, group.rendered, group.outcome.refused, self._executor.hindrance)
            one.reply = one.job.once.reply(Uncommitted(one.context, statuses), one.subject)
            one.job.once.keep(self.store, one.context.now, one.reply)

    def _undo(self, group: _Group) -> None:
        self._executor.undo(group.outcome.done)
        for key, items in group.former.items():
            self.reach(key, items)
        self.stale = True

    def _record(self, group: _Group) -> None:
        """Remembers the state reached, not the state meant."""
        short = {op.item.key: op.before for op, _refusal in group.outcome.refused}
        for key, one in group.rendered.items():
            self.reach(key, reached_items(one.items, short))
        self.lacking.update(op.item.key for op, _refusal in group.outcome.refused if op.after is not None)

    def reach(self, key: Key, items: dict[ItemKey, Item]) -> None:
        """Remembers the state reached of a key."""
        if items:
            self.applied[key] = items
        else:
            self.applied.pop(key, None)

    def _publish(self, group: _Group) -> None:
        for key, rendered in group.rendered.items():
            self._watchlist.put(key, rendered.items)
            if rendered.subject is None:
                self.dead.pop(key[1], None)
        for one in group.planned:
            for key, subject in one.subjects.items():
                former = self._catalog.held(key)
                if subject is not former:
                    audit.changed(one.change.by, key, former, subject)
                    self._catalog.put(key, subject)
        if not group.stored_only:
            publish_statuses(self._catalog, group.rendered, group.outcome.refused, self._executor.hindrance)
        for one in group.planned:
            one.job.answer.set_result(one.reply or one.subject)


def _turn_down(job: Job, failure: Exception, again: list[Job]) -> None:
    """Answers with the failure; or has the job tried again."""
    match failure:
        case _Drifted():
            job.healed = True
            again.append(job)
        case BridgeheadError():
            job.refuse(failure)
        case _:
            log.error("a request failed unexpectedly", exc_info=failure)
            job.refuse(failure)


def _require_allowed(once: Once, service: Service, context: Context) -> None:
    """Raises Forbidden where whoever asks again may not make the change (any more): it is tried, and taken back."""
    if once.by.unlimited:
        return
    mark = context.store.mark()
    try:
        service(context)
    except Forbidden:
        raise
    except BridgeheadError:
        return  # most often it is there already; what else keeps it from being made again is no matter
    finally:
        context.store.rollback(mark)


def reached_items(wanted: dict[ItemKey, Item], short: dict[ItemKey, Item | None]) -> dict[ItemKey, Item]:
    """What is wanted, but for what was refused: that is as it was before, None for not there."""
    if short.keys().isdisjoint(wanted):
        return wanted
    reached = {key: short.get(key, item) for key, item in wanted.items()}
    return {key: item for key, item in reached.items() if item is not None}


def _raise_refused(group: _Group) -> None:
    """Raises where something would not go; and _Drifted, once, where another object's part was taken to be there."""
    for op, refusal in group.outcome.refused:
        gone = is_gone(refusal)
        if op.after is None and not gone:
            raise refusal
        if op.after is not None and op.before is not None and gone and not group.healed and not _is_known(op.before):
            raise _Drifted from refusal


def _is_known(before: Item) -> bool:
    """Whether the last full pass found it so: a veth that lives on without its namespace's path counts as down."""
    return isinstance(before, Attachment) and not before.up


def _operations(rendered: dict[Key, Rendered], former: Applied) -> list[Op]:
    desired: dict[ItemKey, Item] = {}
    observed: dict[ItemKey, Item] = {}
    for one in rendered.values():
        desired |= one.items
    for items in former.values():
        observed |= items
    return diff(desired, observed)
