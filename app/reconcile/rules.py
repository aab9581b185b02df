"""Healing of rules, as a whole: which of them are missing is not known by object; and what others' rules do to ours."""

from __future__ import annotations

import logging
import time

from app.firewall.protocol import Firewall, look_again
from app.model.errors import KernelRefused
from app.model.state import FirewallItem, NetworkPolicy, PortForward
from app.model.status import State
from app.reconcile.batch import Requests
from app.reconcile.brake import Brake
from app.reconcile.executor import Executor
from app.reconcile.watchlist import Findings
from app.services.catalog import Catalog
from app.services.context import HOST

log = logging.getLogger("bridgehead.worker")

_RULES = "rules"
"""Their one owner, for the brake."""
_SHARE = 10
"""A look at others' rules is followed by a pause of so many times what it took: they may have thousands."""


class RuleHealer:
    """On the worker's thread, as the healer is."""

    def __init__(
        self, catalog: Catalog, firewall: Firewall, executor: Executor, requests: Requests, brake: Brake
    ) -> None:
        self._catalog = catalog
        self._firewall = firewall
        self._executor = executor
        self._requests = requests
        self._brake = brake
        # what the kernel refused on the timer is left to the full pass, which is tried again with patience
        self._refused = False
        self._waiting = False
        self._told: dict[str, str] = {}
        self._look_due = False
        self._look_at = 0.0

    def all_done(self) -> None:
        """A full pass is about to look at everything."""
        self._refused = self._waiting = self._look_due = False
        self._told = {}

    def heal(self, found: Findings) -> None:
        """Looks at what was found of rules. Raises KernelRefused."""
        self._look_due |= found.foreign
        timer = found.due and not self._refused
        if self._waiting:
            if not self._brake.holds(_RULES):
                self._mend()
        elif (found.rules or timer) and self._firewall.changed(touched=found.rules):
            self._mend() if not self._brake.holds(_RULES) else self._wait()
        if self._look_due and time.monotonic() >= self._look_at:
            self._look_at_others()

    def _wait(self) -> None:
        self._waiting = True
        self._tell(f"the firewall's rules are not as wanted: {self._brake.hold(_RULES, HOST)}")

    def _mend(self) -> None:
        self._refused = True
        self._tell("somebody changed the firewall's rules: they are put back")
        items = [item for held in self._requests.applied.values() for item in held.values()]
        found = self._firewall.sync(item for item in items if isinstance(item, FirewallItem))
        for line in found:
            log.warning("healed: %s", line)
        if found:
            self._brake.repaired([(_RULES, "the firewall's rules")])
            # flows may have passed by the missing rules: row 13
            self._executor.flush([item for item in items if isinstance(item, PortForward)])
            self._executor.flush_into([item.subnet for item in items if isinstance(item, NetworkPolicy)])
        self._refused = self._waiting = False
        told, self._told = self._told, {}
        for owner, words in told.items():
            if self._catalog.knows(owner) and self._catalog.status(owner).message == words:
                self._catalog.set_status(owner, *self._executor.hindrance(self._catalog.subject(owner)))

    def _tell(self, words: str) -> None:
        """Whoever has rules, and is well but for what was told before, is degraded until they are mended."""
        items = (item for held in self._requests.applied.values() for item in held.values())
        for owner in {item.owner for item in items if isinstance(item, FirewallItem)}:
            if not self._catalog.knows(owner):
                continue
            status = self._catalog.status(owner)
            if status.state is State.READY or status.message == self._told.get(owner):
                self._catalog.set_status(owner, State.DEGRADED, words)
                self._told[owner] = words

    def _look_at_others(self) -> None:
        """Which networks' traffic others' rules drop now; what else a status says stays."""
        networks = list(self._catalog.networks.values())
        start = time.monotonic()
        self._look_due = False
        try:
            look_again(self._firewall)
        except KernelRefused as refusal:
            log.warning("others' rules cannot be read: %s", refusal.detail)
        for one in networks:
            before, status = self._executor.said(one), self._catalog.status(one.id)
            now = self._executor.hindrance(one)
            if (status.state, status.message) == before:
                self._catalog.set_status(one.id, *now)
        end = time.monotonic()
        self._look_at = end + _SHARE * (end - start)
