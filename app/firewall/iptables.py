"""The backend `iptables`: policies and port forwards in the legacy tables, IPv4 and IPv6."""

from __future__ import annotations

import errno
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from app.firewall import legacy, xtables
from app.firewall.repair import layout, put, rebuild
from app.firewall.rules import PREFIX, TABLES, Placed, Table, is_bucket, is_ordered, rules_of, shared_rules
from app.model.errors import KernelRefused, StartupError
from app.model.ops import Op
from app.model.state import FirewallItem, Item, ItemKey, TrafficItem

_LOADED_TABLES = {
    4: Path("/proc/thread-self/net/ip_tables_names"),
    6: Path("/proc/thread-self/net/ip6_tables_names"),
}
_NAMES = {table.name for table in TABLES}
_Change = Mapping[ItemKey, TrafficItem | None]
_Chain = tuple[Table, str]
_Key = TypeVar("_Key")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Delta:
    """What a change does to the rules. counts: how many items more or fewer want each rule."""

    removed: list[Placed]
    added: list[Placed]
    counts: Counter[Placed]


class IptablesFirewall:
    """Rules in the legacy tables of the calling thread's namespace."""

    name = "iptables"

    def __init__(self) -> None:
        self._items: dict[ItemKey, TrafficItem] = {}
        self._wanted: Counter[Placed] = Counter()
        self._chains: Counter[_Chain] = Counter()
        self._left: legacy.Outlines = {}
        self._contents: legacy.Outlines = {}

    @staticmethod
    def require() -> None:
        """Looks at each table, which loads it into the calling thread's namespace for good.

        Raises StartupError where an IPv4 table is missing; an IPv6 one is missed by IPv6 networks only.
        """
        for table in TABLES:
            try:
                xtables.probe(table)
            except KernelRefused as refusal:
                if table.version == 4:
                    raise StartupError(f"{refusal.reason}, or start with --firewall none") from None
                _log.warning("networks with IPv6 will fail: %s", refusal.reason)

    def apply(self, ops: Sequence[Op]) -> list[str]:
        """Tables gain rules in the order of TABLES and lose them in reverse, one commit each."""
        old = {op.item.key: self._items.get(op.item.key) for op in ops}
        new = {op.item.key: _traffic_item(op.after) for op in ops}
        delta = self._delta(list(_rules(old)), list(_rules(new)))
        done: list[Table] = []
        try:
            for table in TABLES if delta.added else reversed(TABLES):
                if self._write(table, delta, new):
                    done.append(table)
        except KernelRefused:
            former = layout(self._items.values())
            for table in reversed(done):
                rebuild(table, former.get(table, {}))
            self._left = legacy.outlines(_NAMES) | self._left  # looking at a table may have loaded it
            self._note(done)
            raise
        self._note(done)
        return self._adopt(new, delta)

    def _note(self, written: Iterable[Table]) -> None:
        """Remembers how these tables are now: a rule that is replaced before the first look must show in it."""
        for table in written:
            key = table.family, table.name
            self._left[key] = legacy.outline(table.version, table.name)
            self._contents.pop(key, None)
            rules = legacy.content(table.version, table.name, self._left[key])
            if rules is not None:
                self._contents[key] = rules

    def changed(self, *, touched: bool) -> bool:
        """See Firewall.changed: large tables by their outlines only."""
        if legacy.outlines(_NAMES) != self._left:
            return True
        contents = legacy.contents(_NAMES)
        before, self._contents = self._contents, contents
        both = before.keys() & contents.keys()
        return not legacy.same_rules({key: before[key] for key in both}, {key: contents[key] for key in both})

    def _delta(self, old: list[Placed], new: list[Placed]) -> _Delta:
        """A rule goes with the last item that wants it; a chain in which order matters is written again as a whole."""
        counts = Counter(new)
        counts.subtract(old)
        surplus = {one for one in old if self._wanted[one] + counts[one] == 0}
        missing = {one for one in new if self._wanted[one] == 0}
        ordered = {(one.table, one.chain) for one in surplus | missing if is_ordered(one.chain)}

        def chosen(rules: list[Placed], changed: set[Placed]) -> list[Placed]:
            return [one for one in dict.fromkeys(rules) if one in changed or (one.table, one.chain) in ordered]

        return _Delta(chosen(old, surplus), chosen(new, missing), counts)

    def _write(self, table: Table, delta: _Delta, new: _Change) -> bool:
        removed = [placed for placed in delta.removed if placed.table == table]
        added = [placed for placed in delta.added if placed.table == table]
        if not removed and not added:
            return False
        shared = dict.fromkeys(one for item in _items(new) for one in shared_rules(item) if one.table == table)

        def change(handle: xtables.Handle) -> bool:
            for placed in removed:
                _remove(handle, placed)
            for placed in added:
                _add(handle, placed)
            _require_shared(handle, shared)
            return True

        try:
            xtables.transaction(table, change)
        except KernelRefused as refusal:
            # somebody took a chain or a rule of ours away: what is there does not matter, what shall be does
            if refusal.errno != errno.ENOENT:
                raise
            rebuild(table, layout(_items({**self._items, **new})).get(table, {}))
        return True

    def _adopt(self, new: _Change, delta: _Delta) -> list[str]:
        """Keeps account of a change that was made, at a cost that is the change's; its commands."""
        for key, item in new.items():
            if item is None:
                self._items.pop(key, None)
            else:
                self._items[key] = item
        _count(self._wanted, delta.counts)
        named = Counter(chain for placed in delta.added for chain in _named(placed))
        named.subtract(chain for placed in delta.removed for chain in _named(placed))
        made = [chain for chain, more in named.items() if more > 0 and not self._chains[chain]]
        _count(self._chains, named)
        return _commands(made, [chain for chain in named if chain not in self._chains], delta)

    def sync(self, items: Iterable[FirewallItem]) -> list[str]:
        """Tables that hold nothing of ours and shall hold nothing are not even loaded."""
        wanted = {item.key: item for item in items if isinstance(item, TrafficItem)}
        chains = layout(wanted.values())
        loaded = {table for table in TABLES if table.name in _loaded(table)}
        found: list[str] = []
        for table in TABLES:
            if table in chains or table in loaded:
                found += rebuild(table, chains.get(table, {}))
        self._items = wanted
        self._wanted = Counter(_rules(wanted))
        self._chains = Counter(chain for placed in self._wanted for chain in _named(placed))
        self._left, self._contents = legacy.outlines(_NAMES), {}
        return found


