"""Bringing a legacy table to what it shall hold, whatever is there; foreign chains and rules stay as they are."""

from __future__ import annotations

from collections.abc import Iterable

from app.firewall import xtables
from app.firewall.rules import PREFIX, Placed, Table, is_ordered, rules_of
from app.model.state import TrafficItem

Chains = dict[str, list[Placed]]
"""The rules of one table, by chain, in order; a built-in chain holds our jump alone."""


def layout(items: Iterable[TrafficItem]) -> dict[Table, Chains]:
    """What each table holds for these items; a table that holds nothing is left out."""
    tables: dict[Table, Chains] = {}
    for placed in dict.fromkeys(placed for item in items for placed in rules_of(item)):
        chains = tables.setdefault(placed.table, {})
        chains.setdefault(placed.chain, []).append(placed)
        if placed.rule.target.startswith(PREFIX):
            chains.setdefault(placed.rule.target, [])
    for chains in tables.values():
        for rules in chains.values():
            # each of these is put in front of those before it when it comes by itself
            first = [placed for placed in reversed(rules) if placed.first]
            rules[:] = first + [placed for placed in rules if not placed.first]
    return tables


def put(handle: xtables.Handle, placed: Placed) -> None:
    """Adds a rule where it belongs in its chain."""
    if placed.leads:
        handle.insert(placed.chain, placed.rule)
    else:
        handle.append(placed.chain, placed.rule)


def rebuild(table: Table, wanted: Chains) -> list[str]:
    """Brings every chain of ours in a table to what is wanted; a chain that is right is left alone.

    Says what differed, one line each. Raises KernelRefused.
    """
    found: list[str] = []

    def change(handle: xtables.Handle) -> bool:
        repair = _Repair(handle, table, wanted)
        repair.run()
        found[:] = repair.found
        return repair.changed

    xtables.transaction(table, change)
    return found


class _Repair:
    """One try at it, within a transaction."""

    def __init__(self, handle: xtables.Handle, table: Table, wanted: Chains) -> None:
        self._handle = handle
        self._table = table
        self._wanted = wanted
        self.found: list[str] = []
        self.changed = False

    def run(self) -> None:
        before = self._handle.chains()
        ours = [chain for chain in before if chain.startswith(PREFIX)]
        for chain in self._wanted:
            self._handle.ensure_chain(chain)
        self.changed = any(chain not in before for chain in self._wanted)
        for chain, rules in self._wanted.items():
            if chain.startswith(PREFIX) and not self._is_right(chain, rules):
                self._refill(chain, rules)
        for chain in before:
            if not chain.startswith(PREFIX):
                self._fix_jumps(chain, self._wanted.get(chain, []))
        self._delete_chains([chain for chain in ours if chain not in self._wanted])

    def _note(self, finding: str) -> None:
        self.found.append(f"{self._table.program} table {self._table.name}: {finding}")
        self.changed = True

    def _is_right(self, chain: str, rules: list[Placed]) -> bool:
        entries = list(self._handle.entries(chain))
        plain = [placed.rule for placed in rules]
        if is_ordered(chain):
            return self._handle.same_in_order(entries, plain)
        border = sum(placed.first for placed in rules)
        return all(
            self._handle.same_in_any_order(entries[part], plain[part]) for part in (slice(border), slice(border, None))
        )

    def _refill(self, chain: str, rules: list[Placed]) -> None:
        self._note(f"chain {chain} was not as wanted")
        self._handle.flush(chain)
        for placed in rules:
            self._handle.append(chain, placed.rule)

    def _fix_jumps(self, chain: str, jumps: list[Placed]) -> None:
        """Exactly one jump from a built-in chain that wants one, in front of all else, and none from the others."""
        handle = self._handle
        standing: set[str] = set()
        for position, entry in reversed(list(enumerate(handle.entries(chain)))):
            target = handle.target(entry)
            if not target.startswith(PREFIX):
                continue
            if position == 0 and any(handle.same(entry, jump.rule) for jump in jumps):
                standing.add(target)
            else:
                self._note(f"chain {chain} had a stray jump to {target}")
                handle.delete_at(chain, position)
        for jump in jumps:
            if jump.rule.target not in standing:
                self._note(f"chain {chain} did not jump to {jump.rule.target} first")
                put(handle, jump)

    def _delete_chains(self, chains: list[str]) -> None:
        for chain in chains:  # emptied first: they may jump to one another
            self._note(f"chain {chain} was left over")
            self._handle.flush(chain)
        for chain in chains:
            self._handle.delete_chain(chain)
