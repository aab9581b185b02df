"""The nftables rules as text, for each option of a network. REGOLDEN=1 writes the files anew: read the difference."""

from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from goldenfiles import require

from app.firewall.nft_rules import element_commands, elements_of, layout
from app.model.spec import Protocol
from app.model.state import NetworkPolicy, PortForward, SourceGuard

GOLDEN = Path(__file__).parent / "golden-nft"


class Net:
    """The items of one IP version."""

    def __init__(self, version):
        self.version = version

    def pick(self, four, six):
        return four if self.version == 4 else six

    def policy(self, bridge, subnet, **options):
        values = {"routed": True, "isolated": True, "masquerade": True, **options}
        return NetworkPolicy(f"id-{bridge}", bridge, ip_network(subnet), **values)

    def web(self, **options):
        return self.policy("web", self.pick("192.168.15.0/24", "fd15::/64"), **options)

    def db(self, **options):
        return self.policy("bh-db", self.pick("10.7.0.0/16", "fd07::/64"), **options)

    def address(self, name):
        found = {
            "any": ("0.0.0.0", "::"),
            "host": ("203.0.113.2", "2001:db8:1::2"),
            "loopback": ("127.0.0.1", "::1"),
            "web": ("192.168.15.2", "fd15::2"),
            "bh-db": ("10.7.0.2", "fd07::2"),
        }
        return ip_address(self.pick(*found[name]))

    def port(self, owner, host="any", host_port=8080, protocol=Protocol.TCP, bridge="web", count=1):
        target = self.address(bridge)
        return PortForward(owner, bridge, protocol, self.address(host), host_port, target, 80, count)


def cases(version):
    net = Net(version)
    web, db, port = net.web, net.db, net.port
    return {
        "nothing": [],
        "default": [web()],
        "layer2": [web(routed=False)],
        "internal": [web(routed=False, isolated=False, masquerade=False)],
        "open": [web(isolated=False)],
        "routed": [web(masquerade=False)],
        "open-routed": [web(isolated=False, masquerade=False)],
        "no-icc": [web(icc=False)],
        "internal-no-icc": [web(routed=False, icc=False)],
        "snat": [web(snat_address=net.address("host"))],
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
        "sctp": [web(), port("p1", protocol=Protocol.SCTP)],
        "range": [web(), port("p1", host_port=8000, count=3)],
        "host-ip": [web(), port("p1", "host")],
        "loopback": [web(), port("p1", "loopback")],
        "ports-of-two": [
            web(),
            db(masquerade=False),
            port("p1"),
            port("p2", protocol=Protocol.UDP),
            port("p3", "loopback", 53, Protocol.UDP, "bh-db"),
            port("p4", "host", 443, Protocol.TCP, "bh-db"),
        ],
    }


GUARDED = SourceGuard("g", "veth1", "02:00:00:00:0A:01", frozenset(map(ip_address, ["192.168.15.2", "fd15::2"])))
CASES = {
    **{f"{name}-ip{version}": items for version in (4, 6) for name, items in cases(version).items() if items},
    "guard": [GUARDED],
    "guard-ipv4": [SourceGuard("g", "veth1", "02:00:00:00:00:01", frozenset({ip_address("192.168.15.2")}))],
}


def rendered(items):
    """Every command of a fresh start, tables first."""
    elements = [one for item in items for one in elements_of(item)]
    tables = [line for family in dict.fromkeys(one.family for one in elements) for line in layout(family).commands()]
    return "\n".join([*tables, *element_commands("add", elements)]) + "\n"


@pytest.mark.parametrize("case", CASES)
def test_commands(case):
    require(rendered(CASES[case]), GOLDEN / f"{case}.nft")


def test_every_file_has_its_case():
    assert {file.stem for file in GOLDEN.iterdir()} == set(CASES)


def test_no_change_reads_a_set():
    """libnftables reads all elements of sets whose key is one interval, before every change of anything."""
    for family in ("ip", "ip6", "bridge"):
        containers = layout(family).containers
        assert not any(one.interval and len(one.key) == 1 for one in containers.values())
        assert not any(containers[name].interval for name in containers if name.startswith(("ports", "networks")))


def test_an_item_is_a_few_elements():
    for case, items in CASES.items():
        for item in items:
            ports = item.count if isinstance(item, PortForward) else 0
            assert len(list(elements_of(item))) <= max(ports, 7), case
