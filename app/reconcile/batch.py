"""Requests that wait together: planned in memory, applied to the kernel as one, committed as one, each answered.

A group is carried out as if it were one change: what goes goes together, the rules change once. Where that is
refused, it is taken back, and each of its requests is tried by itself and gets its own error.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

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
from app.reconcile.group import Applied, Group, Job, Planned, Service
from app.reconcile.render import Rendered, render, subject_of
from app.reconcile.statuses import publish_statuses
from app.reconcile.watchlist import Watchlist
from app.services import audit
from app.services.catalog import Catalog
from app.services.context import Change, Context, Key
from app.services.replies import Once, Uncommitted
from app.store.repository import Repository
from app.store.session import require_room, store_failed

log = logging.getLogger("bridgehead.worker")

_SHOWN = ("network", "endpoint", "portmap", "allocation")


class _Drifted(Exception):
    """The kernel is not as it was left: a full pass comes first, then the request once more."""


class Requests:
    """Runs jobs, on the worker's thread.

    store: the objects as they are committed, between two runs. applied: the state reached, by key. stale: a full
    pass is due, for something could not be left as it should be. lacking: what was refused of other objects than
    those that were asked for. dead: endpoints whose namespace is gone, by id, and how, as of the last look. unsure:
    what a commit that failed was about, and who asked: whether it was written all the same is seen by reading.
    untold: see `tell`.
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
        self.untold: list[Outcome] = []

    # --- the transaction

    def run(self, jobs: list[Job]) -> list[Job]:
        """Answers them; gives back those that want a full pass first, and then another try."""
        done: list[Group] = []
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
        self.untold += [group.outcome for group in done]
        self.stale |= self._executor.stuck
        return again

    def tell(self) -> None:
        """Has the log say what requests did, which none of them waited for."""
        untold, self.untold = self.untold, []
        for outcome in untold:
            self._executor.tell(outcome)

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

    def _take_back(self, done: list[Group], jobs: Iterable[Job], again: list[Job], failure: BridgeheadError) -> None:
        """The kernel goes back to what is stored, and everybody gets the failure but those that are tried again."""
        for group in reversed(done):
            self._undo(group)
            self.unsure |= {key: one.change.by for one in group.planned for key in one.subjects}
        self.store.rollback()
        for job in jobs:
            if not any(job is other for other in again):
                job.refuse(failure)

    # --- groups

    def _run_all(self, jobs: Iterable[Job], done: list[Group], again: list[Job]) -> None:
        """Raises SQLAlchemyError where the transaction itself is lost, with all that was done in it."""
        waiting = deque(jobs)
        while waiting:
            with self._kernel.visiting():
                again_alone = self._run_group(waiting, done, again)
            for job in again_alone:
                self._run_all([job], done, again)

    def _run_group(self, waiting: deque[Job], done: list[Group], again: list[Job]) -> list[Job]:
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

    def _gather(self, waiting: deque[Job]) -> Group:
        """Plans as many as may go together. What is refused by itself is answered."""
        self._kernel.refresh()
        group = Group(self.store.mark())
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

    def _plan(self, job: Job) -> Planned:
        """The store as the request wants it. Raises what refuses it."""
        context = Context(self.store, self._kernel, self._pools, progress=self._executor.progress)
        if job.once is not None and (reply := job.once.recall(self.store, context.now)) is not None:
            _require_allowed(job.once, job.service, context)
            return Planned(job, context, Change("", ()), {}, reply)
        change = job.service(context)
        require_room(self._engine)
        shown = {key: subject_of(self.store, key) for key in change.keys if key[0] in _SHOWN}
        return Planned(job, context, change, shown)

    def _carry_out(self, group: Group) -> None:
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

    def _execute(self, group: Group) -> Outcome:
        """Raises _Drifted, once, where the refusal shows that somebody took away what the plan stands on."""
        own = {one.change.subject for one in group.planned}
        try:
            return self._executor.run(_operations(group.rendered, group.former), own)
        except BridgeheadError as refusal:
            if is_gone(refusal) and not group.healed:
                raise _Drifted from refusal
            raise

    def _keep(self, one: Planned, group: Group) -> None:
        """Writes the answer of a request with a key beside what it made, as it will be once that is committed."""
        if one.job.once is not None and one.reply is None:
            statuses = Catalog()
            publish_statuses(statuses, group.rendered, group.outcome.refused, self._executor.hindrance)
            one.reply = one.job.once.reply(Uncommitted(one.context, statuses), one.subject)
            one.job.once.keep(self.store, one.context.now, one.reply)

    def _undo(self, group: Group) -> None:
        self._executor.undo(group.outcome.done)
        for key, items in group.former.items():
            self.reach(key, items)
        self.stale = True

    def _record(self, group: Group) -> None:
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

    def _publish(self, group: Group) -> None:
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


def _raise_refused(group: Group) -> None:
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
