"""Waiting for a condition, never for a clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_SHORTEST, _LONGEST = 0.001, 0.02


def eventually(condition: Callable[[], T], timeout: float = 5.0, what: str = "") -> T:
    """The condition's first true value. Raises AssertionError where it stays false for `timeout` seconds.

    An AssertionError of the condition counts as false; the last one is what the failure is raised from.
    """
    deadline = time.monotonic() + timeout
    pause = _SHORTEST
    while True:
        value: T | None = None
        failure: AssertionError | None = None
        try:
            value = condition()
        except AssertionError as reason:
            failure = reason
        if value:
            return value
        if time.monotonic() >= deadline:
            name = what or getattr(condition, "__name__", repr(condition))
            last = f": {failure}" if failure else f", last value {value!r}"
            raise AssertionError(f"not within {timeout} s: {name}{last}") from failure
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST)
