"""Row 15: others' rules that drop what is forwarded."""

import pytest
from cells import PROTOCOLS
from world import get

from app.sandbox import eventually

only_iptables = pytest.mark.parametrize("firewall", ["iptables"])
only_nftables = pytest.mark.parametrize("firewall", ["nftables"])
dropping = pytest.mark.parametrize("forward_policy", ["DROP"])
accepting = pytest.mark.parametrize("forward_policy", ["ACCEPT"])

DOCKER = """
table FAMILY filter {
  chain DOCKER-USER {
    counter return
  }
  chain FORWARD {
    type filter hook forward priority filter; policy drop;
    counter jump DOCKER-USER
  }
}
"""
STRANGER = """
table FAMILY stranger {
  chain gate {
    type filter hook forward priority filter; policy drop;
  }
}
"""


def nft_family(lab):
    return "ip" if lab.family.version == 4 else "ip6"


def load(lab, rules):
    """The daemon looks at others' rules with each full pass, and whenever it is asked about the host."""
    lab.host.exec(["nft", "-f", "-"], stdin=rules.replace("FAMILY", nft_family(lab)))
    get(lab.api, "host")


def published(lab, **fields):
    red = lab.red(**fields)
    lab.publish("red", 8080, target_port=80)
    return red


def passes(lab, cell, red, expected=True):
    """Out, and in by the published port."""
    family = lab.family
    lab.check(cell, expected, red, family.server, lab.internet)
    with lab.servers(red, 80) as servers:
        answered = lab.answered(lab.client, family.host, 8080, b"red\n")
        for protocol in PROTOCOLS:
            with cell(protocol):
                assert (protocol in answered) is expected
                assert {address for address, _port in servers[protocol].peers} == (
                    {family.client} if expected else set()
                )


def status(lab):
    return get(lab.api, "networks/web")["status"]


def is_degraded(lab, cell, *words):
    """It says which chain drops, and whose it is."""
    said = status(lab)
    with cell(*PROTOCOLS):
        assert said["state"] == "degraded"
        for word in words:
            assert word in said["message"]


@only_iptables
@dropping
def test_row_15_a_drop_at_the_end_of_forward_and_its_policy(lab, baseline, family, cell):
    """Our jump stands first."""
    program = "iptables-legacy" if family.version == 4 else "ip6tables-legacy"
    lab.host.exec([program, "-A", "FORWARD", "-j", "DROP"])
    baseline.take()
    red = published(lab, isolated=False)
    green = lab.green(isolated=False)
    passes(lab, cell, red)
    lab.check(cell, True, green, family.red, red)
    with cell(*PROTOCOLS):
        assert status(lab)["state"] == "ready"


@only_nftables
@dropping
def test_row_15_nftables_beside_a_legacy_policy_says_what_drops(lab, baseline, family, cell):
    if family.version == 6:  # so that it is ip6tables' policy that drops
        lab.host.exec(["iptables-legacy", "-P", "FORWARD", "ACCEPT"])
        baseline.take()
        get(lab.api, "host")
    red = published(lab)
    passes(lab, cell, red, expected=False)
    is_degraded(
        lab, cell, f"chain FORWARD of legacy table {nft_family(lab)} filter", "policy drop", "--firewall iptables"
    )


@pytest.mark.parametrize("daemon_options", [{"values": {"resync": 0.2}}], ids=["resync"])
@accepting
def test_row_15_a_foreign_nftables_policy_is_named(lab, baseline, family, cell):
    load(lab, STRANGER)
    baseline.take()
    red = published(lab)
    passes(lab, cell, red, expected=False)
    is_degraded(lab, cell, f"chain gate of table {nft_family(lab)} stranger", "policy drop", "'web'")
    load(
        lab, 'add rule FAMILY stranger gate iifname "web" accept\nadd rule FAMILY stranger gate oifname "web" accept\n'
    )
    passes(lab, cell, red)
    with cell(*PROTOCOLS):
        eventually(lambda: status(lab)["state"] == "ready")
    load(lab, "flush chain FAMILY stranger gate\n")


@accepting
def test_row_15_docker_user_gets_accept_rules(lab, baseline, family, cell):
    """Marked by their comment; they go with the network, as the last teardown checks too."""
    load(lab, DOCKER)
    baseline.take()
    before = docker_user(lab)
    red = published(lab)
    passes(lab, cell, red)
    with cell(*PROTOCOLS):
        assert status(lab)["state"] == "ready"
        made = [line for line in docker_user(lab) if line not in before]
        assert len(made) == 2
        for line, side in zip(made, ('iifname "web"', 'oifname "web"'), strict=True):
            assert line.startswith(side)
            assert line.endswith('accept comment "bridgehead"')
    lab.patch("networks/web", internal=True)
    with cell(*PROTOCOLS):
        assert docker_user(lab) == before
    lab.patch("networks/web", internal=False)
    passes(lab, cell, red)
    lab.delete("networks/web?force=true")
    with cell(*PROTOCOLS):
        assert docker_user(lab) == before


def docker_user(lab):
    listed = lab.host.exec(["nft", "-s", "list", "chain", nft_family(lab), "filter", "DOCKER-USER"]).stdout
    return sorted(line.strip() for line in listed.splitlines())
