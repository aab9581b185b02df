"""What others' rules do to a new packet of ours, and which backend follows from what is there."""

from ipaddress import ip_network

import pytest

from app.firewall import legacy, selection
from app.firewall.docker_user import CHAIN, DockerUser
from app.firewall.foreign import Foreign
from app.firewall.nft_foreign import table_chains
from app.firewall.ruleset import Chain, Match, Packet, Rule, hits
from app.model.errors import StartupError
from app.model.ops import Op
from app.model.state import NetworkPolicy

MINE = ip_network("192.168.15.0/24")
OUT = Packet(4, "web", "web", "eth0", MINE, outward=True)
IN = Packet(4, "web", "eth0", "web", MINE, outward=False)


def verdicts(rules, packet=OUT, policy="accept", others=()):
    base = Chain("ip", "t", "f", "forward", policy, rules=list(rules))
    chains = {chain.name: chain for chain in (base, *others)}
    return [(hit.kind, hit.verdict, hit.certain) for hit in hits(base, chains, packet)]


def rule(verdict, *matches, target=""):
    return Rule(tuple(matches), verdict, target)


def iif(*names, negated=False):
    return Match("iif", names, negated)


CERTAIN_POLICY = [("policy", "policy drop", True)]
OTHER = Match("other")


def test_a_policy_drops():
    assert verdicts([], policy="drop") == CERTAIN_POLICY
    assert verdicts([]) == []


@pytest.mark.parametrize(
    "accept",
    [
        rule("accept"),
        rule("accept", iif("web")),
        rule("accept", iif("we*")),
        rule("accept", iif("eth0", negated=True)),
        rule("accept", Match("state", ("new", "established"))),
        rule("accept", Match("saddr", (ip_network("192.168.0.0/16"),))),
        rule("accept", Match("family", ("ipv4",))),
    ],
)
def test_an_accept_rule_that_surely_holds_saves(accept):
    assert verdicts([accept], policy="drop") == []


@pytest.mark.parametrize(
    "accept",
    [
        rule("accept", iif("docker0")),
        rule("accept", Match("state", ("established",))),
        rule("accept", Match("saddr", (ip_network("10.0.0.0/8"),))),
        rule("accept", Match("saddr", (ip_network("fd00::/8"),))),
        rule("accept", OTHER),
        rule("accept", Match("status", ("dnat",))),
    ],
)
def test_an_accept_rule_that_is_not_for_us_saves_nothing(accept):
    assert verdicts([accept], policy="drop") == CERTAIN_POLICY


def test_an_accept_rule_for_some_of_our_packets_makes_the_rest_uncertain():
    assert verdicts([rule("accept", iif("web"), OTHER)], policy="drop") == [("policy", "policy drop", False)]


def test_a_conditional_drop_may_drop_and_an_unconditional_one_does():
    assert verdicts([rule("drop", OTHER)]) == [("rule", "drop", False)]
    assert verdicts([rule("reject")]) == [("rule", "reject", True)]
    assert verdicts([rule("drop", Match("state", ("invalid",)))]) == []


def test_a_published_port_is_dnat():
    assert verdicts([rule("accept", Match("status", ("dnat",))), rule("drop")], packet=IN) == []


def test_jumps_are_followed_and_returned_from():
    user = Chain("ip", "t", "user", rules=[rule("return", iif("web")), rule("drop")])
    assert verdicts([rule("jump", target="user"), rule("accept")], others=[user], policy="drop") == []
    assert verdicts([rule("goto", target="user"), rule("accept")], others=[user], policy="drop") == CERTAIN_POLICY
    user = Chain("ip", "t", "user", rules=[rule("accept")])
    assert verdicts([rule("jump", iif("web"), target="user"), rule("drop")], others=[user]) == []
    assert verdicts([rule("jump", OTHER, target="user"), rule("drop")], others=[user]) == [("rule", "drop", True)]


def listed(*expressions):
    place = {"family": "inet", "table": "t", "name": "f", "hook": "forward", "policy": "accept"}
    rules = [{"rule": {"chain": "f", "handle": 4, "expr": list(one)}} for one in expressions]
    return table_chains([{"chain": place}, *rules])["f"].rules


def match(left, right, op="=="):
    return {"match": {"op": op, "left": left, "right": right}}


