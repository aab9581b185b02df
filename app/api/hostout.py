"""The answer of `GET /host`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

from pydantic import Field

from app.api.schemas import Answer
from app.model.host import FirewallReport, ForeignChain, HostFacts, Setting, Uplink
from app.model.spec import Network


class FirewallOut(Answer):
    """Which backend keeps the rules."""

    backend: str = Field(examples=["nftables"])
    why: str = Field(description="Why it is this one.")


class SettingOut(Answer):
    """A kernel setting."""

    value: str
    by: str = Field(description="Who set it.", examples=["set by Bridgehead, was 0", "as found"])


class ForeignChainOut(Answer):
    """A chain of somebody else's that drops packets, or may, that come from or go to our bridges."""

    backend: Literal["iptables", "nftables"] = Field(description="`iptables`: a legacy table.")
    family: str
    table: str
    chain: str
    kind: Literal["policy", "rule"]
    owner: str = Field(description="By well-known names, else `somebody`.", examples=["Docker"])
    verdict: str = Field(examples=["policy drop"])
    effect: Literal["drops", "may drop"]
    bridges: list[str] = Field(description="Whose packets; empty where there is no routed network yet.")


class OverlapOut(Answer):
    """A route of the host, other than a bridge's own, that overlaps a network's subnet."""

    network: str = Field(description="The network's name.")
    subnet: str
    route: str
    ifname: str


class UplinkOut(Answer):
    """An interface that a default route goes to."""

    version: Literal[4, 6]
    ifname: str
    via: str | None
    metric: int
    mtu: int
    addresses: list[str]


class CapabilitiesOut(Answer):
    """What the kernel has; looking loads no module."""

    iptables: bool = Field(description="Legacy tables for IPv4.")
    ip6tables: bool = Field(description="Legacy tables for IPv6.")
    nftables: bool
    ipv6: bool


class HostOut(Answer):
    """The host as it is now."""

    firewall: FirewallOut
    ip_forward: SettingOut | None
    ipv6_forwarding: SettingOut | None
    bridge_nf_call_iptables: bool | None = Field(description="null: br_netfilter is not loaded.")
    bridge_nf_call_ip6tables: bool | None
    foreign_chains: list[ForeignChainOut]
    overlapping_routes: list[OverlapOut]
    uplinks: list[UplinkOut]
    kernel: CapabilitiesOut


def host_out(facts: HostFacts, firewall: FirewallReport, networks: Iterable[Network]) -> HostOut:
    """The answer, from what the worker saw."""
    return HostOut(
        firewall=FirewallOut(backend=firewall.backend, why=firewall.why),
        ip_forward=_setting(facts.ip_forward),
        ipv6_forwarding=_setting(facts.ipv6_forwarding),
        bridge_nf_call_iptables=facts.bridge_nf_call_iptables,
        bridge_nf_call_ip6tables=facts.bridge_nf_call_ip6tables,
        foreign_chains=[_foreign(chain) for chain in firewall.foreign],
        overlapping_routes=[one for network in networks for one in _overlaps(network, facts)],
        uplinks=[_uplink(one) for one in facts.uplinks],
        kernel=CapabilitiesOut(
            iptables=firewall.legacy_ipv4,
            ip6tables=firewall.legacy_ipv6,
            nftables=firewall.nftables,
            ipv6=facts.ipv6,
        ),
    )


def _setting(setting: Setting | None) -> SettingOut | None:
    return None if setting is None else SettingOut(value=setting.value, by=setting.by)


def _foreign(chain: ForeignChain) -> ForeignChainOut:
    return ForeignChainOut(
        backend=chain.backend,
        family=chain.family,
        table=chain.table,
        chain=chain.chain,
        kind=chain.kind,
        owner=chain.owner,
        verdict=chain.verdict,
        effect="drops" if chain.certain else "may drop",
        bridges=list(chain.bridges),
    )


def _overlaps(network: Network, facts: HostFacts) -> Iterator[OverlapOut]:
    for plan in network.plans:
        for route in facts.routes:
            target = route.destination
            if (
                target.version == plan.subnet.version
                and target.overlaps(plan.subnet)
                and (target, route.ifname) != (plan.subnet, network.bridge)
            ):
                yield OverlapOut(network=network.name, subnet=str(plan.subnet), route=str(target), ifname=route.ifname)


def _uplink(uplink: Uplink) -> UplinkOut:
    return UplinkOut(
        version=uplink.version,
        ifname=uplink.ifname,
        via=None if uplink.via is None else str(uplink.via),
        metric=uplink.metric,
        mtu=uplink.mtu,
        addresses=[str(address) for address in uplink.addresses],
    )
