"""Memory: what glibc would set aside for each thread."""

from __future__ import annotations

import ctypes

_M_ARENA_MAX = -8


def share_one() -> None:
    """Threads of Python run one at a time: an arena for each of them is memory for nothing (mallopt(3))."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
