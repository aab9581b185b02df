"""Values in memory with indexes, whose changes can be taken back: what a table of a database is, without the database.

Looking up costs what is found, whatever else there is.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")
V_contra = TypeVar("V_contra", contravariant=True)
Step = Callable[[], None]


class Journal:
    """How to take back what was changed, the newest step last."""

    def __init__(self) -> None:
        self._steps: list[Step] = []

    def mark(self) -> int:
        """Where it stands, for `rollback`."""
        return len(self._steps)

    def note(self, step: Step) -> None:
        self._steps.append(step)

    def rollback(self, mark: int = 0) -> None:
        """Takes back what was changed since the mark."""
        while len(self._steps) > mark:
            self._steps.pop()()

    def clear(self) -> None:
        """What was changed stays."""
        self._steps.clear()


class Index(Protocol[V_contra]):
    """Follows a table: is told of each value that comes and goes; a change is one that goes and one that comes."""

    def add(self, identity: Hashable, value: V_contra) -> None: ...

    def remove(self, identity: Hashable, value: V_contra) -> None: ...


class Unique(Generic[T]):
    """Finds the one value with a key. Two with the same key are a caller's bug, which the database refuses."""

    def __init__(self, key: Callable[[T], Hashable]) -> None:
        self._key = key
        self._found: dict[Hashable, Hashable] = {}

    def add(self, identity: Hashable, value: T) -> None:
        self._found[self._key(value)] = identity

    def remove(self, identity: Hashable, value: T) -> None:
        key = self._key(value)
        if self._found.get(key) == identity:
            del self._found[key]

    def find(self, key: Hashable) -> Hashable | None:
        """The id of the value."""
        return self._found.get(key)


class Grouped(Generic[T]):
    """Finds all values with a key, of which each may have several, or none."""

    def __init__(self, keys: Callable[[T], Iterable[Hashable]]) -> None:
        self._keys = keys
        self._found: dict[Hashable, dict[Hashable, None]] = {}

    def add(self, identity: Hashable, value: T) -> None:
        for key in self._keys(value):
            self._found.setdefault(key, {})[identity] = None

    def remove(self, identity: Hashable, value: T) -> None:
        for key in self._keys(value):
            group = self._found[key]
            del group[identity]
            if not group:
                del self._found[key]

    def find(self, key: Hashable) -> Iterable[Hashable]:
        """The ids of the values, in no order."""
        return self._found.get(key, ())

    def count(self, key: Hashable) -> int:
        return len(self._found.get(key, ()))


class Intervals(Generic[T]):
    """Finds the values whose interval meets another, ascending; by group, each value in one or none."""

    def __init__(self, group: Callable[[T], Hashable], span: Callable[[T], tuple[int, int] | None]) -> None:
        self._group = group
        self._span = span
        self._starts: dict[Hashable, list[tuple[int, int, Hashable]]] = {}
        self._lengths: dict[Hashable, Counter[int]] = {}

    def add(self, identity: Hashable, value: T) -> None:
        span = self._span(value)
        if span is not None:
            group = self._group(value)
            held = self._starts.get(group)
            if held is None:
                held = self._starts[group] = []
                self._lengths[group] = Counter()
            insort(held, (*span, identity))
            self._lengths[group][span[1] - span[0]] += 1

    def remove(self, identity: Hashable, value: T) -> None:
        span = self._span(value)
        if span is None:
            return
        group = self._group(value)
        held = self._starts[group]
        del held[bisect_left(held, (*span, identity))]
        lengths = self._lengths[group]
        lengths[span[1] - span[0]] -= 1
        if not lengths[span[1] - span[0]]:
            del lengths[span[1] - span[0]]
        if not held:
            del self._starts[group], self._lengths[group]

    def meeting(self, group: Hashable, first: int, last: int) -> Iterator[tuple[int, int, Hashable]]:
        """First, last and id of each that meets first to last; none begins further below than the longest reaches."""
        held = self._starts.get(group)
        if held is None:
            return
        position = bisect_left(held, (first - max(self._lengths[group]),))
        while position < len(held) and held[position][0] <= last:
            if held[position][1] >= first:
                yield held[position]
            position += 1


class Sorted(Generic[T]):
    """Holds one number of each value in a group, ascending."""

    def __init__(self, group: Callable[[T], Hashable], number: Callable[[T], int]) -> None:
        self._group = group
        self._number = number
        self._held: dict[Hashable, list[int]] = {}

    def add(self, _identity: Hashable, value: T) -> None:
        insort(self._held.setdefault(self._group(value), []), self._number(value))

    def remove(self, _identity: Hashable, value: T) -> None:
        group = self._group(value)
        held = self._held[group]
        del held[bisect_left(held, self._number(value))]
        if not held:
            del self._held[group]

    def between(self, group: Hashable, first: int, last: int) -> Iterator[int]:
        """The numbers from first to last, read as far as the caller goes on asking."""
        held = self._held.get(group, [])
        for position in range(bisect_left(held, first), bisect_right(held, last)):
            yield held[position]


class Table(Generic[T]):
    """Values by id, in the order in which they came."""

    def __init__(self, journal: Journal, identity: Callable[[T], Hashable], *indexes: Index[T]) -> None:
        self._journal = journal
        self._identity = identity
        self._indexes = indexes
        self._values: dict[Hashable, T] = {}
        self._order: dict[Hashable, int] = {}
        self._next = 0

    def get(self, identity: Hashable) -> T | None:
        return self._values.get(identity)

    def all(self) -> list[T]:
        """Every value, the oldest first."""
        return self.in_order(self._values)

    def in_order(self, identities: Iterable[Hashable]) -> list[T]:
        """The values with these ids, the oldest first."""
        return [self._values[one] for one in sorted(identities, key=self._order.__getitem__)]

    def load(self, values: Iterable[T]) -> None:
        """Adds them to what was empty, for good."""
        held = [(self._identity(value), value) for value in values]
        for identity, value in held:
            self._values[identity] = value
            self._order[identity] = self._next
            self._next += 1
        for index in self._indexes:
            add = index.add
            for identity, value in held:
                add(identity, value)

    def put(self, value: T) -> None:
        """Adds it, or replaces the one with its id, whose place it takes."""
        identity = self._identity(value)
        former = self._values.get(identity)
        order = self._order.get(identity, self._next)
        self._next = max(self._next, order + 1)
        self._set(identity, former, value, order)
        self._journal.note(lambda: self._set(identity, value, former, order))

    def drop(self, identity: Hashable) -> None:
        """Takes it away; its not being there is as good."""
        former = self._values.get(identity)
        if former is not None:
            order = self._order[identity]
            self._set(identity, former, None, order)
            self._journal.note(lambda: self._set(identity, None, former, order))

    def _set(self, identity: Hashable, former: T | None, value: T | None, order: int) -> None:
        if former is not None:
            for index in self._indexes:
                index.remove(identity, former)
        if value is None:
            self._values.pop(identity, None)
            self._order.pop(identity, None)
            return
        self._values[identity] = value
        self._order[identity] = order
        for index in self._indexes:
            index.add(identity, value)
