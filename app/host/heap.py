"""Memory: what glibc would set aside for each thread, and what Python's collector would walk in vain."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_M_ARENA_MAX = -8
_gate = threading.Lock()
_paused = 0


def share_one() -> None:
    """Threads of Python run one at a time: an arena for each of them is memory for nothing (mallopt(3))."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


@contextmanager
def uncollected() -> Iterator[None]:
    """The collector rests within: whoever makes many objects that stay would have it walk them, again and again."""
    _count(1)
    try:
        yield
    finally:
        _count(-1)


def _count(step: int) -> None:
    global _paused  # noqa: PLW0603 - there is one collector in a process
    with _gate:
        _paused += step
        gc.disable() if _paused else gc.enable()


def keep_all() -> None:
    """In a daemon, which froze its start: what is there by now stays too, and what is free goes back to the kernel."""
    if not gc.get_freeze_count():
        return
    gc.freeze()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
