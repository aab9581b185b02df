"""What others' rules do to our traffic: a packet passes only where every base chain at its hook lets it pass."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

from app.firewall import legacy
from app.firewall.libnftables import Libnftables
from app.firewall.nfnetlink import Nfnetlink, nf_tables_loaded
from app.firewall.nft_foreign import TableKey, forward_tables
from app.firewall.ruleset import FORWARD_HOOK, OUTSIDE, Chain, Hit, Packet, Rule, hits
from app.model.errors import StartupError
from app.model.host import ForeignChain
from app.model.state import NetworkPolicy

log = logging.getLogger("bridgehead.firewall")

_ROUTES = Path("/proc/thread-self/net/route")
_WITH_FORWARD = ("filter", "mangle")
_FAMILIES = {4: ("ip", "inet", "bridge"), 6: ("ip6", "inet", "bridge")}
_OWNERS = (
    ("firewalld", "firewalld"),
    ("filter_FWD", "firewalld"),
    ("ufw", "ufw"),
    ("DOCKER", "Docker"),
    ("docker", "Docker"),
    ("LIBVIRT", "libvirt"),
    ("libvirt", "libvirt"),
    ("KUBE-", "Kubernetes"),
    ("kube-", "Kubernetes"),
    ("cali-", "Calico"),
    ("calico", "Calico"),
    ("CNI-", "CNI"),
    ("cni_", "CNI"),
    ("NETAVARK", "Podman"),
    ("netavark", "Podman"),
)
_SOMEBODY = "somebody"
_REMEDIES = {
    "ufw": "'ufw route allow in on {bridge}' and 'ufw route allow out on {bridge}'",
    "firewalld": "'firewall-cmd --permanent --zone=trusted --add-interface={bridge}' and a reload",
    "Docker": "an accept for '{bridge}' in its DOCKER-USER",
}
_ALLOW = "an accept for packets from and to '{bridge}' before it"
_HYPOTHETICAL = tuple(
    NetworkPolicy("", "bridgehead0", ip_network(subnet), routed=True, isolated=True, masquerade=True)
    for subnet in ("192.0.2.0/24", "2001:db8::/64")
)
"""Stand for the network that is still to come, where there is none."""


class Nftables:
    """libnftables, opened when it is needed: a host on which nobody ever used nftables shall not pay its memory."""

    def __init__(self) -> None:
        self._asking = Nfnetlink()
        self._opened: Libnftables | None = None

    @property
    def opened(self) -> Libnftables:
        """Raises StartupError where the library is missing."""
        if self._opened is None:
            self._opened = Libnftables()
        return self._opened

    def generation(self) -> int:
        """Rises with every change of anybody's; up to 1 there never was one. It loads no module. Raises KernelRefused.

        Many kernels number all namespaces together: a change elsewhere raises it too.
        """
        return self._asking.generation() if nf_tables_loaded() else 0

    def close(self) -> None:
        """It is opened again at the next use."""
        self._asking.close()
        if self._opened is not None:
            self._opened.close()
        self._opened = None


class Foreign:
    """The last look at others' chains.

    with_legacy: whether the legacy tables matter; they do not where our own jump stands first in FORWARD there.
    """

    def __init__(self, nft: Nftables, *, with_legacy: bool) -> None:
        self._nft = nft
        self._with_legacy = with_legacy
        self._generation = 0
        self.tables: dict[TableKey, dict[str, Chain]] = {}
        self._legacy: dict[TableKey, dict[str, Chain]] = {}
        self._uplink = OUTSIDE

    def look(self) -> None:
        """Reads what there is now; nftables' rules only where any changed since. Raises KernelRefused."""
        self._uplink = _uplink()
        generation = self._nft.generation()
        if generation != self._generation:
            self.tables = self._read() if generation > 1 else {}
            self._generation = generation
        self._legacy = {}
        if self._with_legacy:
            for chain in legacy.chains(_WITH_FORWARD):
                self._legacy.setdefault((chain.family, chain.table), {})[chain.name] = chain

    def _read(self) -> dict[TableKey, dict[str, Chain]]:
        try:
            return forward_tables(self._nft.opened)
        except StartupError as missing:
            log.warning("others' nftables rules are not looked at: %s", missing.detail)
            return {}

    def replace_rules(self, key: TableKey, chain: str, rules: list[Rule]) -> None:
        """What a chain holds after a change of ours."""
        if chain in self.tables.get(key, {}):
            self.tables[key][chain].rules = rules

    def chains(self, policies: Iterable[NetworkPolicy]) -> tuple[ForeignChain, ...]:
        """The foreign chains that may drop packets of these networks; of a network to come where there are none."""
        routed = [policy for policy in policies if policy.routed]
        met: dict[ForeignChain, list[str]] = {}
        for policy in routed or _HYPOTHETICAL:
            for found in self._found(policy):
                bridges = met.setdefault(found, [])
                if routed and policy.bridge not in bridges:
                    bridges.append(policy.bridge)
        certain = {_place(found) for found in met if found.certain}
        return tuple(
            replace(found, bridges=tuple(bridges))
            for found, bridges in met.items()
            if found.certain or _place(found) not in certain
        )

    def trouble(self, policies: Iterable[NetworkPolicy]) -> str:
        """Which chain surely drops the traffic of a network, and what would work; empty where none does."""
        for policy in policies:
            for found in self._found(policy) if policy.routed else ():
                if found.certain:
                    return _told(found, policy.bridge)
        return ""

    def _found(self, policy: NetworkPolicy) -> Iterator[ForeignChain]:
        for tables in (self.tables, self._legacy):
            for (family, table), chains in tables.items():
                if family not in _FAMILIES[policy.subnet.version]:
                    continue
                for base in chains.values():
                    if base.hook == FORWARD_HOOK:
                        for packet in self._packets(policy, family):
                            yield from (_finding(hit, base, table) for hit in hits(base, chains, packet))

    def _packets(self, policy: NetworkPolicy, family: str) -> tuple[Packet, ...]:
        version, bridge, mine = policy.subnet.version, policy.bridge, policy.subnet
        if family == "bridge":  # from port to port, inside one bridge
            return (Packet(version, bridge, bridge, bridge, mine, outward=True),)
        outward = Packet(version, bridge, bridge, self._uplink, mine, outward=True)
        return outward, Packet(version, bridge, self._uplink, bridge, mine, outward=False)


