"""The rules as text, for each option of a network. REGOLDEN=1 writes the files anew: read the difference."""

from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from goldenfiles import require

from app.firewall.repair import layout
from app.firewall.rules import TABLES, own_rules, rules_of, shared_rules
from app.model.spec import Protocol
from app.model.state import NetworkPolicy, PortForward

GOLDEN = Path(__file__).parent / "golden"


def web(*, routed=True, isolated=True, masquerade=True, **options):
    subnet = ip_network("192.168.15.0/24")
    return NetworkPolicy("id-web", "web", subnet, routed, isolated, masquerade, **options)


def web6(*, routed=True, isolated=True, masquerade=True, **options):
    return NetworkPolicy("id-web", "web", ip_network("fd00:15::/64"), routed, isolated, masquerade, **options)


def db(*, routed=True, isolated=True, masquerade=True, **options):
    return NetworkPolicy("id-db", "bh-db", ip_network("10.7.0.0/16"), routed, isolated, masquerade, **options)


def port(
    owner,
    host_ip="0.0.0.0",
    host_port=8080,
    protocol=Protocol.TCP,
    bridge="web",
    target="192.168.15.2",
    target_port=80,
    count=1,
):
    addresses = ip_address(host_ip), host_port, ip_address(target)
    return PortForward(owner, bridge, protocol, *addresses, target_port, count)


def port6(owner, host_ip="::", host_port=8080, **options):
    return port(owner, host_ip, host_port, target="fd00:15::2", **options)


CASES = {
    "nothing": [],
    "default": [web()],
    "layer2": [web(routed=False)],
    "internal": [web(routed=False, isolated=False, masquerade=False)],
    "open": [web(isolated=False)],
    "routed": [web(masquerade=False)],
    "open-routed": [web(isolated=False, masquerade=False)],
    "two-default": [web(), db()],
    "two-default-and-internal": [web(), db(routed=False)],
    "two-isolated-and-open": [web(), db(isolated=False)],
    "two-open-routed-and-default": [web(isolated=False, masquerade=False), db()],
    "two-open": [web(isolated=False), db(isolated=False)],
    "one-namespace-on-two": [
        web(isolated=False, beside=frozenset({db().subnet})),
        db(isolated=False, beside=frozenset({web().subnet})),
    ],
    "tcp": [web(), port("p1")],
    "udp": [web(), port("p1", protocol=Protocol.UDP)],
    "host-ip": [web(), port("p1", "203.0.113.2")],
    "loopback": [web(), port("p1", "127.0.0.1")],
    "sctp": [web(), port("p1", protocol=Protocol.SCTP)],
    "no-icc": [web(icc=False)],
    "internal-no-icc": [web(routed=False, icc=False)],
    "snat": [web(snat_address=ip_address("203.0.113.2"))],
    "open-snat-no-icc": [web(isolated=False, icc=False, snat_address=ip_address("203.0.113.2"))],
    "two-snat": [web(snat_address=ip_address("203.0.113.2")), db(isolated=False)],
    "range": [web(), port("p1", host_port=8000, target_port=8000, count=11)],
    "range-shifted": [web(), port("p1", host_port=8000, target_port=9000, count=11)],
    "range-over-buckets": [web(), port("p1", host_port=8060, target_port=80, count=8)],
    "range-wide": [web(), port("p1", host_port=20000, target_port=20000, count=1000, protocol=Protocol.UDP)],
    "buckets": [
        web(),
        port("p1", host_port=8000),
        port("p2", host_port=8063),
        port("p3", host_port=8064),
        port("p4", host_port=8000, protocol=Protocol.UDP),
        port("p5", host_port=65535, protocol=Protocol.SCTP),
    ],
    "ipv6-default": [web6()],
    "ipv6-layer2": [web6(routed=False)],
    "ipv6-internal-no-icc": [web6(routed=False, isolated=False, masquerade=False, icc=False)],
    "ipv6-open-routed": [web6(isolated=False, masquerade=False)],
    "ipv6-snat": [web6(snat_address=ip_address("2001:db8::2"))],
    "ipv6-ports": [
        web6(),
        port6("p1"),
        port6("p2", "2001:db8::2", 443, protocol=Protocol.UDP, target_port=443),
        port6("p3", "::1", 8000, count=11, target_port=8000),
        port6("p4", host_port=8000, count=11, target_port=9000, protocol=Protocol.SCTP),
    ],
    "dual": [web(), web6(), port("p1"), port6("p2")],
    "dual-closed-in-ipv6": [web(), web6(routed=False), port("p1")],
    "dual-and-internal": [web(), web6(masquerade=False, isolated=False), db(routed=False), port("p1"), port6("p2")],
    "ports-of-two": [
        web(),
        db(masquerade=False),
        port("p1"),
        port("p2", protocol=Protocol.UDP),
        port("p3", "127.0.0.1", 53, Protocol.UDP, "bh-db", "10.7.0.2"),
        port("p4", "203.0.113.2", 443, Protocol.TCP, "bh-db", "10.7.0.2"),
    ],
}


def rendered(items):
    """Every rule, by table and chain as they stand."""
    tables = layout(items)
    lines = []
    for table in TABLES:
        if table not in tables:
            continue
        lines.append(f"{table.program} *{table.name}")
        for chain, rules in tables[table].items():
            lines += [f"-A {chain} {one.rule.arguments()}" for one in rules]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("case", CASES)
def test_rules(case):
    require(rendered(CASES[case]), GOLDEN / f"{case}.txt")


def test_every_file_has_its_case():
    assert {file.stem for file in GOLDEN.iterdir()} == set(CASES)


def test_every_rule_stands_in_a_known_table_and_a_chain_of_ours_but_for_one_jump():
    for items in CASES.values():
        for one in (placed for item in items for placed in rules_of(item)):
            assert one.table in TABLES
            if not one.chain.startswith("BRIDGEHEAD-"):
                assert one.rule.arguments() == f"-j {one.rule.target}"
                assert one.rule.target.startswith("BRIDGEHEAD-")
            assert len(one.chain) <= 28


def test_no_two_items_have_a_rule_of_their_own_in_common_and_what_they_share_is_shared():
    for items in CASES.values():
        own = [placed for item in items for placed in own_rules(item)]
        assert len(own) == len(set(own))
        assert not set(own) & {placed for item in items for placed in shared_rules(item)}


def test_the_families_never_meet():
    for items in CASES.values():
        for item in items:
            version = item.subnet.version if isinstance(item, NetworkPolicy) else item.host_ip.version
            assert {placed.table.version for placed in rules_of(item)} == {version}
