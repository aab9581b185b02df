"""Which backend keeps the rules, what the other one left behind, and how ours get on with others' rules."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from app.firewall import legacy
from app.firewall.docker_user import DockerUser
from app.firewall.foreign import Foreign, Nftables
from app.firewall.libnftables import keep_descriptors
from app.firewall.nft_foreign import OUR_TABLE
from app.firewall.null import NullFirewall
from app.firewall.protocol import NONE, Firewall
from app.firewall.rules import PREFIX
from app.firewall.ruleset import Chain
from app.kernel.namespaces import Namespaces
from app.model.errors import KernelRefused, StartupError
from app.model.host import FirewallReport
from app.model.ops import Op
from app.model.state import FirewallItem, ItemKey, NetworkPolicy

log = logging.getLogger("bridgehead.firewall")

IPTABLES, NFTABLES = "iptables", "nftables"
_KEPT = {IPTABLES: {"bridge"}, NFTABLES: {"ip", "ip6", "bridge"}, NONE: set[str]()}
"""Families of the tables named like ours that each backend keeps itself."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A backend's name, and why it is this one."""

    name: str
    why: str


def open_firewall(name: str) -> HostFirewall:
    """The backend of a name, or `auto`, in the calling thread's namespace. Raises StartupError in one line."""
    keep_descriptors()
    choice = choose(name)
    log.info("firewall %s: %s", choice.name, choice.why)
    return HostFirewall(_backend(choice.name), choice)


def choose(name: str) -> Choice:
    """Raises StartupError that says what is missing and what would work."""
    if name == "auto":
        return _automatic()
    missing = _missing(name)
    if missing:
        others = [other for other in (NFTABLES, IPTABLES) if other != name and not _missing(other)]
        raise StartupError(f"{missing}, or start with --firewall {others[0] if others else NONE}")
    return Choice(name, f"--firewall {name}")


def _automatic() -> Choice:
    in_use = legacy_use(legacy.chains())
    order = (IPTABLES, NFTABLES) if in_use else (NFTABLES, IPTABLES)
    missing = {name: _missing(name) for name in order[:1]}
    if not missing[order[0]]:
        reason = in_use or "the legacy iptables tables hold no foreign rule or policy, and the kernel has nftables"
        return Choice(order[0], f"auto: {reason}")
    if in_use:  # what is accepted elsewhere would still be dropped there
        raise StartupError(f"{in_use}, so iptables is needed: {missing[IPTABLES]}, or start with --firewall nftables")
    missing[IPTABLES] = _missing(IPTABLES)
    if not missing[IPTABLES]:
        return Choice(IPTABLES, f"auto: {missing[NFTABLES]}")
    raise StartupError(f"{missing[NFTABLES]}; {missing[IPTABLES]}; or start with --firewall none")


def legacy_use(chains: Iterable[Chain]) -> str:
    """What somebody else has in the legacy tables, in words; empty where it is nothing."""
    for chain in chains:
        place = f"legacy table {chain.family} {chain.table}, chain {chain.name}"
        if chain.name.startswith(PREFIX):
            continue
        if chain.hook and chain.policy != "accept":
            return f"{place} has the policy {chain.policy.upper()}"
        if any(not rule.target.startswith(PREFIX) for rule in chain.rules):
            return f"{place} has a foreign rule"
    return ""


def _missing(name: str) -> str:
    """What keeps a backend from working here, and what would help; empty where nothing does."""
    try:
        with contextlib.closing(Namespaces()) as namespaces, namespaces.scratch():
            if name == IPTABLES:
                from app.firewall.iptables import IptablesFirewall  # noqa: PLC0415 - loads libraries

                IptablesFirewall.require()
            elif name == NFTABLES:
                from app.firewall.nftables import NftablesFirewall  # noqa: PLC0415 - loads libraries

                NftablesFirewall.require()
    except StartupError as failure:
        return failure.detail.partition(", or start with --firewall")[0]
    except (ImportError, OSError) as failure:
        return f"the {name} libraries cannot be loaded ({failure}): install {name}"
    return ""


