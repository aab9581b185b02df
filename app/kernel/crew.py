"""Threads for calls that block in the kernel while nobody needs to wait for them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

_IDLE = 10.0
"""Seconds after which a thread that has nothing to do ends."""


class Crew:
    """As many threads as there are calls at once, `most` at most; what comes on top waits for one.

    A thread starts in the namespaces of the one that calls `run`. The daemon's end waits for none but by `close`.
    """

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self._most = most
        self._jobs: queue.SimpleQueue[tuple[Callable[[], None], Future[None], Callable[[], None]] | None]
        self._jobs = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._free = 0
        """Threads that wait less calls that wait."""

    def run(self, call: Callable[[], None], told: Callable[[], None]) -> Future[None]:
        """Has it done, and `told` called once the future is set; both on another thread."""
        answer: Future[None] = Future()
        with self._lock:
            self._jobs.put((call, answer, told))
            self._free -= 1
            if self._free < 0 and len(self._threads) < self._most:
                thread = threading.Thread(target=self._main, name=self._name, daemon=True)
                self._threads.add(thread)
                self._free += 1
                thread.start()
        return answer

    def close(self, patience: float) -> bool:
        """Lets them end what they are at; False where that has not happened after `patience` seconds."""
        with self._lock:
            threads = list(self._threads)
        for _thread in threads:
            self._jobs.put(None)
        deadline = time.monotonic() + patience
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def _main(self) -> None:
        while (job := self._next()) is not None:
            call, answer, told = job
            try:
                call()
            except BaseException as failure:  # noqa: BLE001 - it is raised again where the answer is asked for
                answer.set_exception(failure)
            else:
                answer.set_result(None)
            told()
            with self._lock:
                self._free += 1
        with self._lock:
            self._threads.discard(threading.current_thread())

    def _next(self) -> tuple[Callable[[], None], Future[None], Callable[[], None]] | None:
        while True:
            try:
                return self._jobs.get(timeout=_IDLE)
            except queue.Empty:
                with self._lock:
                    if self._free > 0:  # else a call is on its way
                        self._free -= 1
                        return None
