"""The backend `nftables`: tables `ip bridgehead` and `ip6 bridgehead`, each there only while a network needs it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from app.firewall.libnftables import Libnftables
from app.firewall.nft_rules import Family, layout
from app.firewall.nft_tables import NftTables
from app.model.errors import KernelRefused, StartupError
from app.model.ops import Op
from app.model.state import FirewallItem, NetworkPolicy, PortForward, TrafficItem

_IPV6 = Path("/proc/sys/net/ipv6")


class NftablesFirewall:
    """Rules that stand still, and a few elements an item: a change is one transaction, as small as the change."""

    name = "nftables"

    def __init__(self) -> None:
        self._tables = NftTables("ip", "ip6")

    @staticmethod
    def require() -> None:
        """Has the kernel check our rules without keeping them, which loads their modules. Raises StartupError."""
        families: list[Family] = ["ip", "ip6"] if _IPV6.exists() else ["ip"]
        try:
            with Libnftables() as nft:
                for family in families:
                    nft.run("\n".join(layout(family).commands()), dry=True)
        except KernelRefused as refusal:
            raise StartupError(
                f"this kernel does not take the rules of --firewall nftables: {refusal.detail}"
            ) from None

    def apply(self, ops: Sequence[Op]) -> list[str]:
        """See Firewall.apply."""
        return self._tables.apply({op.item.key: _traffic_item(op.after) for op in ops})

    def sync(self, items: Iterable[FirewallItem]) -> list[str]:
        """See Firewall.sync."""
        return self._tables.sync(item for item in items if isinstance(item, TrafficItem))

    def changed(self, *, touched: bool) -> bool:
        """See Firewall.changed."""
        return self._tables.changed(touched=touched)


def _traffic_item(item: object) -> TrafficItem | None:
    if item is None or isinstance(item, (NetworkPolicy, PortForward)):
        return item
    raise TypeError(f"{type(item).__name__} is no item of this backend")
