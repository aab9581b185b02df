"""Beside others' rules: traffic passes, or the status says whose chain drops it."""

import pytest
from beside import chosen, load, passes, published, ruleset, status
from world import delete, endpoint, get, network, portmap

from app.sandbox import HOST, HOST6, SERVER, SERVER6, eventually

DOCKER = """
*filter
:FORWARD DROP [0:0]
:DOCKER-USER - [0:0]
:DOCKER-FORWARD - [0:0]
:DOCKER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD
-A DOCKER-FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -o docker0 -j DOCKER
-A DOCKER-FORWARD -i docker0 -j ACCEPT
-A DOCKER ! -i docker0 -o docker0 -j DROP
-A DOCKER-USER -j RETURN
COMMIT
"""
UFW = """
*filter
:FORWARD DROP [0:0]
:ufw-before-forward - [0:0]
:ufw-reject-forward - [0:0]
-A FORWARD -j ufw-before-forward
-A FORWARD -j ufw-reject-forward
-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-forward -p icmp --icmp-type echo-request -j ACCEPT
COMMIT
"""
FIREWALLD = """
table inet firewalld {
  chain filter_FORWARD {
    type filter hook forward priority filter + 10; policy accept;
    ct state { established, related } accept
    ct status dnat accept
    iifname "lo" accept
    ct state invalid drop
    jump filter_FORWARD_POLICIES
    reject with icmpx admin-prohibited
  }
  chain filter_FORWARD_POLICIES {
    iifname "eth0" oifname "eth0" jump filter_FWD_public
    iifname "eth0" jump filter_FWD_public
    oifname "eth0" return
  }
  chain filter_FWD_public {
    iifname "eth0" oifname "eth0" accept
  }
}
"""


@pytest.fixture
def forward_policy():
    return "ACCEPT"


@pytest.fixture
def firewall():
    return "auto"


def test_docker_with_nftables_lets_our_traffic_through_docker_user(sandbox):
    load(sandbox, "iptables-nft-restore", DOCKER)
    before = ruleset(sandbox)
    daemon, said = chosen(sandbox)
    api = daemon.client
    assert said["backend"] == "nftables"
    (found,) = get(api, "host")["foreign_chains"]
    assert (found["owner"], found["chain"], found["effect"]) == ("Docker", "FORWARD", "drops")
    published(api)
    assert status(api)["state"] == "ready"
    passes(sandbox)
    listed = sandbox.host.exec(["iptables-nft", "-S", "DOCKER-USER"]).stdout
    assert "-A DOCKER-USER -i web -m comment --comment bridgehead -j ACCEPT" in listed
    assert "-A DOCKER-USER -o web -m comment --comment bridgehead -j ACCEPT" in listed
    assert get(api, "host")["foreign_chains"] == []
    daemon.kill()
    daemon.start()
    assert sandbox.host.exec(["iptables-nft", "-S", "DOCKER-USER"]).stdout == listed
    passes(sandbox)
    assert api.delete("/networks/web?force=true").status_code == 204
    assert ruleset(sandbox) == before


@pytest.mark.parametrize("ipv6", [True])
@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_docker_with_nftables_in_both_ip_versions(sandbox, backend):
    for program in ("iptables-nft-restore", "ip6tables-nft-restore"):
        load(sandbox, program, DOCKER)
    before = ruleset(sandbox)
    daemon, _said = chosen(sandbox, backend)
    api = daemon.client
    network(api, subnet6="auto")
    endpoint(api, "red")
    portmap(api, host_port=8080, target_port=80, host_ip="::")
    assert status(api)["state"] == "ready"
    red = sandbox.netns("red")
    assert red.ping(SERVER)
    assert red.ping(SERVER6)
    with red.tcp_server(80, "::"):
        assert sandbox.client.tcp(HOST6, 8080) == b"red\n"
    assert api.delete("/networks/web?force=true").status_code == 204
    assert ruleset(sandbox) == before


