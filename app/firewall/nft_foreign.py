"""Others' nftables chains at the forward hook, from libnftables' listings (libnftables-json(5))."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from ipaddress import ip_address, ip_network
from typing import Any

from app.firewall.libnftables import Libnftables
from app.firewall.ruleset import FORWARD_HOOK, Chain, Match, Rule
from app.model.errors import KernelRefused
from app.model.spec import IPNetwork

log = logging.getLogger("bridgehead.firewall")

OUR_TABLE = "bridgehead"
_FAMILIES = frozenset({"ip", "ip6", "inet", "bridge"})
_PLAIN = frozenset({"accept", "drop", "return"})
_INTERFACES = {"iifname": "iif", "iif": "iif", "ibrname": "iif", "oifname": "oif", "oif": "oif", "obrname": "oif"}
_STATE_NEW, _STATUS_DNAT = 8, 32  # NF_CT_STATE_BIT(IP_CT_NEW), IPS_DST_NAT
_REJECTS = {"icmp": "ipv4", "icmpv6": "ipv6"}
_OTHER = Match("other")

TableKey = tuple[str, str]


def forward_tables(nft: Libnftables) -> dict[TableKey, dict[str, Chain]]:
    """The chains by name of each foreign table that has a base chain at the forward hook. Raises KernelRefused."""
    listed = [one["chain"] for one in nft.list("list chains") if "chain" in one]
    wanted = {
        (chain["family"], chain["table"])
        for chain in listed
        if chain.get("hook") == FORWARD_HOOK and chain["family"] in _FAMILIES and chain["table"] != OUR_TABLE
    }
    found: dict[TableKey, dict[str, Chain]] = {}
    for family, table in sorted(wanted):
        try:
            found[family, table] = table_chains(nft.list(f"list table {family} {table}", terse=True))
        except KernelRefused as refusal:  # it went meanwhile, or this library cannot read it
            log.warning("table %s %s cannot be read: %s", family, table, refusal.detail)
        except (AttributeError, LookupError, TypeError, ValueError) as surprise:
            # rules that others wrote may take a form that is not known here, which must not keep ours from healing
            log.warning("table %s %s is not understood: %r", family, table, surprise)
    return found


def table_chains(listing: Iterable[dict[str, Any]]) -> dict[str, Chain]:
    """The chains of one table's listing, by name, with their rules."""
    chains: dict[str, Chain] = {}
    for one in listing:
        if "chain" in one:
            raw = one["chain"]
            hook, policy = raw.get("hook", ""), raw.get("policy", "accept")
            chains[raw["name"]] = Chain(raw["family"], raw["table"], raw["name"], hook, policy)
        elif "rule" in one and one["rule"]["chain"] in chains:
            chains[one["rule"]["chain"]].rules += _rules(one["rule"])
    return chains


def _rules(raw: dict[str, Any]) -> Iterator[Rule]:
    """One rule, or one for each element of its verdict map."""
    matches: list[Match] = []
    comment, handle = raw.get("comment", ""), raw.get("handle", 0)
    verdict = target = ""
    for expression in raw.get("expr", ()):
        ((kind, value),) = expression.items()
        if kind == "match":
            matches.append(_match(value))
        elif kind == "vmap":
            yield from _mapped(value, tuple(matches), comment)
        elif kind == "xt":
            matches += _xt(value)
            verdict = {"REJECT": "reject"}.get(value["name"], "") if value and value.get("type") == "target" else ""
        elif kind == "reject":
            verdict = kind
            # the family that the answer implies is not listed as a match
            family = _REJECTS.get((value or {}).get("type", ""))
            matches += [Match("family", (family,))] if family else []
        elif kind in _PLAIN:
            verdict = kind
        elif kind in ("jump", "goto"):
            verdict, target = kind, value["target"]
        elif kind == "limit":
            matches.append(_OTHER)
    yield Rule(tuple(matches), verdict, target, comment, handle)


def _xt(value: dict[str, Any] | None) -> list[Match]:
    """An extension of iptables-nft's, whose parameters are not shown."""
    known = value is not None and (value.get("type") == "target" or value.get("name") == "comment")
    return [] if known else [_OTHER]


def _mapped(value: dict[str, Any], matches: tuple[Match, ...], comment: str) -> Iterator[Rule]:
    data = value["data"]
    for key, verdict in data["set"] if isinstance(data, dict) and "set" in data else ():
        ((name, argument),) = verdict.items()
        target = argument["target"] if isinstance(argument, dict) else ""
        yield Rule((*matches, _compared(value["key"], key, negated=False)), name, target, comment)


def _match(value: dict[str, Any]) -> Match:
    if value["op"] not in ("==", "!=", "in"):
        return _OTHER
    return _compared(value["left"], value["right"], negated=value["op"] == "!=")


def _compared(left: Any, right: Any, *, negated: bool) -> Match:
    values = tuple(right["set"]) if isinstance(right, dict) and "set" in right else (right,)
    if isinstance(right, list):
        values = tuple(right)
    match left:
        case {"meta": {"key": key}} if key in _INTERFACES and all(isinstance(value, str) for value in values):
            side = _INTERFACES[key]
            return Match("iif" if side == "iif" else "oif", values, negated)
        case {"meta": {"key": "nfproto"}}:
            families = {"ipv4": "ipv4", "ipv6": "ipv6", 2: "ipv4", 10: "ipv6"}
            return Match("family", tuple(families.get(value, "") for value in values), negated)
        case {"ct": {"key": "state"}}:
            states = tuple("new" if value in ("new", _STATE_NEW) else str(value) for value in values)
            return Match("state", states, negated)
        case {"ct": {"key": "status"}}:
            bits = tuple("dnat" if value in ("dnat", _STATUS_DNAT) else str(value) for value in values)
            return Match("status", bits, negated)
        case {"payload": {"protocol": "ip" | "ip6", "field": "saddr" | "daddr" as field}}:
            networks = tuple(_network(value) for value in values)
            return Match("saddr" if field == "saddr" else "daddr", networks, negated)
    return _OTHER


def _network(value: Any) -> str | IPNetwork:
    """A named set, or a range, is nothing that is looked into."""
    match value:
        case {"prefix": {"addr": address, "len": length}}:
            return ip_network(f"{address}/{length}", strict=False)
        case str() if not value.startswith("@"):
            try:
                return ip_network(ip_address(value))
            except ValueError:
                return value
    return "?"
