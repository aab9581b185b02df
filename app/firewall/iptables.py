"""The backend `iptables`: the legacy tables by python-iptables; nothing else imports iptc.

python-iptables takes no lock, and its tables are singletons of the process. So the lock of iptables(8)
is held from refresh to commit, and one thread only comes here. A table travels whole: every change
reads and writes it once, under one commit.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import iptc

from app.firewall.rules import (
    FORWARD,
    POSTROUTING,
    PREFIX,
    TABLES,
    TO,
    Placed,
    Rule,
    policy_base,
    port_base,
    rules_of,
)
from app.model.errors import KernelRefused, StartupError
from app.model.ops import Op
from app.model.state import FirewallItem, Item, ItemKey, NetworkPolicy, PortForward, TrafficItem

LOCK_FILE = Path("/run/xtables.lock")
_LOADED_TABLES = Path("/proc/thread-self/net/ip_tables_names")
_COMMIT_TRIES = 5
_VERDICTS = frozenset({"ACCEPT", "DROP", "RETURN"})
_NAME_END = 31  # xt_entry_match and xt_entry_target: u16 size, char name[29], u8 revision

Chains = dict[str, list[Rule]]
"""The rules of one table, by chain; a built-in chain holds our jump alone."""
_Change = Mapping[ItemKey, TrafficItem | None]


@dataclass(frozen=True, slots=True)
class _Entry:
    """A rule as libiptc takes it, with its mask for deleting; and both as numbers, for comparing."""

    buffer: Any
    mask: Any
    match_bits: int
    match_mask: int


class IptablesFirewall:
    """Rules in the legacy tables of the calling thread's namespace."""

    name = "iptables"

    def __init__(self) -> None:
        self._items: dict[ItemKey, TrafficItem] = {}
        self._kinds: Counter[type[TrafficItem]] = Counter()
        self._chains: set[tuple[str, str]] = set()

    @staticmethod
    def require() -> None:
        """Looks at each table, which loads it into the calling thread's namespace for good. Raises StartupError."""
        for table in TABLES:
            try:
                handle = iptc.Table(table, autocommit=False)
                handle.refresh()
                handle.close()  # its socket would hold the namespace
            except iptc.IPTCError as refusal:
                raise StartupError(
                    f"this kernel has no legacy iptables table '{table}' ({refusal}): "
                    "load ip_tables, or start with --firewall none"
                ) from None

    def apply(self, ops: Sequence[Op]) -> list[str]:
        """Tables gain rules in the order raw, filter, nat and lose them in reverse, one commit each."""
        old = {op.item.key: self._items.get(op.item.key) for op in ops}
        new = {op.item.key: _traffic_item(op.after) for op in ops}
        kinds = self._kinds.copy()
        kinds.subtract(type(item) for item in old.values() if item is not None)
        kinds.update(type(item) for item in new.values() if item is not None)
        removed, added = _delta([*_rules(old), *_bases(+self._kinds)], [*_rules(new), *_bases(+kinds)])
        done: list[str] = []
        order = TABLES if added else tuple(reversed(TABLES))
        try:
            for table in order:
                if self._write(table, removed, added, new, kinds):
                    done.append(table)
        except KernelRefused:
            for table in reversed(done):
                _rebuild(table, _chains_of(table, self._items.values()))
            raise
        former = self._chains
        self._adopt({**self._items, **new})
        return _commands(former, self._chains, removed, added)

    def _adopt(self, items: Mapping[ItemKey, TrafficItem | None]) -> None:
        self._items = {key: item for key, item in items.items() if item is not None}
        self._kinds = Counter(type(item) for item in self._items.values())
        self._chains = _chain_names(self._items.values(), self._kinds)

    def _write(
        self, table: str, removed: list[Placed], added: list[Placed], new: _Change, kinds: Counter[type[TrafficItem]]
    ) -> bool:
        removed = [placed for placed in removed if placed.table == table]
        added = [placed for placed in added if placed.table == table]
        if not removed and not added:
            return False

        bases = [placed for placed in _bases(+kinds) if placed.table == table]

        def change(handle: Any) -> bool:
            for placed in removed:
                _remove(handle, placed)
            for placed in added:
                _add(handle, placed)
            _require_shared(handle, table, bases)
            return True

        try:
            _transaction(table, change)
        except KernelRefused as refusal:
            # somebody took a chain or a rule of ours away: what is there does not matter, what shall be does
            if refusal.errno != errno.ENOENT:
                raise
            items = {**self._items, **new}
            _rebuild(table, _chains_of(table, [item for item in items.values() if item is not None]))
        return True

    def sync(self, items: Iterable[FirewallItem]) -> list[str]:
        """Tables that hold nothing of ours and shall hold nothing are not even loaded."""
        wanted = {item.key: item for item in items if isinstance(item, TrafficItem)}
        loaded = _LOADED_TABLES.read_text().split() if _LOADED_TABLES.exists() else []
        found: list[str] = []
        for table in TABLES:
            chains = _chains_of(table, wanted.values())
            if chains or table in loaded:
                found += _rebuild(table, chains)
        self._adopt(wanted)
        return found


