"""Others' rules as data, whichever way they were read, and what they do to a new packet of a network of ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from app.model.spec import IPNetwork

Field = Literal["iif", "oif", "saddr", "daddr", "state", "status", "family", "other"]
"""What a match looks at; `other` is anything that is not understood here."""
FORWARD_HOOK = "forward"
OUTSIDE = ""
"""The interface of a packet's outer side where no uplink is known: no name matches it."""


class Answer(Enum):
    """Whether a match holds for a packet."""

    NO = 0
    MAYBE = 1
    YES = 2


@dataclass(frozen=True, slots=True)
class Match:
    """A condition: one of the values, or none of them where `negated`."""

    field: Field
    values: tuple[str | IPNetwork, ...] = ()
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """verdict: accept, drop, reject, jump, goto, return, or empty for none that ends anything."""

    matches: tuple[Match, ...] = ()
    verdict: str = ""
    target: str = ""
    comment: str = ""
    handle: int = 0


@dataclass(slots=True)
class Chain:
    """`hook` is empty but for base chains; `policy` is `accept` or `drop`."""

    family: str
    table: str
    name: str
    hook: str = ""
    policy: str = "accept"
    legacy: bool = False
    rules: list[Rule] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Packet:
    """The first packet of a connection; `bridge` is ours, `mine` its network's subnet."""

    version: int
    bridge: str
    iif: str
    oif: str
    mine: IPNetwork
    outward: bool

    @property
    def dnat(self) -> bool:
        """What comes in comes by a published port."""
        return not self.outward


@dataclass(frozen=True, slots=True)
class Hit:
    """A chain that drops a packet, by its policy or by a rule; `certain` where nothing may save the packet."""

    chain: Chain
    kind: Literal["policy", "rule"]
    verdict: str
    certain: bool


def hits(base: Chain, chains: Mapping[str, Chain], packet: Packet) -> list[Hit]:
    """Where a base chain, with the chains of its table by name, may drop the packet; what is certain comes first."""
    walk = _Walk(chains, packet)
    if not walk.through(base, certain=True, named=False) and base.policy == "drop":
        walk.found.append(Hit(base, "policy", "policy drop", not walk.covered))
    return sorted(walk.found, key=lambda hit: not hit.certain)


@dataclass(slots=True)
class _Walk:
    chains: Mapping[str, Chain]
    packet: Packet
    found: list[Hit] = field(default_factory=list)
    covered: bool = False
    """An accept rule that names the network, under some further condition, was passed."""

    def through(self, chain: Chain, *, certain: bool, named: bool) -> bool:
        """Whether the packet's way ends in the chain or below it; False: it goes on behind the jump."""
        for rule in chain.rules:
            answer, names_us = self._matches(rule)
            if answer is Answer.NO:
                continue
            sure, names_us = answer is Answer.YES, named or names_us
            match rule.verdict:
                case "accept" if sure:
                    self.covered |= not certain and names_us
                    return True
                case "accept":
                    self.covered |= names_us
                case "drop" | "reject":
                    self.found.append(Hit(chain, "rule", rule.verdict, certain and sure and not self.covered))
                    if sure:
                        return True
                case "jump" | "goto" if rule.target in self.chains:
                    ended = self.through(self.chains[rule.target], certain=certain and sure, named=names_us)
                    if sure and ended:
                        return True
                    if sure and rule.verdict == "goto":
                        return False
                case "return" if sure:
                    return False
        return False

    def _matches(self, rule: Rule) -> tuple[Answer, bool]:
        """Whether a rule holds for the packet, and whether it names the network: by interface or address."""
        total, names_us = Answer.YES, False
        for match in rule.matches:
            answer = self._answer(match)
            if answer is Answer.NO:
                return Answer.NO, False
            if answer is Answer.MAYBE:
                total = Answer.MAYBE
            elif match.field in self._own_fields() and not match.negated:
                names_us = True
        return total, names_us

    def _own_fields(self) -> tuple[Field, Field]:
        return ("iif", "saddr") if self.packet.outward else ("oif", "daddr")

    def _answer(self, match: Match) -> Answer:
        answer = self._plain(match)
        if not match.negated or answer is Answer.MAYBE:
            return answer
        return Answer.NO if answer is Answer.YES else Answer.YES

    def _plain(self, match: Match) -> Answer:
        packet = self.packet
        match match.field:
            case "iif" | "oif":
                name = packet.iif if match.field == "iif" else packet.oif
                return _yes(any(_is_named(name, str(value)) for value in match.values))
            case "saddr" | "daddr":
                own = (match.field == "saddr") == packet.outward
                return _address(packet, match, own=own)
            case "state":
                return _yes("new" in match.values)
            case "status":
                return _yes(packet.dnat) if match.values == ("dnat",) else Answer.MAYBE
            case "family":
                return _yes(f"ipv{packet.version}" in match.values)
        return Answer.MAYBE


def _yes(holds: bool) -> Answer:
    return Answer.YES if holds else Answer.NO


def _is_named(name: str, pattern: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def _address(packet: Packet, match: Match, *, own: bool) -> Answer:
    networks: Iterator[IPNetwork] = (value for value in match.values if not isinstance(value, str))
    same = [network for network in networks if network.version == packet.version]
    if not same:
        return Answer.NO if all(not isinstance(value, str) for value in match.values) else Answer.MAYBE
    if any(network.prefixlen == 0 for network in same):
        return Answer.YES
    if not own:
        return Answer.MAYBE
    if any(packet.mine.subnet_of(network) for network in same):  # type: ignore[arg-type]
        return Answer.YES
    return Answer.MAYBE if any(packet.mine.overlaps(network) for network in same) else Answer.NO
