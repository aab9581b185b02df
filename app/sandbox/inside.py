"""Doing something inside namespaces: in a thread of its own that ends right after."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

from app.kernel import libc

T = TypeVar("T")

CLONE_FS = 0x200
"""A thread that shares its root and working directory with others may not change its mount namespace."""


def in_thread(work: Callable[[], T]) -> T:
    """The result of `work`, done in a new thread; its exception is raised here."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as failure:  # noqa: BLE001 - carried over to the caller
            outcome.set_exception(failure)

    thread = Thread(target=run, name="sandbox", daemon=True)
    thread.start()
    thread.join()
    return outcome.result()


def enter(netns: int, mounts: int) -> None:
    """Moves the calling thread, which must end afterwards or be a process's only one."""
    libc.unshare(CLONE_FS)
    libc.setns(netns, libc.CLONE_NEWNET)
    libc.setns(mounts, libc.CLONE_NEWNS)
