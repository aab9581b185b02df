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
from app.firewall.nft_elements import MOST, element_changes, plain_containers
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
        self._held: dict[Element, int] = {}
        self._sizes: dict[Family, int] = dict.fromkeys(families, 0)
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
        # by hand: of a Counter's methods most cost more than what they do here
        delta: dict[Element, int] = {}
        for sign, side in ((1, new), (-1, old)):
            for one in _elements(side):
                delta[one] = delta.get(one, 0) + sign
        held = self._held.get
        gone = [one for one, count in delta.items() if count < 0 and held(one, 0) + count == 0]
        added = [one for one, count in delta.items() if count > 0 and one not in self._held]
        sizes = self._sizes.copy()
        for sign, changed in ((1, added), (-1, gone)):
            for one in changed:
                sizes[one.family] += sign
        coming = [family for family in self._families if sizes[family] and not self._sizes[family]]
        going = [family for family in self._families if self._sizes[family] and not sizes[family]]
        commands = self._commands(coming, going, gone, added)
        if not commands:
            stood = True
        elif coming or going or not (_are_plain(gone) and _are_plain(added)):
            stood = self._run(commands, coming)
        else:
            stood = self._change_elements(commands[0], gone, added)
        if not stood:
            items = {key: item for key, item in {**self._items, **change}.items() if item is not None}
            self._mend(_elements(items.values()))
        self._adopt(change, delta, sizes)
        return [f"nft {command}" for command in commands]

    def _adopt(self, change: Change, delta: dict[Element, int], sizes: dict[Family, int]) -> None:
        for key, item in change.items():
            if item is None:
                self._items.pop(key, None)
            else:
                self._items[key] = item
        for element, count in delta.items():
            if left := self._held.get(element, 0) + count:
                self._held[element] = left
            elif count:
                del self._held[element]
        self._sizes = sizes

    @staticmethod
    def _commands(coming: list[Family], going: list[Family], gone: list[Element], added: list[Element]) -> list[str]:
        """Tables come with their first element and go with their last."""
        return [
            *(line for family in coming for line in layout(family).commands()),
            *element_commands("delete", (one for one in gone if one.family not in going)),
            *element_commands("add", added),
            *(f"delete table {family} {TABLE}" for family in going),
        ]

    def _run(self, commands: list[str], coming: list[Family]) -> bool:
        """False, and nothing done, where the tables are not as we left them."""
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

    def _change_elements(self, asked: str, gone: list[Element], added: list[Element]) -> bool:
        """The same without the library, in one message to the kernel; it compares the generation by itself."""
        changes = [*element_changes("delete", gone), *element_changes("add", added)]
        try:
            try:
                self._kernel.change(changes, self._generation, asked)
            except KernelRefused as refusal:
                if refusal.errno != errno.ERESTART:
                    raise
                generation = self._kernel.generation()
                if not self._stands():
                    return False
                self._kernel.change(changes, generation, asked)
                self._generation = generation
        except KernelRefused:
            return False  # to mend names the refusal again where it stands
        self._generation += 1
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
        self._items, self._held = wanted, dict(held)
        self._sizes = dict.fromkeys(self._families, 0) | Counter(one.family for one in held)
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


def _are_plain(elements: list[Element]) -> bool:
    return len(elements) <= MOST and all(one.container in plain_containers(one.family) for one in elements)


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
