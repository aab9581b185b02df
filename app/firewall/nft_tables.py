"""Tables of ours in nf_tables, kept equal to items: one transaction a change, whatever the tables hold."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from functools import cache
from threading import Thread

from app.firewall.libnftables import Libnftables
from app.firewall.nfnetlink import Nfnetlink, nf_tables_loaded
from app.firewall.nft_listing import Table, mend, table_of
from app.firewall.nft_rules import TABLE, Element, Family, element_commands, elements_of, layout
from app.kernel import libc
from app.model.errors import KernelRefused
from app.model.state import FirewallItem, ItemKey

Change = Mapping[ItemKey, FirewallItem | None]
"""Items by key as they shall be, None where one goes."""


class NftTables:
    """Tables of these families, in the namespace of the thread that uses it."""

    def __init__(self, *families: Family) -> None:
        self._families = families
        self._items: dict[ItemKey, FirewallItem] = {}
        self._held: Counter[Element] = Counter()
        self._sizes: Counter[Family] = Counter()
        self._kernel = Nfnetlink()
        self._nft: Libnftables | None = None
        self._generation = 0
        self._rules: dict[Family, bytes | None] = {}

    def apply(self, change: Change) -> list[str]:
        """All of it or nothing, with the commands that one would have typed. Raises KernelRefused.

        Where somebody else took our tables or rules away, they are put back with it.
        """
        old = [self._items[key] for key in change if key in self._items]
        new = [item for item in change.values() if item is not None]
        delta = Counter(_elements(new))
        delta.subtract(_elements(old))
        gone = [one for one, count in delta.items() if count < 0 and self._held[one] + count == 0]
        added = [one for one, count in delta.items() if count > 0 and self._held[one] == 0]
        sizes = self._sizes.copy()
        sizes.subtract(one.family for one in gone)
        sizes.update(one.family for one in added)
        commands = self._commands(sizes, gone, added)
        if commands and not self._run(commands, sizes):
            items = {key: item for key, item in {**self._items, **change}.items() if item is not None}
            self._mend(_elements(items.values()))
        self._adopt(change, delta, sizes)
        return [f"nft {command}" for command in commands]

    def _adopt(self, change: Change, delta: Counter[Element], sizes: Counter[Family]) -> None:
        for key, item in change.items():
            if item is None:
                self._items.pop(key, None)
            else:
                self._items[key] = item
        for element, count in delta.items():
            self._held[element] += count
            if not self._held[element]:
                del self._held[element]
        self._sizes = sizes

    def _commands(self, sizes: Counter[Family], gone: list[Element], added: list[Element]) -> list[str]:
        """Tables come with their first element and go with their last."""
        going = [family for family in self._families if self._sizes[family] and not sizes[family]]
        coming = [family for family in self._families if sizes[family] and not self._sizes[family]]
        return [
            *(line for family in coming for line in layout(family).commands()),
            *element_commands("delete", (one for one in gone if one.family not in going)),
            *element_commands("add", added),
            *(f"delete table {family} {TABLE}" for family in going),
        ]

    def _run(self, commands: list[str], sizes: Counter[Family]) -> bool:
        """False, and nothing done, where the tables are not as we left them."""
        coming = [family for family in self._families if sizes[family] and not self._sizes[family]]
        if any(self._kernel.has_table(family, TABLE) for family in coming):
            return False
        generation = self._kernel.generation()
        if generation != self._generation and not self._stands():
            return False
        try:
            self._library().run("\n".join(commands))
        except KernelRefused:
            return False  # to mend names the refusal again where it stands
        self._remember(generation + 1, coming)
        return True

    def _stands(self) -> bool:
        """Whether our rules are what we left, and with them the chains and sets that they name."""
        families = [family for family in self._families if self._sizes[family]]
        return all(
            self._rules.get(one) is not None and self._kernel.rules(one, TABLE) == self._rules[one] for one in families
        )

    def changed(self, *, touched: bool) -> bool:
        """Whether anything changed since our last change; untouched tables are right where their rules are."""
        if not any(self._sizes.values()):
            return touched
        generation = self._kernel.generation()
        if generation == self._generation:
            return False
        if touched:
            return True
        families = [family for family in self._families if self._sizes[family]]
        there = {family: self._kernel.rules(family, TABLE) for family in families}
        # None: not known, for somebody changes rules right now, or did as they were noted
        pairs = [(there[family], self._rules.get(family)) for family in families]
        if any(None not in pair and pair[0] != pair[1] for pair in pairs):
            return True
        if all(None not in pair for pair in pairs):
            self._generation = generation
        return False

    def _remember(self, generation: int, families: Iterable[Family]) -> None:
        """Takes note of rules as they are now; in vain where somebody has changed something since."""
        self._generation = generation
        noted = {family: self._kernel.rules(family, TABLE) for family in families}
        if noted and self._kernel.generation() != generation:
            noted = dict.fromkeys(noted)
        self._rules |= noted

    def sync(self, items: Iterable[FirewallItem]) -> list[str]:
        """Brings the tables to these items with as few changes as possible; says what differed, one line each.

        Where nothing is wanted and nothing of ours is there, no library is loaded and nothing made.
        """
        wanted = {item.key: item for item in items}
        held = Counter(_elements(wanted.values()))
        found = self._mend(held)
        self._items, self._held = wanted, held
        self._sizes = Counter(one.family for one in self._held)
        return found

    def _mend(self, elements: Iterable[Element]) -> list[str]:
        """Raises KernelRefused."""
        wanted: dict[Family, set[Element]] = {family: set() for family in self._families}
        for one in elements:
            wanted[one.family].add(one)
        if not any(wanted.values()) and not nf_tables_loaded():
            return []
        generation = self._kernel.generation() if any(wanted.values()) else 0
        commands: list[str] = []
        found: list[str] = []
        for family, own in wanted.items():
            there = self._read(family)
            if there is not None or own:
                reference = _reference(family) if there is not None and own else Table()
                mending, faults = mend(family, own, there, reference)
                commands += mending
                found += faults
        if commands:
            self._library().run("\n".join(commands))
        self._remember(generation + bool(commands), [family for family, own in wanted.items() if own])
        return found

    def _read(self, family: Family) -> Table | None:
        if not self._kernel.has_table(family, TABLE):
            return None
        try:
            return table_of(family, self._library().list(f"list table {family} {TABLE}"))
        except KernelRefused as refusal:
            if refusal.errno == errno.ENOENT:  # it went meanwhile
                return None
            raise

    def _library(self) -> Libnftables:
        # loaded when it is first needed: most of a daemon's memory is libraries
        if self._nft is None:
            self._nft = Libnftables()
        return self._nft


def _elements(items: Iterable[FirewallItem]) -> Iterable[Element]:
    return (element for item in items for element in elements_of(item))


@cache
def _reference(family: Family) -> Table:
    """Our empty table as this library lists it from this kernel: made once, in a namespace that goes at once.

    How a rule is listed changes from release to release, so nothing else can tell whether one is right.
    """
    outcome: Future[Table] = Future()

    def make() -> None:
        try:
            libc.unshare(libc.CLONE_NEWNET)
            with Libnftables() as nft:
                nft.run("\n".join(layout(family).commands()))
                outcome.set_result(table_of(family, nft.list(f"list table {family} {TABLE}")))
        except BaseException as failure:  # noqa: BLE001 - carried over to the caller
            outcome.set_exception(failure)

    # a thread of its own: none that lives on may be in another namespace
    thread = Thread(target=make, name="nftables-reference")
    thread.start()
    thread.join()
    return outcome.result()
