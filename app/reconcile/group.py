"""Requests on their way, and those of them that go to the kernel together."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from app.model.state import Item, ItemKey
from app.reconcile.executor import Outcome
from app.reconcile.render import Rendered, Subject
from app.services.context import Change, Context, Key
from app.services.replies import Once, Reply
from app.store.repository import Mark

Service = Callable[[Context], Change]
Applied = dict[Key, dict[ItemKey, Item]]


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
class Planned:
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
class Group:
    """Jobs whose changes go to the kernel together. mark: the store before them."""

    mark: Mark
    planned: list[Planned] = field(default_factory=list)
    namespaces: set[Key] = field(default_factory=set)
    rendered: dict[Key, Rendered] = field(default_factory=dict)
    former: Applied = field(default_factory=dict)
    outcome: Outcome = field(default_factory=Outcome)

    def takes(self, planned: Planned) -> bool:
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
