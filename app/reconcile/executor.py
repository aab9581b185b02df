"""Carries out operations in order, and takes them back where one is refused."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from app.firewall.protocol import Firewall
from app.model.commands import commands
from app.model.contracts import Kernel
from app.model.errors import BridgeheadError, KernelRefused
from app.model.ops import Op
from app.model.state import DefaultRoute, FirewallItem, PortForward

log = logging.getLogger("bridgehead.kernel")


@dataclass(slots=True)
class Outcome:
    """What was done, and what was refused and left so: nothing, a removal, a namespace's own default route."""

    done: list[Op] = field(default_factory=list)
    refused: list[tuple[Op, BridgeheadError]] = field(default_factory=list)


class Executor:
    """Operations on links go to the kernel one by one, those on rules to the firewall in one change."""

    def __init__(self, kernel: Kernel, firewall: Firewall) -> None:
        self._kernel = kernel
        self._firewall = firewall

    def run(self, ops: Sequence[Op]) -> Outcome:
        """All of them; or none, where making or changing something is refused, and the refusal raised.

        Removing goes on past a refusal, which stands in the outcome.
        """
        outcome = Outcome()
        try:
            for group in _groups(ops):
                self._run_group(group, outcome)
            self._flush(outcome.done)
        except BaseException:
            self.undo(outcome.done)
            raise
        return outcome

    def run_each(self, ops: Sequence[Op]) -> Outcome:
        """As many of them as the kernel takes: for healing, where one object must not hold up the others."""
        outcome = Outcome()
        for op in ops:
            try:
                self._run_group([op], outcome)
            except BridgeheadError as refusal:
                outcome.refused.append((op, refusal))
        self._flush(outcome.done)
        return outcome

    def undo(self, done: Sequence[Op]) -> None:
        """Takes operations back, last first; goes on past a refusal, and says so."""
        for op in reversed(done):
            try:
                self._run_group([op.inverse], Outcome())
            except BridgeheadError as refusal:
                log.exception("cannot undo: %s", refusal.detail)
        self._flush(done)

    def _run_group(self, group: list[Op], outcome: Outcome) -> None:
        try:
            if isinstance(group[0].item, FirewallItem):
                told = self._firewall.apply(group)
            else:
                self._kernel.apply(group[0])
                told = commands(group[0]) if log.isEnabledFor(logging.INFO) else []
        except BridgeheadError as refusal:
            if not _tolerable(group[0], refusal):
                raise
            outcome.refused += [(op, refusal) for op in group]
            return
        outcome.done += group
        for line in told:
            log.info("%s", line)

    def _flush(self, done: Iterable[Op]) -> None:
        """Once the rules are in place: by the host's port, before and after."""
        sides = [side for op in done for side in (op.before, op.after)]
        forwards = [side for side in sides if isinstance(side, PortForward)]
        if forwards:
            self._kernel.flush(forwards)


def _groups(ops: Iterable[Op]) -> Iterable[list[Op]]:
    for is_rule, group in groupby(ops, key=lambda op: isinstance(op.item, FirewallItem)):
        if is_rule:
            yield list(group)
        else:
            yield from ([op] for op in group)


def _tolerable(op: Op, refusal: BridgeheadError) -> bool:
    if op.after is None:
        return True
    # a namespace's own default route is not ours to replace
    own_route = isinstance(op.item, DefaultRoute) and isinstance(refusal, KernelRefused)
    return own_route and isinstance(refusal, KernelRefused) and refusal.errno == errno.EEXIST
