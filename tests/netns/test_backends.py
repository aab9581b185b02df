"""The backend follows the host, one takes over from the other, and the host is described as it is."""

import os
from pathlib import Path

import pytest
from beside import chosen, passes, published, ruleset, traces
from world import delete, endpoint, get, network, portmap

from app.sandbox import HOST, HOST6, DaemonFailed, eventually


@pytest.fixture
def forward_policy():
    return "ACCEPT"


@pytest.fixture
def firewall():
    return "auto"


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


def test_an_unknown_backend_is_refused_in_one_line(sandbox):
    daemon = sandbox.daemon(command=True, firewall="pf")
    with pytest.raises(DaemonFailed):
        daemon.start()
    assert "firewall" in daemon.log()


# --- from one backend to the other


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
