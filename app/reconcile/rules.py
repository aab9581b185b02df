"""Healing of rules, as a whole: which of them are missing is not known by object; and what others' rules do to ours."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Mapping

from app.firewall.protocol import Firewall, look_again
from app.model.errors import BridgeheadError, KernelRefused
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
        self._look_due = False
        self._look_at = 0.0

    def all_done(self) -> None:
        """A full pass has put all rules back, and is about to say how everybody fares."""
        self._refused = self._waiting = self._look_due = False
        self._executor.without_rules = {}

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
        """Whether anything of ours is missing is known once it is back: nobody is degraded by others' own rules."""
        self._refused, self._waiting = True, False
        items = list(self._items())
        try:
            found = self._firewall.sync(items)
        except BridgeheadError as refusal:
            self._tell(f"somebody changed the firewall's rules, and they cannot be put back: {refusal.detail}")
            raise
        self._refused = False
        for line in found:
            log.warning("healed: %s", line)
        if found:
            self._brake.repaired([(_RULES, "the firewall's rules")])
            # flows may have passed by the missing rules: row 13
            self._executor.flush([item for item in items if isinstance(item, PortForward)])
            self._executor.flush_into([item.subnet for item in items if isinstance(item, NetworkPolicy)])
        told, self._executor.without_rules = self._executor.without_rules, {}
        if found or told:
            self._publish({item.owner for item in items} | told.keys(), told)

    def _tell(self, words: str) -> None:
        """Whoever has rules, and is well but for what was told before, is degraded until they are mended."""
        told, owners = self._executor.without_rules, {item.owner for item in self._items()}
        self._executor.without_rules = dict.fromkeys(owners, words)
        self._publish(owners, told)

    def _items(self) -> Iterator[FirewallItem]:
        items = (item for held in self._requests.applied.values() for item in held.values())
        return (item for item in items if isinstance(item, FirewallItem))

    def _publish(self, owners: Collection[str], told: Mapping[str, str]) -> None:
        """How these fare; what else a status says stays. told: what was said of the rules before, by owner."""
        for owner in owners:
            subject = self._catalog.subject(owner)
            status = self._catalog.status(owner)
            if subject is not None and (status.state is State.READY or status.message == told.get(owner)):
                self._catalog.set_status(owner, *self._executor.hindrance(subject))

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
