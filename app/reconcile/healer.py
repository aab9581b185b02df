"""Healing on the worker's thread: all there is, or what the monitor points at. Done twice, it changes nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial

from app.firewall.protocol import Firewall
from app.host import heap
from app.model.contracts import Kernel
from app.model.errors import BridgeheadError, KernelRefused, NamespaceMissing
from app.model.ops import Op
from app.model.spec import Endpoint, Network
from app.model.state import (
    Attachment,
    Bridge,
    FirewallItem,
    HostPort,
    Item,
    ItemKey,
    Sysctl,
)
from app.model.state import State as ItemState
from app.model.status import State
from app.planner.diff import diff
from app.reconcile.batch import Requests, reached_items
from app.reconcile.brake import Brake
from app.reconcile.differences import difference, log_healed
from app.reconcile.executor import Executor, Outcome
from app.reconcile.group import Job
from app.reconcile.healing import differing, heal
from app.reconcile.render import Rendered, all_keys, render
from app.reconcile.rules import RuleHealer
from app.reconcile.statuses import publish_statuses
from app.reconcile.watchlist import Findings, Watchlist
from app.services import endpoints
from app.services.catalog import Catalog
from app.services.context import HOST, Key
from app.store.repository import Repository

log = logging.getLogger("bridgehead.worker")

_LINKED = ("network", "endpoint")
_Refused = Sequence[tuple[Op, BridgeheadError]]


class _NotGone(Exception):
    """An ephemeral endpoint could not be deleted by itself, for more is missing: a full pass comes next."""


class Healer:
    """Brings the kernel to the database. passes, looks: how many full passes and looks at single keys there were."""

    def __init__(
        self,
        catalog: Catalog,
        kernel: Kernel,
        firewall: Firewall,
        executor: Executor,
        requests: Requests,
        watchlist: Watchlist,
        brake: Brake,
    ) -> None:
        self._catalog = catalog
        self._kernel = kernel
        self._firewall = firewall
        self._executor = executor
        self._requests = requests
        self._watchlist = watchlist
        self._brake = brake
        self._rules = RuleHealer(catalog, firewall, executor, requests, brake)
        self.passes = 0
        self.looks = 0
        # what the kernel refused on the timer is left to the full pass, which is tried again with patience
        self._refused_settings: set[ItemKey] = set()
        self._lost_bridges: dict[str, str] = {}
        # whose namespace was gone and who could not be deleted: taking that back may have made it anew
        self._going: dict[str, str] = {}

    # --- all there is

    def full_pass(self) -> frozenset[ItemKey]:
        """Whatever is there; returns what is lacking all the same. Raises BridgeheadError."""
        self.passes += 1
        with heap.uncollected():
            lacking = self._pass()
        if self.passes == 1:
            heap.keep_all()
        return lacking

    def _pass(self) -> frozenset[ItemKey]:
        self._refused_settings = set()
        self._brake.release()
        rendered, observed = self._look(lambda: all_keys(self._store), self._kernel.observe, _is_rule, whole=True)
        healed = heal(self._firewall, self._executor, rendered, observed, self._tell)
        self._rules.all_done()
        self._requests.applied = healed.applied
        for key, one in rendered.items():
            self._watchlist.put(key, one.items)
        self._watchlist.keep_only(rendered)
        publish_statuses(self._catalog, rendered, healed.refused, self._executor.hindrance)
        self._requests.dead = {key: why for key, why in self._requests.dead.items() if ("endpoint", key) in rendered}
        refused = [*healed.refused, *self._follow_endpoints(rendered, healed.refused)]
        return frozenset({op.item.key for op, _refusal in refused})

    def _render(self, keys: Iterable[Key]) -> dict[Key, Rendered]:
        return {key: render(self._store, key, self._requests.dead) for key in keys}

    def _look(
        self,
        keys: Callable[[], Iterable[Key]],
        observe: Callable[[Iterable[Item]], Iterable[Item]],
        leave_out: Callable[[Item], bool],
        *,
        whole: bool = False,
    ) -> tuple[dict[Key, Rendered], ItemState]:
        """What is wanted, and what is there of it, but for the items to be left out.

        An ephemeral endpoint whose namespace was seen to be gone, however late it went, goes before anything is made.
        whole: all there is, so that what such a one leaves in the kernel goes with the rest that is nobody's. Raises
        _NotGone, unless whole.
        """
        while True:
            rendered = self._render(keys())
            wanted = (item for one in rendered.values() for item in one.items.values())
            observed = {item.key: item for item in observe([item for item in wanted if not leave_out(item)])}
            if not self._drop_ephemeral(rendered, stored_only=whole):
                return rendered, observed

    @property
    def _store(self) -> Repository:
        return self._requests.store

    # --- what somebody points at

    def heal(self, found: Findings) -> bool:
        """Looks at what may have suffered and mends it; False where something could not be. Raises BridgeheadError."""
        # what was deleted meanwhile made these events itself
        keys = {key for key in found.keys if key[0] not in _LINKED or self._watchlist.link(key[1]) is not None}
        keys |= self._brake.ripe() if found.due else set()
        if found.settings or found.due:
            keys |= self._turned_settings()
        try:
            whole = self._heal_keys(keys) if keys else True
        except _NotGone:
            whole = not self.full_pass()
        self._rules.heal(found)
        return whole

    def _turned_settings(self) -> set[Key]:
        """Of whom a setting is not as wanted: a few small files are read."""
        wanted = {
            key: [item for item in held if item.key not in self._refused_settings and not self._brake.waits(item.owner)]
            for key, held in self._watchlist.settings().items()
        }
        items = [item for held in wanted.values() for item in held]
        observed = {item.key: item for item in self._kernel.observe_items(items)}
        return {key for key, held in wanted.items() if any(observed.get(item.key) != item for item in held)}

    def _heal_keys(self, keys: Collection[Key], *, again: bool = True) -> bool:
        """again: whether to look once more where the kernel refuses, for somebody may have changed it meanwhile."""
        self.looks += 1
        concerned = self._widened(keys)
        rendered, observed = self._look(lambda: concerned, self._kernel.observe_items, _is_fixed)
        wanted = {key: item for one in rendered.values() for key, item in one.items.items() if not _is_fixed(item)}
        ops, held = self._held_back(differing(wanted, observed), rendered)
        self._tell(ops)
        outcome = self._executor.run_each(ops)
        log_healed(outcome.done)
        self._brake.repaired((op.item.owner, self._name(op.item.owner)) for op in outcome.done)
        self._refused_settings -= wanted.keys()  # one that went with its bridge is taken once that is back
        self._refused_settings |= {op.item.key for op, _refusal in outcome.refused if isinstance(op.item, Sysctl)}
        self._adopt(rendered, [*outcome.refused, *held])
        made = {op.item.owner for op in outcome.done if op.before is None and isinstance(op.item, Bridge)}
        if again and any(isinstance(refusal, KernelRefused) for _op, refusal in outcome.refused):
            return self._heal_keys(self._endpoints_of(made).union(keys), again=False)
        refused = [*outcome.refused, *self._follow_endpoints(rendered, outcome.refused)]
        # what was plugged into a bridge that was gone lost it; a namespace that is gone is gone for all its endpoints
        more = (self._endpoints_of(made) | self._siblings(outcome.refused)) - rendered.keys()
        return (self._heal_keys(more) if more else True) and not refused

    def _widened(self, keys: Collection[Key]) -> list[Key]:
        """With what stands or falls with them: a namespace's routes with all its endpoints, whose they are."""
        found = dict.fromkeys(keys)
        for kind, identity in keys:
            endpoint = self._store.endpoint_by_id(identity) if kind == "endpoint" else None
            namespace = endpoint.namespace_key if endpoint is not None else identity
            if endpoint is not None or kind == "namespace":
                found[("namespace", namespace)] = None
                found |= dict.fromkeys(("endpoint", one.id) for one in self._store.endpoints_in(namespace))
        return list(found)

    def _endpoints_of(self, network_ids: Collection[str]) -> set[Key]:
        networks = [network for one in network_ids if (network := self._store.network_by_id(one)) is not None]
        return {("endpoint", endpoint.id) for network in networks for endpoint in self._store.endpoints_of(network)}

    def _siblings(self, refused: _Refused) -> set[Key]:
        gone = {
            op.item.namespace_key for op, _refusal in _without_namespace(refused) if isinstance(op.item, Attachment)
        }
        return {("endpoint", endpoint.id) for one in gone for endpoint in self._store.endpoints_in(one)}

    def _held_back(self, ops: list[Op], rendered: dict[Key, Rendered]) -> tuple[list[Op], _Refused]:
        """What to do at once; and what waits, for somebody undoes it each time, with why."""
        why: dict[str, str] = {}
        for op in ops:
            owner = op.item.owner
            if owner not in why and self._brake.holds(owner):
                why[owner] = self._brake.hold(owner, _key_of(op, rendered))
            if owner in why and isinstance(op.after, Bridge) and op.before is None:
                self._lost_bridges[owner] = op.after.name
        self._lost_bridges = {owner: name for owner, name in self._lost_bridges.items() if self._brake.waits(owner)}
        for op in ops:
            if isinstance(op.after, Attachment) and op.after.bridge in self._lost_bridges.values():
                why[op.item.owner] = f"it waits for bridge {op.after.bridge}"
        held = [(op, BridgeheadError(f"{difference(op)}: {why[op.item.owner]}")) for op in ops if op.item.owner in why]
        return [op for op in ops if op.item.owner not in why], held

    def _name(self, owner: str) -> str:
        """What the log calls whoever owns items."""
        subject = self._catalog.subject(owner)
        if isinstance(subject, Network | Endpoint):
            return f"{type(subject).__name__.lower()} '{subject.name}'"
        return owner

    def _adopt(self, rendered: dict[Key, Rendered], refused: _Refused) -> None:
        """The state reached, of links and settings; rules and ports are as they were."""
        short = {op.item.key: op.before for op, _refusal in refused}
        applied = self._requests.applied
        for key, one in rendered.items():
            fixed = {name: item for name, item in applied.get(key, {}).items() if _is_fixed(item)}
            moving = {name: item for name, item in one.items.items() if not _is_fixed(item)}
            self._requests.reach(key, fixed | reached_items(moving, short))
            self._watchlist.put(key, one.items)
        publish_statuses(self._catalog, rendered, refused, self._executor.hindrance)

    # --- namespaces that die and come back

    def _drop_ephemeral(self, keys: Iterable[Key], *, stored_only: bool) -> bool:
        """Deletes those endpoints whose namespace is gone and that were to go with it; whether it did any.

        stored_only: before a full pass nobody knows what of it is in the kernel.
        """
        found = [self._store.endpoint_by_id(identity) for kind, identity in keys if kind == "endpoint"]
        ephemeral = [one for one in found if one is not None and one.ephemeral]
        gone = [(one, why) for one in ephemeral if (why := self._going.get(one.id) or self._kernel.gone(one.netns))]
        self._going = ({} if stored_only else self._going) | {one.id: why for one, why in gone}
        return sum(self._goes(endpoint, why, stored_only=stored_only) for endpoint, why in gone) > 0

    def _goes(self, endpoint: Endpoint, why: str, *, stored_only: bool) -> bool:
        log.info("endpoint '%s' goes with its namespace: %s", endpoint.name, why)
        # healed: its neighbours' part in the namespace is gone too, and is what this healing sees to next
        job = Job(partial(endpoints.delete, ref=endpoint.id, force=True), healed=True, stored_only=stored_only)
        self._requests.run([job])
        failure = job.answer.exception()
        if failure is None:
            del self._going[endpoint.id]
            return True
        log.warning("endpoint '%s' cannot be deleted: %s", endpoint.name, failure)
        if not stored_only:
            raise _NotGone from failure
        return False

    def _follow_endpoints(self, rendered: dict[Key, Rendered], refused: _Refused) -> _Refused:
        """Withdraws the ports of endpoints whose namespace is gone, and publishes those of the ones that are back."""
        missing = {op.item.owner: refusal.detail for op, refusal in _without_namespace(refused)}
        dead, changed = self._requests.dead, set[str]()
        for kind, identity in rendered:
            if kind == "endpoint" and dead.get(identity) != missing.get(identity):
                changed.add(identity)
                dead.pop(identity, None)
                if identity in missing:
                    dead[identity] = missing[identity]
        if not changed:
            return ()
        self._watchlist.dead = frozenset(dead)
        self._watchlist.version += 1
        return self._follow(changed)

    def _follow(self, endpoint_ids: Collection[str]) -> _Refused:
        found = [endpoint for one in endpoint_ids if (endpoint := self._store.endpoint_by_id(one)) is not None]
        keys: list[Key] = [("portmap", one.id) for endpoint in found for one in self._store.portmaps_of(endpoint)]
        rendered = self._render(keys)
        applied = self._requests.applied
        wanted = {name: item for one in rendered.values() for name, item in one.items.items()}
        former = {name: item for key in keys for name, item in applied.get(key, {}).items()}
        outcome = self._run_ports(diff(wanted, former))
        short = {op.item.key: op.before for op, _refusal in outcome.refused}
        for key, one in rendered.items():
            self._requests.reach(key, reached_items(one.items, short))
        publish_statuses(self._catalog, rendered, outcome.refused, self._executor.hindrance)
        return outcome.refused

    def _run_ports(self, ops: list[Op]) -> Outcome:
        """A mapping whose port a process took meanwhile gets no rule: it would take that process's traffic."""
        ports = [op for op in ops if isinstance(op.item, HostPort) and op.after is not None]
        outcome = self._executor.run_each(ports)
        lost = {op.item.owner for op, _refusal in outcome.refused}
        rest = [op for op in ops if op not in ports]
        unsafe = [op for op in rest if op.after is not None and op.item.owner in lost]
        more = self._executor.run_each([op for op in rest if op not in unsafe])
        left = [
            (op, refusal) for op in unsafe for first, refusal in outcome.refused if first.item.owner == op.item.owner
        ]
        return Outcome(outcome.done + more.done, [*outcome.refused, *more.refused, *left])

    # --- telling

    def _tell(self, ops: Sequence[Op]) -> None:
        """The status of whoever owns what differs says so until it is mended."""
        for op in ops:
            if not self._catalog.is_pending(op.item.owner):
                self._catalog.set_status(op.item.owner, State.DEGRADED, f"{difference(op)}: it is put back")


def _without_namespace(refused: _Refused) -> _Refused:
    """Endpoints' links that cannot be, for their namespace is gone."""
    return [one for one in refused if isinstance(one[0].item, Attachment) and isinstance(one[1], NamespaceMissing)]


def _key_of(op: Op, rendered: dict[Key, Rendered]) -> Key:
    """What to look at for an operation: whoever wants its item, else its owner."""
    wanting = (key for key, one in rendered.items() if op.item.key in one.items)
    return next(wanting, next((key for key in rendered if key[1] == op.item.owner), HOST))


def _is_rule(item: Item) -> bool:
    return isinstance(item, FirewallItem)


def _is_fixed(item: Item) -> bool:
    """What no look at single items can find fault with: rules are looked at as a whole, a bound port is ours."""
    return isinstance(item, FirewallItem | HostPort)