def _traffic_item(item: Item | None) -> TrafficItem | None:
    if item is None or isinstance(item, TrafficItem):
        return item
    raise TypeError(f"{type(item).__name__} is no item of this backend")


def _rules(change: _Change) -> Iterator[Placed]:
    return (placed for item in change.values() if item is not None for placed in rules_of(item))


def _bases(kinds: Counter[type[TrafficItem]]) -> tuple[Placed, ...]:
    """What items share: it goes in with the first of them and out with the last."""
    return (policy_base() if kinds[NetworkPolicy] else ()) + (port_base() if kinds[PortForward] else ())


def _delta(old: list[Placed], new: list[Placed]) -> tuple[list[Placed], list[Placed]]:
    """What to remove and what to add; a chain in which order matters is written again as a whole."""
    surplus, missing = Counter(old) - Counter(new), Counter(new) - Counter(old)
    ordered = {placed.chain for placed in (*surplus, *missing) if placed.chain.startswith(f"{TO}-")}
    removed = [placed for placed in old if placed in surplus or placed.chain in ordered]
    added = [placed for placed in new if placed in missing or placed.chain in ordered]
    return removed, added


def _chain_names(items: Iterable[TrafficItem], kinds: Counter[type[TrafficItem]]) -> set[tuple[str, str]]:
    """Table and name of every chain of ours; port forwards add none of their own."""
    policies = (item for item in items if isinstance(item, NetworkPolicy))
    standing = [*_bases(kinds), *(placed for policy in policies for placed in rules_of(policy))]
    named = {(one.table, name) for one in standing for name in (one.chain, one.rule.target)}
    return {(table, name) for table, name in named if name.startswith(PREFIX)}


def _commands(
    before: set[tuple[str, str]], after: set[tuple[str, str]], removed: list[Placed], added: list[Placed]
) -> list[str]:
    """A change as one would type it: chains first, and last where they go."""

    def line(placed: Placed, verb: str) -> str:
        return f"iptables -t {placed.table} {verb} {placed.chain} {placed.rule.arguments()}"

    return [
        *(f"iptables -t {table} -N {name}" for table, name in sorted(after - before)),
        *(line(placed, "-D") for placed in removed),
        *(line(placed, "-A" if placed.chain.startswith(PREFIX) else "-I") for placed in added),
        *(f"iptables -t {table} -X {name}" for table, name in sorted(before - after)),
    ]


def _chains_of(table: str, items: Iterable[TrafficItem]) -> Chains:
    items = list(items)
    chains: Chains = {}
    shared = _bases(Counter(type(item) for item in items))
    for placed in (*shared, *(placed for item in items for placed in rules_of(item))):
        if placed.table == table:
            chains.setdefault(placed.chain, []).append(placed.rule)
            if placed.rule.target.startswith(PREFIX):
                chains.setdefault(placed.rule.target, [])
    return chains