def test_listings_are_understood():
    meta, ct = {"meta": {"key": "iifname"}}, {"ct": {"key": "state"}}
    assert listed(
        [match(meta, {"set": ["a", "b*"]}, "!="), {"counter": {"packets": 0, "bytes": 0}}, {"accept": None}],
        [match(ct, {"set": [2, 8]}), {"reject": {"type": "icmpx"}}],
        [{"vmap": {"key": ct, "data": {"set": [["invalid", {"drop": None}], ["new", {"jump": {"target": "x"}}]]}}}],
        [{"xt": {"type": "match", "name": "conntrack"}}, {"xt": {"type": "target", "name": "REJECT"}}],
        [{"xt": None}, {"drop": None}],
        [match({"payload": {"protocol": "ip", "field": "saddr"}}, {"prefix": {"addr": "10.0.0.0", "len": 8}})],
        [match({"payload": {"protocol": "tcp", "field": "dport"}}, 80), {"drop": None}],
    ) == [
        Rule((Match("iif", ("a", "b*"), negated=True),), "accept", handle=4),
        Rule((Match("state", ("2", "new")),), "reject", handle=4),
        Rule((Match("state", ("invalid",)),), "drop"),
        Rule((Match("state", ("new",)),), "jump", "x"),
        Rule((), "", handle=4),
        Rule((OTHER,), "reject", handle=4),
        Rule((OTHER,), "drop", handle=4),
        Rule((Match("saddr", (ip_network("10.0.0.0/8"),)),), "", handle=4),
        Rule((OTHER,), "drop", handle=4),
    ]


# --- the choice


FOREIGN = Chain("ip", "filter", "FORWARD", "forward", "drop", legacy=True)


@pytest.fixture
def host(monkeypatch):
    """What the host has: sets the legacy chains and what is missing."""

    def has(*chains, **missing):
        monkeypatch.setattr(legacy, "chains", lambda: list(chains))
        monkeypatch.setattr(selection, "_missing", lambda name: missing.get(name, ""))

    return has


def test_auto_prefers_what_the_host_uses(host):
    host()
    assert selection.choose("auto").name == "nftables"
    host(FOREIGN)
    assert selection.choose("auto").name == "iptables"
    host(nftables="no nf_tables")
    found = selection.choose("auto")
    assert (found.name, found.why) == ("iptables", "auto: no nf_tables")


def test_our_own_chains_and_jumps_are_not_foreign():
    jump = Rule((), "jump", "BRIDGEHEAD-FORWARD")
    ours = Chain("ip", "filter", "BRIDGEHEAD-FORWARD", rules=[Rule((), "accept")])
    assert selection.legacy_use([Chain("ip", "filter", "FORWARD", "forward", rules=[jump]), ours]) == ""
    theirs = Chain("ip6", "nat", "POSTROUTING", "postrouting", rules=[jump, Rule((), "")])
    assert "table ip6 nat, chain POSTROUTING has a foreign rule" in selection.legacy_use([theirs])


def test_what_is_missing_is_said_with_what_would_work(host):
    host(nftables="cannot load libnftables.so.1: install it")
    with pytest.raises(StartupError, match=r"install it, or start with --firewall iptables$"):
        selection.choose("nftables")
    host(iptables="no ip_tables", nftables="no nf_tables")
    with pytest.raises(StartupError, match=r"no ip_tables, or start with --firewall none$"):
        selection.choose("iptables")
    with pytest.raises(StartupError, match=r"no nf_tables; no ip_tables; or start with --firewall none$"):
        selection.choose("auto")
    host(FOREIGN, iptables="no ip_tables")
    with pytest.raises(StartupError, match=r"policy DROP.*no ip_tables, or start with --firewall nftables$"):
        selection.choose("auto")
    assert selection.choose("none").why == "--firewall none"


# --- what it costs, and what nobody foresaw


class Traffic:
    name = "nftables"

    def apply(self, _ops):
        return []

    def sync(self, _items):
        return []


def test_others_rules_are_gone_through_once_until_something_changes(monkeypatch):
    """Every change of an object asks for its network's trouble."""
    firewall = selection.HostFirewall(Traffic(), selection.Choice("nftables", "asked for"))
    asked = []

    def trouble(policies):
        asked.append(list(policies))
        return f"{len(asked[-1])} drops"

    monkeypatch.setattr(firewall._foreign, "trouble", trouble)
    for _time in range(3):
        assert firewall.trouble("web") == "0 drops"
    assert len(asked) == 1
    policy = NetworkPolicy("web", "web", ip_network("10.0.0.0/24"), routed=True, isolated=True, masquerade=True)
    firewall.apply([Op(None, policy)])
    assert firewall.trouble("web") == "1 drops"
    firewall.apply([Op(policy, None)])
    assert firewall.trouble("web") == "0 drops"
    assert len(asked) == 3


@pytest.mark.parametrize("rule", [{"expr": [{"one": 1, "two": 2}]}, {"expr": [{"match": {"op": "=="}}]}])
def test_a_rule_in_docker_user_that_is_not_understood_stops_nobody(rule):
    class Nft:
        @property
        def opened(self):
            return self

        def list(self, _what, terse):
            assert terse
            chain = {"family": "ip", "table": "filter", "name": CHAIN}
            return [{"chain": chain}, {"rule": {**rule, "chain": CHAIN}}]

    foreign = Foreign(Nft(), with_legacy=False)
    foreign.tables[("ip", "filter")] = {CHAIN: None}
    assert DockerUser(Nft(), foreign).fit(()) == []
