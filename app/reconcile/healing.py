"""The full pass: everything wanted against everything there, whatever happened in between."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.firewall.protocol import Firewall
from app.model.errors import BridgeheadError
from app.model.ops import Op
from app.model.state import (
    Attachment,
    Bridge,
    DefaultRoute,
    FirewallItem,
    HostPort,
    Item,
    ItemKey,
    LoopbackRoute,
    NetworkPolicy,
    PortForward,
    State,
    Sysctl,
)
from app.planner.diff import diff
from app.reconcile.batch import reached_items
from app.reconcile.differences import log_healed
from app.reconcile.executor import Executor
from app.reconcile.group import Applied
from app.reconcile.render import Rendered
from app.services.context import Key

log = logging.getLogger("bridgehead.worker")


@dataclass(frozen=True, slots=True)
class Healed:
    """The state reached, by key, and what the kernel refused."""

    applied: Applied
    refused: list[tuple[Op, BridgeheadError]]


def heal(
    firewall: Firewall,
    executor: Executor,
    rendered: dict[Key, Rendered],
    observed: State,
    tell: Callable[[Sequence[Op]], None],
) -> Healed:
    """Host ports first, then the rules as a whole, then links, routes and settings one by one.

    What only the rules made safe, route_localnet and the route of ::1, goes before them (row 9). A mapping whose
    port a process took meanwhile gets no rule: it would take that process's traffic. observed: what is there but for
    rules; tell: hears what differs before it is mended.
    """
    links: dict[ItemKey, Item] = {}
    rules: dict[ItemKey, FirewallItem] = {}
    for one in rendered.values():
        for key, item in one.items.items():
            if isinstance(item, FirewallItem):
                rules[key] = item
            else:
                links[key] = item
    ops = differing(links, observed)
    tell(ops)
    early: list[Op] = []
    late: list[Op] = []
    for op in ops:
        (early if _before_rules(op) else late).append(op)
    first = executor.run_each(early)
    lost = {op.item.owner for op, _refusal in first.refused if isinstance(op.item, HostPort)}
    unsafe = {key for key, rule in rules.items() if rule.owner in lost} if lost else set[ItemKey]()
    found = firewall.sync([rule for key, rule in rules.items() if key not in unsafe])
    for line in found:
        log.warning("healed: %s", line)
    rest = executor.run_each(late)
    log_healed(rest.done)
    if found:
        # which rules were missing or too many is not known by item, and flows may have passed by them: row 13
        executor.flush([rule for rule in rules.values() if isinstance(rule, PortForward)])
        executor.flush_into([rule.subnet for rule in rules.values() if isinstance(rule, NetworkPolicy)])
    refused = first.refused + rest.refused
    short: dict[ItemKey, Item | None] = {op.item.key: op.before for op, _refusal in refused}
    short |= dict.fromkeys(unsafe)
    applied = {key: reached_items(one.items, short) for key, one in rendered.items()}
    return Healed(applied, refused)


def _before_rules(op: Op) -> bool:
    if isinstance(op.item, HostPort):
        return op.before is None
    localnet = isinstance(op.item, Sysctl) and op.item.path.endswith("/route_localnet")
    return op.after is None and (localnet or isinstance(op.item, LoopbackRoute))


def differing(wanted: State, observed: State) -> list[Op]:
    """What brings the one to the other; a route or setting that is there now goes with the link under it made anew."""
    ops = diff(wanted, observed)
    made = [op.after for op in ops if op.before is None]
    inner = {(item.namespace_key, item.ifname) for item in made if isinstance(item, Attachment)}
    bridges = {item.name for item in made if isinstance(item, Bridge)}
    if not inner and not bridges:
        return ops

    def stays(item: Item) -> bool:
        match item:
            case DefaultRoute():
                return (item.namespace_key, item.ifname) not in inner
            case LoopbackRoute():
                return item.bridge not in bridges
            case Sysctl() if item.key in wanted:
                return bridges.isdisjoint(item.path.split("/"))
            case _:
                return True

    return diff(wanted, {key: item for key, item in observed.items() if stays(item)})
