"""The monitor: a thread that sleeps until the kernel tells something, and tells the worker what to look at.

It hands over keys, never events: the worker looks for itself. What the kernel tells nothing of, legacy rules and some
settings, is looked at on a timer.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable

from app.kernel.events import EventsLost, KernelEvents, RuleEvents
from app.kernel.netlink import Rtnl
from app.kernel.watch import NamespaceWatch
from app.model.spec import NetnsKind
from app.reconcile.tracker import Tracker
from app.reconcile.watchlist import Findings, Watchlist
from app.services.context import Key

log = logging.getLogger("bridgehead.monitor")

GATHER = 0.01
"""Seconds that events are collected for, so that one command of somebody's is one look, and a request of ours none."""
PERIOD = 0.4
"""Seconds from one look at what gives no events to the next."""
OTHERS_AGAIN = 2.0
"""Seconds from one word of others' rules to the next: some change theirs all the time."""
_RULES_AGAIN = 5.0
"""Seconds until it is seen whether nf_tables has been loaded meanwhile."""


class Monitor:
    """Start it before the worker, so that nothing is missed; stop it after.

    report: takes what was found, on the monitor's thread. rules: name of the nf_tables tables that are ours;
    nf_tables_loaded: whether to listen to nf_tables loads no module.
    """

    def __init__(
        self,
        watchlist: Watchlist,
        report: Callable[[Findings], None],
        *,
        rules: str,
        nf_tables_loaded: Callable[[], bool],
    ) -> None:
        self._watchlist = watchlist
        self._report = report
        self._table = rules
        self._nf_tables_loaded = nf_tables_loaded
        self._tracker = Tracker(watchlist)
        self._rules: RuleEvents | None = None
        self._version = -1
        self._next_try = 0.0
        self._others, self._others_at = False, 0.0
        self._thread = threading.Thread(target=self._main, name="monitor", daemon=True)
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)

    def start(self) -> None:
        """Listens in the calling thread's namespace from here on. Raises OSError."""
        self._events = KernelEvents()
        self._namespaces = NamespaceWatch()
        self._load()
        self._hear()
        self._thread.start()

    def stop(self) -> None:
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        self._events.close()
        self._namespaces.close()
        if self._rules is not None:
            self._rules.close()
        os.close(self._stop)

    def _load(self) -> None:
        with Rtnl() as rtnl:
            self._tracker.load(rtnl.links())

    def _hear(self) -> None:
        """What wakes it: processes come and go."""
        self._poll = select.poll()
        self._poll.register(self._stop, select.POLLIN)
        self._poll.register(self._events.fileno(), select.POLLIN)
        self._poll.register(self._namespaces.mounts, select.POLLPRI)
        for process in self._namespaces.processes():
            self._poll.register(process, select.POLLIN)
        if self._rules is not None:
            self._poll.register(self._rules.fileno(), select.POLLIN)

    def _main(self) -> None:
        due = time.monotonic()
        while True:
            ready = {descriptor for descriptor, _event in self._poll.poll(max(0.0, due - time.monotonic()) * 1000)}
            if self._stop in ready or self._stopped_within(GATHER if ready else 0.0):
                return
            timer = time.monotonic() >= due
            if timer:
                due = time.monotonic() + PERIOD
            try:
                found = self._look(ready, timer=timer)
            except Exception:
                log.exception("events cannot be followed: everything is looked at")
                found = Findings(missed=True)
                if self._stopped_within(PERIOD):
                    return
            if found:
                self._report(found)

    def _stopped_within(self, seconds: float) -> bool:
        quiet = select.poll()
        quiet.register(self._stop, select.POLLIN)
        return bool(quiet.poll(seconds * 1000))

    def _look(self, ready: set[int], *, timer: bool) -> Findings:
        found = Findings(due=timer)
        try:
            for event in self._events.take():
                self._tracker.take(event)
        except EventsLost:
            log.info("the kernel dropped events: everything is looked at")
            self._load()
            found.missed = True
        found.add(self._tracker.findings())
        if self._rules is not None:
            touched = self._rules.take()
            found.rules = touched.ours
            self._others |= touched.others
        elif timer:
            self._open_rules()
        if self._others and time.monotonic() >= self._others_at:
            found.foreign, self._others = True, False
            self._others_at = time.monotonic() + OTHERS_AGAIN
        found.keys |= self._look_at_namespaces(ready, timer=timer)
        return found

    def _open_rules(self) -> None:
        if time.monotonic() >= self._next_try:
            self._next_try = time.monotonic() + _RULES_AGAIN
            if self._nf_tables_loaded():
                self._rules = RuleEvents(self._table)
                self._hear()

    def _look_at_namespaces(self, ready: set[int], *, timer: bool) -> set[Key]:
        """Mounts and processes tell by themselves; of a path that is no mount only a look can."""
        kinds = {NetnsKind.PATH} if timer else set[NetnsKind]()
        if self._namespaces.mounts in ready:
            kinds |= {NetnsKind.NAME, NetnsKind.PATH}
        if ready & set(self._namespaces.processes()):
            kinds.add(NetnsKind.PID)
        changed = self._namespaces.look(*kinds)
        renewed = timer and self._watchlist.version != self._version
        members = self._watchlist.namespaces() if changed or renewed else {}
        if renewed:
            self._version, dead = self._watchlist.version, self._watchlist.dead
            new = self._namespaces.keep(members.keys())
            changed |= {ref for ref, there in new.items() if there == any(key[1] in dead for key in members[ref])}
            self._hear()
        elif NetnsKind.PID in kinds:
            self._hear()
        return {key for ref in changed for key in members.get(ref, ())}
