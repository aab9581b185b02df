"""What `GET /host` tells: facts about the host, and what others' rules may do to our traffic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from app.model.spec import IPAddress, IPNetwork, Version
from app.model.state import IPInterface


@dataclass(frozen=True, slots=True)
class Setting:
    """A kernel setting: its value, and what it was before Bridgehead set it; None where it did not."""

    value: str
    former: str | None

    @property
    def by(self) -> str:
        """Who set it."""
        return "as found" if self.former is None else f"set by Bridgehead, was {self.former}"


@dataclass(frozen=True, slots=True)
class Uplink:
    """An interface that a default route goes to; MTU in bytes."""

    version: Version
    ifname: str
    via: IPAddress | None
    metric: int
    mtu: int
    addresses: tuple[IPInterface, ...]


@dataclass(frozen=True, slots=True)
class HostRoute:
    """A route of the host other than a default route."""

    destination: IPNetwork
    ifname: str


@dataclass(frozen=True, slots=True)
class HostFacts:
    """The host as its kernel shows it; a setting is None where the kernel has none such."""

    ip_forward: Setting | None
    ipv6_forwarding: Setting | None
    bridge_nf_call_iptables: bool | None
    bridge_nf_call_ip6tables: bool | None
    ipv6: bool
    uplinks: tuple[Uplink, ...] = ()
    routes: tuple[HostRoute, ...] = ()


@dataclass(frozen=True, slots=True)
class ForeignChain:
    """A chain of somebody else's that drops forwarded traffic; `certain`: nothing may save it there.

    `bridges`: those of ours whose traffic it meets; empty where there is no routed network yet.
    """

    backend: Literal["iptables", "nftables"]
    family: str
    table: str
    chain: str
    kind: Literal["policy", "rule"]
    owner: str
    verdict: str
    certain: bool
    bridges: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FirewallReport:
    """The backend in use and why, what the kernel offers, and foreign chains that may drop."""

    backend: str
    why: str
    legacy_ipv4: bool
    legacy_ipv6: bool
    nftables: bool
    foreign: tuple[ForeignChain, ...] = ()