def _finding(hit: Hit, base: Chain, table: str) -> ForeignChain:
    chain = hit.chain
    owner = _owner(base, chain) if hit.kind == "policy" else _owner(chain, chain)
    if owner == _SOMEBODY:
        owner = _owner(base, chain)
    return ForeignChain(
        "iptables" if chain.legacy else "nftables",
        chain.family,
        table,
        chain.name,
        hit.kind,
        owner,
        hit.verdict,
        hit.certain,
    )


def _place(found: ForeignChain) -> tuple[str, ...]:
    return found.backend, found.family, found.table, found.chain, found.kind, found.owner


def _owner(base: Chain, chain: Chain) -> str:
    """Whose it is, by the names of the table, the chain and what it jumps to."""
    names = [chain.table, chain.name, *(rule.target for rule in base.rules)]
    for name in names:
        for start, owner in _OWNERS:
            if name.startswith(start):
                return owner
    return _SOMEBODY


def _told(found: ForeignChain, bridge: str) -> str:
    legacy_words = "legacy " if found.backend == "iptables" else ""
    whose = f", {found.owner}'s" if found.owner != _SOMEBODY else ""
    remedy = _REMEDIES.get(found.owner, _ALLOW).format(bridge=bridge)
    other = ", or --firewall iptables" if found.backend == "iptables" else ""
    return (
        f"chain {found.chain} of {legacy_words}table {found.family} {found.table} ({found.verdict}{whose}) "
        f"drops forwarded traffic of bridge '{bridge}': what works is {remedy}{other}"
    )


def _uplink() -> str:
    """The interface of the IPv4 default route, else none: rules that name another one do not meet our packets."""
    for line in _ROUTES.read_text().splitlines()[1:]:
        name, destination, *_rest, mask = line.split()[:8]
        if destination == "00000000" and mask == "00000000":
            return name
    return OUTSIDE
