"""Answers that are kept under a client's Idempotency-Key, in the commit of what they tell of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from app.model.access import Principal
from app.model.errors import IdempotencyMismatch
from app.services.catalog import Catalog
from app.services.context import Context, Object, View
from app.store.repository import KeptAnswer, Repository

KEPT = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer; `replayed`: it was given before."""

    status: int
    body: str
    headers: Mapping[str, str] = field(default_factory=dict)
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Once:
    """A request that is carried out once. by: whose key it is; fingerprint: of what was asked."""

    by: Principal
    key: str
    fingerprint: str
    reply: Callable[[View, Object | None], Reply]

    @property
    def _scope(self) -> str:
        """A user's, whichever process sends it, or a token's."""
        return f"uid {self.by.uid}" if self.by.uid is not None else self.by.name

    def recall(self, store: Repository, now: datetime) -> Reply | None:
        """The answer given before. Raises IdempotencyMismatch where the key was another request's."""
        kept = store.kept_answer(self._scope, self.key, since=now - KEPT)
        if kept is None:
            return None
        if kept.fingerprint != self.fingerprint:
            raise IdempotencyMismatch(
                f"Idempotency-Key '{self.key}' was used within {KEPT.total_seconds() / 3600:.0f} hours for a request "
                "with another path or body; use a new key for a new request"
            )
        return Reply(kept.status, kept.body, kept.headers, replayed=True)

    def keep(self, store: Repository, now: datetime, reply: Reply) -> None:
        """Writes the answer, and takes away some that are too old."""
        answer = KeptAnswer(self.fingerprint, reply.status, reply.body, reply.headers)
        store.keep_answer(self._scope, self.key, answer, now=now, since=now - KEPT)


class Uncommitted:
    """The view from within a transaction; the statuses are those that its changes will have."""

    def __init__(self, context: Context, statuses: Catalog) -> None:
        self.network = context.network
        self.endpoint = context.endpoint
        self.portmap = context.portmap
        self.allocation = context.allocation
        self.status = statuses.status
