"""Carries out operations in order, and takes them back where one is refused."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from app.firewall.protocol import NONE, Firewall, trouble_of
from app.model.commands import commands
from app.model.contracts import Kernel
from app.model.errors import BridgeheadError, KernelRefused, NamespaceMissing
from app.model.ops import Op
from app.model.spec import Endpoint, IPNetwork, Network, Portmap
from app.model.state import Attachment, DefaultRoute, Departing, FirewallItem, Netns, PortForward
from app.model.status import State
from app.planner.diff import inverse
from app.reconcile.render import Subject

log = logging.getLogger("bridgehead.kernel")

_WELL = (State.READY, "")
_TOLD_AT_ONCE = 32
"""Commands in one line of the log."""


@dataclass(slots=True)
class Outcome:
    """What was done, and what was refused and left so: see `Executor.run`. untold: what the log does not say yet."""

    done: list[Op] = field(default_factory=list)
    refused: list[tuple[Op, BridgeheadError]] = field(default_factory=list)
    untold: list[Op | list[str]] = field(default_factory=list)


class Executor:
    """Operations on links go to the kernel one by one, those on rules to the firewall in one change.

    stuck: whether something could not be taken back, or no flow be forgotten, so that a full pass must
    mend it; whoever runs that pass clears it. progress_at: when the last step was done, by time.monotonic().
    without_rules: owners of rules that are known to be missing, by id, and what their status says of it.
    """

    def __init__(self, kernel: Kernel, firewall: Firewall) -> None:
        self._kernel = kernel
        self._firewall = firewall
        self._trouble = trouble_of(firewall)
        self.stuck = False
        self.progress_at = time.monotonic()
        self.without_rules: dict[str, str] = {}
        self._said: dict[str, tuple[State, str]] = {}

    def progress(self) -> None:
        """A step of something long is done: whoever watches the worker need not take it for stuck."""
        self.progress_at = time.monotonic()

    def hindrance(self, subject: Subject) -> tuple[State, str]:
        """How an object fares all of whose own is there: degraded, where something keeps its traffic away."""
        found = self._hindrance(subject)
        if isinstance(subject, Network):
            self._said[subject.id] = found
            if found == _WELL:
                del self._said[subject.id]
        return found

    def said(self, network: Network) -> tuple[State, str]:
        """What `hindrance` said of a network last."""
        return self._said.get(network.id, _WELL)

    def _hindrance(self, subject: Subject) -> tuple[State, str]:
        match subject:
            case Network() | Endpoint() | Portmap() if lost := self.without_rules.get(subject.id):
                return State.DEGRADED, lost
            case Portmap(host_ip=address) if int(address) != 0 and not self._kernel.holds_address(address):
                return State.DEGRADED, f"host_ip {address} is not an address of this host any more: nothing comes by it"
            case Network(snat_address=address) if address is not None and not self._kernel.holds_address(address):
                gone = f"snat_address {address} is not an address of this host any more: no answer comes back to it"
                return State.DEGRADED, gone
            case Network() if trouble := self._trouble(subject.id):
                return State.DEGRADED, trouble
            case Network(spoof_protection=True) if self._firewall.name == NONE:
                return State.READY, "spoof_protection guards MACs only: with --firewall none no address is checked"
            case _:
                return _WELL

    def run(self, ops: Sequence[Op], own: Collection[str] | None = None) -> Outcome:
        """All of them; or none, where making or changing something is refused, and the refusal raised.

        The caller has the log say so: `tell`. Removing goes on past a refusal, which stands in the outcome. So does
        what is in a namespace that is gone, where it belongs to another object than `own`, the ids of those that are
        being changed.
        """
        outcome = Outcome()
        try:
            for group in _groups(ops):
                self._run_group(group, outcome, own)
            self._flush(outcome.done)
        except BaseException:
            self.tell(outcome)
            self.undo(outcome.done)
            raise
        return outcome

    def tell(self, outcome: Outcome) -> None:
        """Has the log say what was done, as commands that one could have typed; once."""
        untold, outcome.untold = outcome.untold, []
        if log.isEnabledFor(logging.INFO):
            lines = [line for step in untold for line in (commands(step) if isinstance(step, Op) else step)]
            for start in range(0, len(lines), _TOLD_AT_ONCE):
                log.info("%s", "; ".join(lines[start : start + _TOLD_AT_ONCE]))

    def run_each(self, ops: Sequence[Op]) -> Outcome:
        """As many of them as the kernel takes: for healing, where one object must not hold up the others."""
        outcome = Outcome()
        for group in _groups(ops):
            for part in [group] if _departs(group[0]) else [[op] for op in group]:
                self._run_alone(part, outcome)
        self.tell(outcome)
        self.flush(_forwards(outcome.done))
        return outcome

    def _run_alone(self, group: list[Op], outcome: Outcome) -> None:
        try:
            self._run_group(group, outcome, None)
        except BridgeheadError as refusal:
            outcome.refused += [(op, refusal) for op in group]
        except Exception as failure:
            log.exception("unexpected failure at %s", _keys(group))
            if len(group) > 1:
                for op in group:
                    self._run_alone([op], outcome)
            else:
                outcome.refused.append((group[0], BridgeheadError(f"unexpected failure: {failure}")))

    def undo(self, done: Sequence[Op]) -> None:
        """Takes operations back, in an order that is safe for that; goes on past a failure, and says so."""
        undone = Outcome()
        for group in _groups(inverse(done), together=False):
            try:
                self._run_group(group, undone, None)
            except NamespaceMissing as missing:
                self.stuck = True
                log.warning("cannot undo %s: %s", _keys(group), missing.detail)
            except Exception:
                self.stuck = True
                log.exception("cannot undo %s", _keys(group))
        self.tell(undone)
        self.flush(_forwards(done))

    def flush(self, forwards: list[PortForward]) -> None:
        """Forgets the flows of these; where that fails, it says so, for the rules stand by then."""
        try:
            if forwards:
                self._kernel.flush(forwards)
        except Exception:
            self.stuck = True
            log.exception("flows of %d port mappings cannot be forgotten", len(forwards))

    def flush_into(self, subnets: list[IPNetwork]) -> None:
        """Forgets the flows that rules nobody knows of led there; see `flush`."""
        try:
            self._kernel.flush_into(subnets)
        except Exception:
            self.stuck = True
            log.exception("flows into %d networks cannot be forgotten", len(subnets))

    def _run_group(self, group: list[Op], outcome: Outcome, own: Collection[str] | None) -> None:
        try:
            if isinstance(group[0].item, FirewallItem):
                outcome.untold.append(self._firewall.apply(group))
            else:
                if len(group) > 1:
                    group = self._remove(group, outcome)
                else:
                    self._kernel.apply(group[0])
                outcome.untold += group
        except BridgeheadError as refusal:
            if not _tolerable(group[0], refusal, own):
                raise
            outcome.refused += [(op, refusal) for op in group]
            return
        outcome.done += group
        self.progress()

    def _remove(self, group: list[Op], outcome: Outcome) -> list[Op]:
        """Those that are gone."""
        refused = self._kernel.remove(group)
        outcome.refused += refused
        left = [op for op, _refusal in refused]
        return [op for op in group if op not in left] if left else group

    def _flush(self, done: Iterable[Op]) -> None:
        """Once the rules are in place: by the host's port, before and after."""
        if forwards := _forwards(done):
            self._kernel.flush(forwards)


