"""Beside others' rules: the backend follows the host, traffic passes or the status says whose chain drops it."""

import os
from pathlib import Path

import pytest
from world import delete, endpoint, get, network, portmap

from app.sandbox import CLIENT, HOST, HOST6, SERVER, SERVER6, DaemonFailed, eventually

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

ADMIN = """
table ip admin {
  chain f {
    type filter hook forward priority filter
    iifname "web" tcp dport 25 drop
  }
}
"""


@pytest.fixture
def forward_policy():
    return "ACCEPT"


@pytest.fixture
def firewall():
    return "auto"


def load(sandbox, program, rules):
    sandbox.host.exec([program, "-f", "-"] if program == "nft" else [program], stdin=rules)


def ruleset(sandbox):
    return sandbox.host.exec(["nft", "-s", "list", "ruleset"]).stdout


def legacy(sandbox, program="iptables"):
    return sandbox.host.exec([f"{program}-legacy-save"]).stdout


def chosen(sandbox, firewall="auto"):
    """A daemon that is started, and what it says of its backend."""
    daemon = sandbox.daemon(firewall=firewall)
    daemon.start()
    return daemon, get(daemon.client, "host")["firewall"]


def published(api):
    network(api)
    endpoint(api, "red")
    portmap(api, host_port=8080, target_port=80)


def passes(sandbox):
    red = sandbox.netns("red")
    with red.tcp_server(80) as web:
        assert sandbox.client.tcp(HOST, 8080) == b"red\n"
        assert web.peers[0][0] == CLIENT
    assert red.ping(SERVER)


def status(api, name="web"):
    return get(api, f"networks/{name}")["status"]


# --- which backend


def test_an_untouched_host_gets_nftables_and_its_legacy_tables_stay_unloaded(sandbox, daemon, api):
    assert get(api, "version")["firewall"] == "nftables"
    assert "no foreign rule or policy" in get(api, "host")["firewall"]["why"]
    published(api)
    passes(sandbox)
    loaded = sandbox.host.run(Path("/proc/thread-self/net/ip_tables_names").read_text)
    assert loaded == ""


@pytest.mark.parametrize(
    ("program", "arguments", "why"),
    [
        ("iptables", ["-P", "FORWARD", "DROP"], "table ip filter, chain FORWARD has the policy DROP"),
        (
            "iptables",
            ["-t", "mangle", "-A", "FORWARD", "-j", "ACCEPT"],
            "table ip mangle, chain FORWARD has a foreign rule",
        ),
        (
            "ip6tables",
            ["-A", "INPUT", "-i", "eth0", "-j", "ACCEPT"],
            "table ip6 filter, chain INPUT has a foreign rule",
        ),
    ],
)
def test_a_host_that_uses_legacy_iptables_gets_iptables(sandbox, program, arguments, why):
    sandbox.host.exec([f"{program}-legacy", *arguments])
    daemon, said = chosen(sandbox)
    assert said["backend"] == "iptables"
    assert why in said["why"]
    published(daemon.client)
    passes(sandbox)


def test_loaded_legacy_tables_without_a_rule_are_nobodys(sandbox):
    sandbox.host.exec(["iptables-legacy", "-L"])
    assert chosen(sandbox)[1]["backend"] == "nftables"


def test_the_choice_is_the_same_after_a_restart(sandbox, daemon, api):
    published(api)
    daemon.kill()
    daemon.start()
    assert get(api, "version")["firewall"] == "nftables"
    daemon.kill()
    daemon.values["firewall"] = "iptables"
    daemon.start()
    daemon.kill()
    daemon.values["firewall"] = "auto"
    daemon.start()
    assert get(api, "version")["firewall"] == "nftables"
    passes(sandbox)


# --- beside others


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
    assert status(daemon.client)["state"] == "ready"


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


# --- from one backend to the other


def traces(sandbox):
    """What each backend has in the kernel."""
    tables = {line.split()[2] for line in ruleset(sandbox).splitlines() if line.startswith("table")}
    found = {"nftables"} if "bridgehead" in tables else set()
    if any("BRIDGEHEAD" in legacy(sandbox, program) for program in ("iptables", "ip6tables")):
        found.add("iptables")
    return found