def _loaded(table: Table) -> list[str]:
    names = _LOADED_TABLES[table.version]
    return names.read_text().split() if names.exists() else []


def _traffic_item(item: Item | None) -> TrafficItem | None:
    if item is None or isinstance(item, TrafficItem):
        return item
    raise TypeError(f"{type(item).__name__} is no item of this backend")


def _items(change: _Change) -> Iterator[TrafficItem]:
    return (item for item in change.values() if item is not None)


def _rules(change: _Change) -> Iterator[Placed]:
    return (placed for item in _items(change) for placed in rules_of(item))


def _named(placed: Placed) -> Iterator[_Chain]:
    """The chains of ours that exist for a rule."""
    return ((placed.table, name) for name in (placed.chain, placed.rule.target) if name.startswith(PREFIX))


def _count(account: Counter[_Key], change: Mapping[_Key, int]) -> None:
    for key, more in change.items():
        account[key] += more
        if not account[key]:
            del account[key]


def _commands(made: list[_Chain], gone: list[_Chain], delta: _Delta) -> list[str]:
    """A change as one would type it: chains first, and last where they go."""

    def line(placed: Placed, verb: str) -> str:
        return f"{placed.table.program} -t {placed.table.name} {verb} {placed.chain} {placed.rule.arguments()}"

    return [
        *(f"{table.program} -t {table.name} -N {name}" for table, name in sorted(made)),
        *(line(placed, "-D") for placed in delta.removed),
        *(line(placed, "-I" if placed.leads else "-A") for placed in delta.added),
        *(f"{table.program} -t {table.name} -X {name}" for table, name in sorted(gone)),
    ]


def _add(handle: xtables.Handle, placed: Placed) -> None:
    handle.ensure_chain(placed.chain)
    handle.ensure_chain(placed.rule.target)
    put(handle, placed)


def _remove(handle: xtables.Handle, placed: Placed) -> None:
    handle.delete(placed.chain, placed.rule)
    for chain in (placed.chain, placed.rule.target):
        handle.drop_if_idle(chain)


def _require_shared(handle: xtables.Handle, shared: Iterable[Placed]) -> None:
    """Raises KernelRefused ENOENT where somebody took away what an item stands on, such as by `iptables -F`."""
    for placed in shared:
        table, chain, rule = placed.table, placed.chain, placed.rule
        if not handle.has(chain) or not _stands(handle, placed):
            raise KernelRefused(errno.ENOENT, f"{table.program} -t {table.name} -C {chain} {rule.arguments()}")


def _stands(handle: xtables.Handle, placed: Placed) -> bool:
    """Among thousands of buckets, whether one is jumped to is asked, not sought."""
    if is_bucket(placed.rule.target):
        return handle.has(placed.rule.target) and handle.references(placed.rule.target) > 0
    return any(handle.same(entry, placed.rule) for entry in handle.entries(placed.chain))