def is_gone(refusal: BridgeheadError) -> bool:
    """Whether it says that what was to be worked on is not there any more."""
    if isinstance(refusal, KernelRefused):
        return refusal.errno in (errno.ENODEV, errno.ENOENT)
    return isinstance(refusal, NamespaceMissing)


def _forwards(done: Iterable[Op]) -> list[PortForward]:
    return [side for op in done for side in (op.before, op.after) if isinstance(side, PortForward)]


def _groups(ops: Iterable[Op], *, together: bool = True) -> Iterable[list[Op]]:
    """What is done in one go: rules and, where they may go together, links and namespaces that go."""
    for (is_rule, departs), group in groupby(ops, key=_kind):
        if is_rule or (departs and together):
            yield list(group)
        else:
            yield from ([op] for op in group)


def _kind(op: Op) -> tuple[bool, bool]:
    """Whether it is a rule, and whether it departs."""
    return isinstance(op.item, FirewallItem), _departs(op)


def _departs(op: Op) -> bool:
    """Whether it goes together with others of its kind."""
    return op.after is None and isinstance(op.item, Departing)


def _keys(ops: Iterable[Op]) -> str:
    return ", ".join(" ".join(op.item.key) for op in ops)


def _tolerable(op: Op, refusal: BridgeheadError, own: Collection[str] | None) -> bool:
    if op.after is None:
        return not isinstance(op.item, FirewallItem)
    if isinstance(op.item, DefaultRoute) and isinstance(refusal, KernelRefused) and refusal.errno == errno.EEXIST:
        return True  # a namespace's own default route is not ours to replace
    another = own is not None and op.item.owner not in own
    return another and isinstance(op.item, Netns | Attachment | DefaultRoute) and is_gone(refusal)
