"""A daemon that times the stages of each change, in place of `app.main:run`; it writes them down as it ends."""

import json
import resource
import time
from functools import wraps
from pathlib import Path

from app import main
from app.reconcile.batch import Requests
from app.reconcile.worker import Worker
from app.services import audit
from app.store.repository import Repository
from bench.stages import FILE, PLANNED_AGAIN

_EVERY = 2
"""Each so many-th change is planned twice: the second time finds the processor's caches warm."""


class Stages:
    """Of the change under way, on the worker's thread, and of all before it."""

    def __init__(self):
        self.done, self._now, self._start = [], {}, 0.0

    def add(self, stage, seconds):
        self._now[stage] = self._now.get(stage, 0.0) + seconds

    def watch(self, owner, name, stage):
        """Has the time of each call of a method added to a stage."""
        original = getattr(owner, name)

        @wraps(original)
        def timed(*arguments, **options):
            start = time.perf_counter()
            try:
                return original(*arguments, **options)
            finally:
                end = time.perf_counter()
                self.add(stage, end - start)
                self._now["answered"] = end - self._start  # by the last stage

        setattr(owner, name, timed)

    def watch_whole(self, owner, name):
        """The method that makes a change: its thread's time in user space and in the kernel."""
        original = getattr(owner, name)

        @wraps(original)
        def timed(*arguments):
            self._now, before = {}, resource.getrusage(resource.RUSAGE_THREAD)
            self._start = time.perf_counter()
            try:
                return original(*arguments)
            finally:
                after = resource.getrusage(resource.RUSAGE_THREAD)
                self.add("user", after.ru_utime - before.ru_utime)
                self.add("system", after.ru_stime - before.ru_stime)
                self.done.append(self._now)

        setattr(owner, name, timed)

    def plan_again(self, owner, name):
        """Has every other plan made twice, of which the first is taken back."""
        original = getattr(owner, name)

        @wraps(original)
        def twice(requests, job):
            if len(self.done) // 2 % _EVERY == 0:
                return original(requests, job)
            mark, start = requests.store.mark(), time.perf_counter()
            original(requests, job)
            self.add("first", time.perf_counter() - start)
            requests.store.rollback(mark)
            _leave(requests)
            start = time.perf_counter()
            planned = original(requests, job)
            self.add(PLANNED_AGAIN, time.perf_counter() - start)
            return planned

        setattr(owner, name, twice)


def _leave(requests):
    """The second plan opens its namespace, too."""
    visits = requests._kernel._visits
    for ref in list(visits._places):
        visits.leave(ref)


def run(settings):
    stages = Stages()
    stages.plan_again(Requests, "_plan")
    for owner, name, stage in (
        (Requests, "_gather", "plan"),
        (Requests, "_execute", "kernel"),
        (Requests, "_commit", "commit"),
        (Repository, "flush", "rows"),
        (Requests, "_publish", "publish"),
        (audit, "changed", "audit"),
    ):
        stages.watch(owner, name, stage)
    stages.watch_whole(Requests, "run")
    stop = Worker.stop

    def stopped(worker):
        stop(worker)
        (Path(settings.state_dir) / FILE).write_text(json.dumps(stages.done))

    Worker.stop = stopped
    return main.run(settings)
