"""The rules as text, for each option of a network. REGOLDEN=1 writes the files anew: read the difference."""

import os
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from app.firewall.rules import TABLES, policy_base, port_base, rules_of
from app.model.spec import Protocol
from app.model.state import NetworkPolicy, PortForward

GOLDEN = Path(__file__).parent / "golden"


def web(*, routed=True, isolated=True, masquerade=True):
    return NetworkPolicy("id-web", "web", ip_network("192.168.15.0/24"), routed, isolated, masquerade)


def db(*, routed=True, isolated=True, masquerade=True):
    return NetworkPolicy("id-db", "bh-db", ip_network("10.7.0.0/16"), routed, isolated, masquerade)


def port(owner, host_ip="0.0.0.0", host_port=8080, protocol=Protocol.TCP, bridge="web", target="192.168.15.2"):
    return PortForward(owner, bridge, protocol, ip_address(host_ip), host_port, ip_address(target), 80)


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
    "tcp": [web(), port("p1")],
    "udp": [web(), port("p1", protocol=Protocol.UDP)],
    "host-ip": [web(), port("p1", "203.0.113.2")],
    "loopback": [web(), port("p1", "127.0.0.1")],
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
    """Every rule, by table and chain in the order of their making."""
    placed = [one for item in items for one in rules_of(item)]
    placed += policy_base() if any(isinstance(item, NetworkPolicy) for item in items) else ()
    placed += port_base() if any(isinstance(item, PortForward) for item in items) else ()
    lines = []
    for table in TABLES:
        lines.append(f"*{table}")
        for chain in dict.fromkeys(one.chain for one in placed if one.table == table):
            lines += [
                f"-A {chain} {one.rule.arguments()}" for one in placed if (one.table, one.chain) == (table, chain)
            ]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("case", CASES)
def test_rules(case):
    file = GOLDEN / f"{case}.txt"
    if os.environ.get("REGOLDEN"):
        file.write_text(rendered(CASES[case]))
    assert rendered(CASES[case]) == file.read_text(), "REGOLDEN=1 pytest tests/unit/test_golden.py writes it anew"


def test_every_file_has_its_case():
    assert {file.stem for file in GOLDEN.iterdir()} == set(CASES)


def test_every_rule_stands_in_a_known_table_and_a_chain_of_ours_but_for_one_jump():
    for items in CASES.values():
        base = policy_base() + port_base()
        for one in (*base, *(placed for item in items for placed in rules_of(item))):
            assert one.table in TABLES
            if not one.chain.startswith("BRIDGEHEAD-"):
                assert one.rule.arguments() == f"-j {one.rule.target}"
                assert one.rule.target.startswith("BRIDGEHEAD-")
            assert len(one.chain) <= 28
