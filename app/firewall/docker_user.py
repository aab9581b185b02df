"""DOCKER-USER, where Docker lets others' traffic through: accept rules for our bridges, marked by their comment.

Our own chains run before Docker's, so what comes here from a bridge of ours is what they let pass.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Collection, Iterable

from app.firewall.foreign import Foreign, Nftables
from app.firewall.nft_foreign import TableKey, table_chains
from app.firewall.ruleset import Rule
from app.model.errors import KernelRefused
from app.model.state import NetworkPolicy

log = logging.getLogger("bridgehead.firewall")

CHAIN = "DOCKER-USER"
COMMENT = "bridgehead"
_TABLES: dict[TableKey, int] = {("ip", "filter"): 4, ("ip6", "filter"): 6}
_SIDES = {"iif": "iifname", "oif": "oifname"}
_Wanted = set[tuple[str, str]]


class DockerUser:
    """Keeps the rules equal to the routed networks; where the last look saw no such chain it costs nothing."""

    def __init__(self, nft: Nftables, foreign: Foreign) -> None:
        self._nft = nft
        self._foreign = foreign

    def fit(self, policies: Iterable[NetworkPolicy]) -> list[str]:
        """The commands that it took. A refusal is logged: the status tells what is dropped then."""
        routed = [policy for policy in policies if policy.routed]
        done: list[str] = []
        for table, version in _TABLES.items():
            if CHAIN not in self._foreign.tables.get(table, {}):
                continue
            bridges = {policy.bridge for policy in routed if policy.subnet.version == version}
            try:
                done += self._fit(table, {(side, bridge) for bridge in bridges for side in _SIDES})
            except KernelRefused as refusal:
                level = logging.INFO if refusal.errno == errno.ENOENT else logging.WARNING
                log.log(level, "chain %s of table %s is not changed: %s", CHAIN, " ".join(table), refusal.detail)
            except (AttributeError, LookupError, TypeError, ValueError) as surprise:
                # rules that others wrote since the last look may take a form that is not known here
                log.warning("chain %s of table %s is not understood: %r", CHAIN, " ".join(table), surprise)
        return done

    def _fit(self, table: TableKey, wanted: _Wanted) -> list[str]:
        place = f"{' '.join(table)} {CHAIN}"
        rules = self._rules(table)
        surplus = [rule for rule in rules if rule.comment == COMMENT and not _is_one_of(rule, wanted)]
        held = {_what(rule) for rule in rules if rule.comment == COMMENT}
        missing = [one for one in sorted(wanted) if one not in held]
        lines = [f"delete rule {place} handle {rule.handle}" for rule in surplus]
        lines += [
            f'insert rule {place} {_SIDES[side]} "{bridge}" counter accept comment "{COMMENT}"'
            for side, bridge in missing
        ]
        if lines:
            self._nft.opened.run("\n".join(lines))
            rules = self._rules(table)
        self._foreign.replace_rules(table, CHAIN, rules)
        return [f"nft {line}" for line in lines]

    def _rules(self, table: TableKey) -> list[Rule]:
        listing = self._nft.opened.list(f"list chain {' '.join(table)} {CHAIN}", terse=True)
        return table_chains(listing)[CHAIN].rules


def _what(rule: Rule) -> tuple[str, str]:
    """The side and the bridge that one of our rules is for; nothing of the kind where it is not as we write it."""
    if len(rule.matches) == 1 and rule.verdict == "accept" and len(rule.matches[0].values) == 1:
        return rule.matches[0].field, str(rule.matches[0].values[0])
    return "", ""


def _is_one_of(rule: Rule, wanted: Collection[tuple[str, str]]) -> bool:
    return _what(rule) in wanted