@contextmanager
def _xtables_lock() -> Iterator[None]:
    """The lock that iptables(8) itself takes."""
    descriptor = os.open(LOCK_FILE, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _transaction(table: str, change: Callable[[Any], bool]) -> None:
    """Refresh, change, commit, under the lock; again where the table changed in between."""
    asked = f"iptables-restore --noflush (table {table})"
    for attempt in range(_COMMIT_TRIES):
        with _xtables_lock():
            try:
                handle = iptc.Table(table, autocommit=False)
                handle.refresh()  # also drops what an earlier round left uncommitted
            except iptc.IPTCError as refusal:
                raise KernelRefused(errno.EPROTONOSUPPORT, asked, str(refusal)) from refusal
            try:
                if change(handle):
                    handle.commit()
                return
            except iptc.IPTCError as refusal:
                code = iptc.ip4tc._get_errno_loc()[0]
                if code != errno.EAGAIN or attempt == _COMMIT_TRIES - 1:
                    raise KernelRefused(code, asked, str(refusal)) from refusal


def _ensure_chain(handle: Any, chain: str) -> None:
    if chain.startswith(PREFIX) and not handle.is_chain(chain):
        handle.create_chain(chain)


def _add(handle: Any, placed: Placed) -> None:
    _ensure_chain(handle, placed.chain)
    _ensure_chain(handle, placed.rule.target)
    _put(handle, placed.chain, placed.rule)


def _put(handle: Any, chain: str, rule: Rule) -> None:
    entry = _entry(rule)
    if chain.startswith(PREFIX):
        handle.append_entry(chain, entry.buffer)
    else:
        handle.insert_entry(chain, entry.buffer, 0)


def _remove(handle: Any, placed: Placed) -> None:
    entry = _entry(placed.rule)
    handle.delete_entry(placed.chain, entry.buffer, entry.mask)
    for chain in (placed.chain, placed.rule.target):
        if chain.startswith(PREFIX) and handle.is_chain(chain):
            _drop_if_idle(handle, chain)


def _drop_if_idle(handle: Any, chain: str) -> None:
    """Removes a chain of ours that is empty and that nothing jumps to."""
    if not handle.first_rule(chain) and not _references(handle, chain):
        handle.delete_chain(chain)


def _require_shared(handle: Any, table: str, bases: list[Placed]) -> None:
    """Raises KernelRefused ENOENT where somebody took away what all items stand on, such as by `iptables -F`."""
    for placed in bases:
        there = handle.is_chain(placed.chain) and any(
            _same(handle, entry, placed.rule) for entry in _entries(handle, placed.chain)
        )
        if not there:
            raise KernelRefused(errno.ENOENT, f"iptables -t {table} -C {placed.chain} {placed.rule.arguments()}")


def _references(handle: Any, chain: str) -> int:
    count = ctypes.c_uint()
    handle._iptc.iptc_get_references(ctypes.byref(count), chain.encode(), handle._handle)
    return count.value


def _rebuild(table: str, wanted: Chains) -> list[str]:
    """Brings every chain of ours in a table to what is wanted; a chain that is right is left alone."""
    found: list[str] = []

    def change(handle: Any) -> bool:
        found.clear()
        ours = [chain.name for chain in handle.chains if chain.name.startswith(PREFIX)]
        for chain in wanted:
            _ensure_chain(handle, chain)
        for chain, rules in wanted.items():
            if chain.startswith(PREFIX):
                _refill(handle, table, chain, rules, found)
        _fix_jumps(handle, table, wanted, found)
        _delete_chains(handle, table, [chain for chain in ours if chain not in wanted], found)
        return bool(found) or any(chain not in ours for chain in wanted if chain.startswith(PREFIX))

    _transaction(table, change)
    return found


def _refill(handle: Any, table: str, chain: str, rules: list[Rule], found: list[str]) -> None:
    entries = list(_entries(handle, chain))
    same = len(entries) == len(rules) and all(
        _same(handle, entry, rule) for entry, rule in zip(entries, rules, strict=True)
    )
    ordered = chain.startswith((f"{TO}-", FORWARD, POSTROUTING))
    if not same and (ordered or not _same_blocks(handle, entries, rules)):
        found.append(f"iptables table {table}: chain {chain} was not as wanted")
        handle.flush_entries(chain)
        for rule in rules:
            _put(handle, chain, rule)


def _same_blocks(handle: Any, entries: list[Any], rules: list[Rule]) -> bool:
    """Whether both hold the same rules, whatever the order of the items in it."""
    left = list(rules)
    for entry in entries:
        match = next((rule for rule in left if _same(handle, entry, rule)), None)
        if match is None:
            return False
        left.remove(match)
    return not left


def _fix_jumps(handle: Any, table: str, wanted: Chains, found: list[str]) -> None:
    """Exactly one jump from each built-in chain that wants one, and none from the others."""
    for chain in (chain.name for chain in handle.chains if not chain.name.startswith(PREFIX)):
        jumps = wanted.get(chain, [])
        seen: set[str] = set()
        for position, entry in reversed(list(enumerate(_entries(handle, chain)))):
            target = _jump_of(handle, entry)
            if not target.startswith(PREFIX):
                continue
            if target in seen or not any(_same(handle, entry, rule) for rule in jumps):
                found.append(f"iptables table {table}: chain {chain} had a stray jump to {target}")
                _delete_at(handle, chain, position)
            seen.add(target)
        for rule in jumps:
            if rule.target not in seen:
                found.append(f"iptables table {table}: chain {chain} did not jump to {rule.target}")
                _put(handle, chain, rule)


def _delete_at(handle: Any, chain: str, position: int) -> None:
    if handle._iptc.iptc_delete_num_entry(chain.encode(), position, handle._handle) != 1:
        raise iptc.IPTCError(f"can't delete entry {position} of chain {chain}: {handle.strerror()}")


def _delete_chains(handle: Any, table: str, chains: list[str], found: list[str]) -> None:
    for chain in chains:  # emptied first: they may jump to one another
        found.append(f"iptables table {table}: chain {chain} was left over")
        handle.flush_entries(chain)
    for chain in chains:
        handle.delete_chain(chain)


def _entries(handle: Any, chain: str) -> Iterator[Any]:
    entry = handle.first_rule(chain)
    while entry:
        yield entry
        entry = handle.next_rule(entry)


def _jump_of(handle: Any, entry: Any) -> str:
    target = handle.get_target(entry)
    return target.decode() if target else ""


def _same(handle: Any, entry: Any, rule: Rule) -> bool:
    """Whether an entry of the kernel's is this rule: compared as libiptc does, all but counters and pointers."""
    wanted = _entry(rule)
    if _jump_of(handle, entry) != rule.target or entry.next_offset != len(wanted.buffer):
        return False
    bits = int.from_bytes(ctypes.string_at(ctypes.addressof(entry), entry.next_offset), "little")
    return (bits ^ wanted.match_bits) & wanted.match_mask == 0


@lru_cache(maxsize=4096)
def _entry(rule: Rule) -> _Entry:
    built = _built(rule)
    buffer, mask = built.rule, built.mask
    ignored = bytearray(mask)
    header = type(built.entry)
    for field in ("nfcache", "comefrom", "counters"):
        place = getattr(header, field)
        ignored[place.offset : place.offset + place.size] = bytes(place.size)
    start = ctypes.sizeof(header)
    while start < len(ignored):
        size = int.from_bytes(bytes(buffer[start : start + 2]), "little")
        name_end = start + 2 + bytes(buffer[start + 2 : start + _NAME_END]).index(0) + 1
        # behind a name's end the kernel leaves what happened to be there
        ignored[name_end : start + _NAME_END] = bytes(start + _NAME_END - name_end)
        start += size
    if _is_jump(rule.target):  # the kernel keeps verdicts and jumps as numbers; their name is compared instead
        start = built.entry.target_offset
        ignored[start:] = bytes(len(ignored) - start)
    return _Entry(buffer, mask, int.from_bytes(bytes(buffer), "little"), int.from_bytes(bytes(ignored), "little"))


def _is_jump(target: str) -> bool:
    return target in _VERDICTS or target.startswith(PREFIX)


def _built(rule: Rule) -> Any:
    built = iptc.Rule()
    for name in ("in_interface", "out_interface"):
        if value := getattr(rule, name):
            setattr(built, name, value)
    for name, value in (("src", rule.source), ("dst", rule.destination), ("protocol", rule.protocol)):
        if value:
            setattr(built, name, value)
    for name, options in rule.matches:
        match = built.create_match(name)
        for key, value in options:
            match.set_parameter(key.replace("-", "_"), value)
    built.target = _target(built, rule.target)
    for key, value in rule.options:
        built.target.set_parameter(key.replace("-", "_"), value)
    built.final_check()
    return built


def _target(built: Any, name: str) -> Any:
    """A verdict or jump is the nameless standard target; naming it at once would load every table there is."""
    if not _is_jump(name):
        return iptc.Target(built, name)
    target = iptc.Target(built, "")
    target.standard_target = name
    return target
