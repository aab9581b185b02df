"""The backend `none`: forwards and filters nothing; somebody else keeps the rules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from app.model.ops import Op
from app.model.state import FirewallItem


class NullFirewall:
    """Accepts everything and does nothing."""

    name = "none"

    def apply(self, ops: Sequence[Op]) -> list[str]:
        """Does nothing, by no command."""
        return []

    def sync(self, items: Iterable[FirewallItem]) -> list[str]:
        """Does nothing, and finds nothing amiss."""
        return []

    def changed(self, *, touched: bool) -> bool:
        """There is nothing that could."""
        return False
