"""What a firewall backend does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from app.model.ops import Op
from app.model.state import FirewallItem


class Firewall(Protocol):
    """Keeps the kernel's rules equal to a set of network policies and port forwards.

    Every call is all or nothing, and raises KernelRefused where the kernel says no. One thread only.
    """

    name: str

    def apply(self, ops: Sequence[Op]) -> list[str]:
        """Changes the rules by these operations, all of them on firewall items; the cost is theirs.

        Returns the commands that one would have typed.
        """

    def sync(self, items: Iterable[FirewallItem]) -> list[str]:
        """Brings the rules to exactly these items, whatever is there; says what differed, one line each."""
