"""Source guards beside any traffic backend: `table bridge bridgehead`, there only while a port is guarded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from app.firewall.nft_tables import NftTables
from app.firewall.protocol import Firewall
from app.model.errors import KernelRefused
from app.model.ops import Op
from app.model.state import FirewallItem, SourceGuard


class GuardedFirewall:
    """A backend for traffic, with guards. The kernel's bridge hook and libnftables are needed by the first guard."""

    def __init__(self, traffic: Firewall, guards: NftTables | None = None) -> None:
        self.name = traffic.name
        self._traffic = traffic
        self._guards = guards or NftTables("bridge")

    def apply(self, ops: Sequence[Op]) -> list[str]:
        """Guards first: to take them back is cheap where the traffic's rules are refused."""
        traffic = [op for op in ops if not isinstance(op.item, SourceGuard)]
        guards = [op for op in ops if isinstance(op.item, SourceGuard)]
        commands = self._guards.apply(_change(guards)) if guards else []
        if traffic:
            try:
                commands += self._traffic.apply(traffic)
            except KernelRefused:
                if guards:
                    self._guards.apply(_change([op.inverse for op in reversed(guards)]))
                raise
        return commands

    def sync(self, items: Iterable[FirewallItem]) -> list[str]:
        """See Firewall.sync."""
        items = list(items)
        found = self._guards.sync(item for item in items if isinstance(item, SourceGuard))
        return found + self._traffic.sync(item for item in items if not isinstance(item, SourceGuard))

    def changed(self, *, touched: bool) -> bool:
        """See Firewall.changed."""
        return self._guards.changed(touched=touched) or self._traffic.changed(touched=touched)


def _change(ops: Sequence[Op]) -> dict[tuple[str, ...], SourceGuard | None]:
    return {op.item.key: op.after if isinstance(op.after, SourceGuard) else None for op in ops}
