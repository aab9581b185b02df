"""Items as nftables rules and set elements, as data. The rules stand still; an item is a few elements.

The chains of `table ip bridgehead` and `table ip6 bridgehead` (docs/dataplane.md tells the packets' outcomes,
row by row). Each runs just before the other tools' chains of its hook:

    loopback     127.0.0.0/8 from the wire dies before any DNAT (IPv6: the kernel itself sees to ::1)
    forward      neighbours, closed networks, -> into: what goes to a network; out of one: accepted
    prerouting   local destinations -> published: DNAT
    output       the same for local processes
    postrouting  -> inward: hairpin and local traffic to a port; else SNAT of what leaves a network

`table bridge bridgehead` holds what may come out of guarded bridge ports, before bridging and before the host's IP.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv6Address
from typing import Literal

from app.model.spec import IPNetwork
from app.model.state import FirewallItem, NetworkPolicy, PortForward, SourceGuard

TABLE = "bridgehead"
Family = Literal["ip", "ip6", "bridge"]
_FAMILY: dict[int, Family] = {4: "ip", 6: "ip6"}
_INTERFACE = "type ifname"


@dataclass(frozen=True, slots=True)
class Element:
    """An element of a set, or of a map where it has a value; the words as nft lists them, names without quotes."""

    family: Family
    container: str
    key: tuple[str, ...]
    value: tuple[str, ...] = ()

    def text(self) -> str:
        """As nft takes it."""
        key = " . ".join(map(_word, self.key))
        return f"{key} : {' . '.join(self.value)}" if self.value else key


def _word(word: str) -> str:
    # addresses, numbers and keywords need no quotes and interface names do; nft takes no other word in quotes
    return word if _plain(word) else f'"{word}"'