def _backend(name: str) -> Firewall:
    if name == NONE:
        return NullFirewall()
    from app.firewall.guards import GuardedFirewall  # noqa: PLC0415 - not needed without a firewall

    if name == NFTABLES:
        from app.firewall.nftables import NftablesFirewall  # noqa: PLC0415 - loads libraries

        return GuardedFirewall(NftablesFirewall())
    from app.firewall.iptables import IptablesFirewall  # noqa: PLC0415 - loads libraries

    return GuardedFirewall(IptablesFirewall())


class HostFirewall:
    """A backend among others' rules: after its first sync the other backend's leftovers go; others' chains are watched.

    See `app.firewall.protocol.Firewall` and `Watchful`.
    """

    def __init__(self, traffic: Firewall, choice: Choice) -> None:
        self.name = choice.name
        self._traffic = traffic
        self._choice = choice
        self._nft = Nftables()
        self._foreign = Foreign(self._nft, with_legacy=choice.name != IPTABLES)
        self._docker_user = DockerUser(self._nft, self._foreign)
        self._policies: dict[ItemKey, NetworkPolicy] = {}
        self._troubles: dict[str, str] = {}
        self._cleared = False

    def apply(self, ops: Sequence[Op]) -> list[str]:
        """The backend's change; where networks come or go, then Docker is told."""
        told = self._traffic.apply(ops)
        changed = False
        for op in ops:
            if isinstance(op.before, NetworkPolicy):
                changed |= self._policies.pop(op.before.key, None) is not None
            if isinstance(op.after, NetworkPolicy):
                self._policies[op.after.key] = op.after
                changed = True
        if changed:
            self._troubles.clear()
            told += self._fit()
        return told

    def sync(self, items: Iterable[FirewallItem]) -> list[str]:
        """New rules first, then leftovers: what is established passes by either's."""
        wanted = list(items)
        found = self._traffic.sync(wanted)
        self._policies = {item.key: item for item in wanted if isinstance(item, NetworkPolicy)}
        if not self._cleared:
            found += self._clear()
            self._cleared = True
        try:
            self.look()
        except KernelRefused as refusal:
            log.warning("others' rules cannot be read: %s", refusal.detail)
        return found + self._fit()

    def changed(self, *, touched: bool) -> bool:
        """See Firewall.changed."""
        return self._traffic.changed(touched=touched)

    def trouble(self, owner: str) -> str:
        """Which chain of whose drops a network's traffic, as of the last look, and what would work; empty for none."""
        if self.name == NONE:
            return ""
        if owner not in self._troubles:  # every change of a network's objects asks, and others' rules may be thousands
            own = (policy for policy in self._policies.values() if policy.owner == owner)
            self._troubles[owner] = self._foreign.trouble(own)
        return self._troubles[owner]

    def look(self) -> None:
        """See Watchful.look."""
        self._troubles.clear()
        self._foreign.look()

    def report(self) -> FirewallReport:
        """A fresh look. Raises KernelRefused."""
        self.look()
        there = legacy.available()
        return FirewallReport(
            backend=self.name,
            why=self._choice.why,
            legacy_ipv4=there["ip"],
            legacy_ipv6=there["ip6"],
            nftables=self._nft.generation() > 0,
            foreign=self._foreign.chains(self._policies.values()),
        )

    def _fit(self) -> list[str]:
        return self._docker_user.fit(self._policies.values() if self.name != NONE else ())

    def _clear(self) -> list[str]:
        """What another backend left; says what there was. Raises KernelRefused."""
        found: list[str] = []
        if self.name != IPTABLES and any(chain.name.startswith(PREFIX) for chain in legacy.chains()):
            from app.firewall.iptables import IptablesFirewall  # noqa: PLC0415 - only where it has something to remove

            found += IptablesFirewall().sync(())
        if self._nft.generation() > 1:
            found += self._clear_tables()
        return found

    def _clear_tables(self) -> list[str]:
        try:
            listed = self._nft.opened.list("list tables")
        except StartupError:
            return []  # without the library we made none
        tables = [one["table"] for one in listed if "table" in one]
        stale = [one["family"] for one in tables if one["name"] == OUR_TABLE]
        stale = [family for family in stale if family not in _KEPT[self.name]]
        if stale:
            self._nft.opened.run("\n".join(f"delete table {family} {OUR_TABLE}" for family in stale))
        return [f"nftables: table {family} {OUR_TABLE} was left over" for family in stale]
