"""How an object fares in the kernel: kept in memory, never stored."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class State(StrEnum):
    """`degraded`: there, but not as wanted; the message says what differs."""

    PENDING = "pending"
    READY = "ready"
    DEGRADED = "degraded"
    FAILED = "failed"
    DELETING = "deleting"


@dataclass(frozen=True, slots=True)
class Status:
    """A state since a moment; `message` is empty where there is nothing to say."""

    state: State
    message: str
    since: datetime