@pytest.mark.parametrize(("first", "second"), [("iptables", "nftables"), ("nftables", "iptables")])
def test_a_changed_backend_takes_over_and_breaks_no_connection(sandbox, baseline, first, second):
    daemon = sandbox.daemon(firewall=first)
    daemon.start()
    api = daemon.client
    published(api)
    portmap(api, "red", 8053, target_port=53, protocol="udp")
    assert traces(sandbox) == {first}
    red = sandbox.netns("red")
    with red.tcp_server(80), sandbox.client.connect(HOST, 8080) as inward, sandbox.host.connect(HOST, 8080) as local:
        assert inward.recv(100) == local.recv(100) == b"red\n"
        daemon.stop()
        daemon.values["firewall"] = second
        daemon.start()
        assert traces(sandbox) == {second}
        for connection in (inward, local):
            connection.sendall(b"still here")
            assert connection.recv(100) == b"still here"
    passes(sandbox)
    with red.udp_server(53):
        assert sandbox.client.udp(HOST, 8053) == b"red\nhello\n"
    assert get(api, "version")["firewall"] == second
    assert api.delete("/networks/web?force=true").status_code == 204
    assert traces(sandbox) == set()
    assert baseline.difference() == ""


@pytest.mark.parametrize("ipv6", [True])
@pytest.mark.parametrize(("first", "second"), [("iptables", "nftables"), ("nftables", "iptables")])
def test_a_changed_backend_takes_over_ipv6_too(sandbox, first, second):
    daemon = sandbox.daemon(firewall=first)
    daemon.start()
    api = daemon.client
    network(api, subnet6="auto")
    endpoint(api, "red")
    portmap(api, host_port=8080, target_port=80, host_ip="::")
    with sandbox.netns("red").tcp_server(80, "::"), sandbox.client.connect(HOST6, 8080) as connection:
        assert connection.recv(100) == b"red\n"
        daemon.stop()
        daemon.values["firewall"] = second
        daemon.start()
        assert traces(sandbox) == {second}
        connection.sendall(b"still here")
        assert connection.recv(100) == b"still here"
        assert sandbox.client.tcp(HOST6, 8080) == b"red\n"
    assert api.delete("/networks/web?force=true").status_code == 204
    assert traces(sandbox) == set()


@pytest.mark.parametrize("first", ["iptables", "nftables"])
def test_a_change_to_none_leaves_no_rule(sandbox, first):
    daemon = sandbox.daemon(firewall=first)
    daemon.start()
    published(daemon.client)
    daemon.stop()
    daemon.values["firewall"] = "none"
    daemon.start()
    assert traces(sandbox) == set()


def test_leftovers_of_every_family_go_at_start_and_foreign_tables_stay(sandbox):
    for family in ("ip", "ip6", "inet", "bridge", "netdev"):
        sandbox.host.exec(["nft", "add", "table", family, "bridgehead"])
    sandbox.host.exec(["nft", "add", "table", "ip", "mine"])
    for program in ("iptables-legacy", "ip6tables-legacy"):
        sandbox.host.exec([program, "-N", "BRIDGEHEAD-FORWARD"])
        sandbox.host.exec([program, "-A", "FORWARD", "-j", "BRIDGEHEAD-FORWARD"])
    chosen(sandbox)
    eventually(lambda: traces(sandbox) == set())
    assert ruleset(sandbox).split() == ["table", "ip", "mine", "{", "}"]


# --- GET /host


@pytest.mark.parametrize("ipv6", [True])
def test_the_host_is_described_as_it_is_now(sandbox, daemon, api, baseline):
    # the kernel gives eth0 its link-local address a moment after it came up
    eventually(lambda: any(one.ip.is_link_local for one in sandbox.host.addresses()["eth0"]))
    baseline.take()
    before = get(api, "host")
    assert before["ip_forward"] == {"value": "0", "by": "as found"}
    assert before["kernel"] == {"iptables": True, "ip6tables": True, "nftables": True, "ipv6": True}
    assert before["bridge_nf_call_iptables"] is not None or not os.path.exists("/proc/sys/net/bridge")
    four = before["uplinks"][0]
    assert (four["version"], four["ifname"], four["mtu"]) == (4, "eth0", 1500)
    assert f"{HOST}/24" in four["addresses"]
    assert [one["version"] for one in before["uplinks"]] == [4, 6]
    network(api)
    after = get(api, "host")
    assert after["ip_forward"] == {"value": "1", "by": "set by Bridgehead, was 0"}
    assert after["overlapping_routes"] == []
    sandbox.host.exec(["ip", "route", "add", "192.168.15.128/25", "dev", "eth0"])
    (overlap,) = get(api, "host")["overlapping_routes"]
    assert overlap == {
        "network": "web",
        "subnet": "192.168.15.0/24",
        "route": "192.168.15.128/25",
        "ifname": "eth0",
    }
    sandbox.host.exec(["ip", "route", "del", "192.168.15.128/25", "dev", "eth0"])
    delete(api, "networks/web")


def test_an_unknown_backend_is_refused_in_one_line(sandbox):
    daemon = sandbox.daemon(command=True, firewall="pf")
    with pytest.raises(DaemonFailed):
        daemon.start()
    assert "firewall" in daemon.log()
