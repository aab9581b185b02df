"""What a benchmark is: a function that returns named samples, and what is wanted of their medians."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field


class Samples(dict):
    """Series of numbers by name, and the unit of each. Notes: what was left out, and why."""

    def __init__(self):
        super().__init__()
        self.units = {}
        self.notes = []

    def add(self, name, value, unit):
        self.setdefault(name, []).append(value)
        self.units[name] = unit

    def time(self, name, seconds):
        self.add(name, seconds * 1000, "ms")

    def median(self, name):
        """None where there is no such series."""
        return statistics.median(self[name]) if name in self else None

    def spread(self, name):
        """From where to where 90 of 100 are."""
        values = sorted(self[name])
        last = len(values) - 1
        return values[round(last * 0.05)], values[round(last * 0.95)]


@dataclass(frozen=True)
class Target:
    """ours: a series; beside: what it is set against.

    kind: `ratio` (ours / beside at most the limit), `plus` (ours - beside), `most` and `least` (ours alone).
    """

    what: str
    ours: str
    limit: float
    beside: str = ""
    kind: str = "ratio"

    def value(self, samples):
        """What is held against the limit; None where a series is missing."""
        ours, beside = samples.median(self.ours), samples.median(self.beside)
        if ours is None or (self.kind in {"ratio", "plus"} and beside is None):
            return None
        if self.kind == "ratio":
            return ours / beside
        return ours - beside if self.kind == "plus" else ours

    def met(self, samples):
        """None where nothing can be said."""
        value = self.value(samples)
        if value is None:
            return None
        return value >= self.limit if self.kind == "least" else value <= self.limit

    def words(self, samples):
        unit = samples.units.get(self.ours, "ms")
        if self.kind == "ratio":
            return f"<= {self.limit:g} x"
        return f"{'>=' if self.kind == 'least' else '<='} {'+' if self.kind == 'plus' else ''}{self.limit:g} {unit}"


@dataclass(frozen=True)
class Bench:
    """extra: only where it is named."""

    name: str
    title: str
    measure: Callable
    targets: tuple = ()
    extra: bool = False


@dataclass
class Registry:
    benches: dict = field(default_factory=dict)

    def __call__(self, name, title, *targets, extra=False):
        def register(measure):
            self.benches[name] = Bench(name, title, measure, targets, extra)
            return measure

        return register


bench = Registry()