def test_what_docker_user_holds_of_a_network_that_is_gone_is_removed_at_start(sandbox):
    load(sandbox, "iptables-nft-restore", DOCKER)
    before = ruleset(sandbox)
    for side in ("iifname", "oifname"):
        rule = f'insert rule ip filter DOCKER-USER {side} "gone" counter accept comment "bridgehead"\n'
        load(sandbox, "nft", rule)
    chosen(sandbox)
    eventually(lambda: ruleset(sandbox) == before)


def test_docker_with_nftables_beside_the_iptables_backend(sandbox):
    load(sandbox, "iptables-nft-restore", DOCKER)
    before = ruleset(sandbox)
    daemon, _said = chosen(sandbox, "iptables")
    published(daemon.client)
    passes(sandbox)
    assert daemon.client.delete("/networks/web?force=true").status_code == 204
    assert ruleset(sandbox) == before


def test_docker_that_starts_later_is_seen_by_the_next_full_pass(sandbox):
    daemon = sandbox.daemon(firewall="auto", values={"resync": 0.2})
    daemon.start()
    published(daemon.client)
    load(sandbox, "iptables-nft-restore", DOCKER)
    eventually(lambda: "-i web" in sandbox.host.exec(["iptables-nft", "-S", "DOCKER-USER"]).stdout)
    passes(sandbox)
    eventually(lambda: status(daemon.client)["state"] == "ready")


def test_ufw_with_legacy_iptables_is_passed_by_our_jump(sandbox):
    load(sandbox, "iptables-legacy-restore", UFW)
    daemon, said = chosen(sandbox)
    assert said["backend"] == "iptables"
    published(daemon.client)
    passes(sandbox)
    assert status(daemon.client)["state"] == "ready"
    assert get(daemon.client, "host")["foreign_chains"] == []


def test_nftables_asked_for_beside_legacy_ufw_is_told(sandbox):
    load(sandbox, "iptables-legacy-restore", UFW)
    daemon, said = chosen(sandbox, "nftables")
    assert said["backend"] == "nftables"
    published(daemon.client)
    said = status(daemon.client)
    assert said["state"] == "degraded"
    for word in (
        "chain FORWARD of legacy table ip filter",
        "policy drop, ufw's",
        "ufw route allow in on web",
        "iptables",
    ):
        assert word in said["message"]
    assert sandbox.client.tcp(HOST, 8080, timeout=0.15) is None


def test_firewalld_that_rejects_is_named(sandbox):
    load(sandbox, "nft", FIREWALLD)
    daemon = sandbox.daemon(firewall="auto", values={"resync": 0.2})
    daemon.start()
    api = daemon.client
    published(api)
    assert not sandbox.netns("red").ping(SERVER, timeout=0.15)
    said = status(api)
    assert said["state"] == "degraded"
    for word in ("chain filter_FORWARD of table inet firewalld", "reject, firewalld's", "--add-interface=web"):
        assert word in said["message"]
    (found,) = get(api, "host")["foreign_chains"]
    assert found == {
        "backend": "nftables",
        "family": "inet",
        "table": "firewalld",
        "chain": "filter_FORWARD",
        "kind": "rule",
        "owner": "firewalld",
        "verdict": "reject",
        "effect": "drops",
        "bridges": ["web"],
    }
    load(sandbox, "nft", 'insert rule inet firewalld filter_FORWARD_POLICIES iifname "web" accept\n')
    eventually(lambda: status(api)["state"] == "ready")
    assert sandbox.netns("red").ping(SERVER)


def test_an_administrators_conditional_drop_is_reported_and_degrades_nothing(sandbox, api):
    load(
        sandbox,
        "nft",
        'table ip admin { chain f { type filter hook forward priority 0; iifname "web" tcp dport 25 drop; }; }',
    )
    network(api)
    assert status(api)["state"] == "ready"
    (found,) = get(api, "host")["foreign_chains"]
    assert (found["chain"], found["owner"], found["effect"]) == ("f", "somebody", "may drop")
    delete(api, "networks/web")
    sandbox.host.exec(["nft", "delete", "table", "ip", "admin"])


def test_an_internal_network_is_not_degraded_by_what_it_does_not_use(sandbox):
    load(sandbox, "nft", FIREWALLD)
    daemon, _said = chosen(sandbox)
    network(daemon.client, internal=True)
    assert status(daemon.client)["state"] == "ready"
