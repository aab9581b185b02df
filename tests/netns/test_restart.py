"""What a daemon finds when it starts: all of it, half of it, nothing, leftovers, another daemon."""

import contextlib
import os
import signal
import sqlite3
import threading
from ipaddress import ip_interface

import httpx
import pytest
from world import by_name, endpoint, everything, get, network, portmap, refused

from app.kernel.wire import LINK_GROUP
from app.sandbox import CLIENT, HOST, SERVER, DaemonFailed, Sandbox, eventually, snapshot


@pytest.fixture
def built(sandbox, api):
    """Two networks, three endpoints, two mappings: what the API says of them."""
    network(api, "web")
    network(api, "lan", masquerade=False)
    endpoint(api, "red", "web")
    endpoint(api, "blue", "web")
    endpoint(api, "red", "lan", name="red-lan")
    portmap(api, "red", 8080, target_port=80)
    portmap(api, "blue", 53, protocol="udp")
    return everything(api)


def macs(sandbox):
    places = [sandbox.host, *(sandbox.netns(name) for name in sandbox.netns_names())]
    return {(place.name, name): link.mac for place in places for name, link in place.links().items()}


def works(sandbox):
    red, blue = sandbox.netns("red"), sandbox.netns("blue")
    with red.tcp_server(80) as web, blue.udp_server(53) as names:
        assert sandbox.client.tcp(HOST, 8080) == b"red\n"
        assert sandbox.host.tcp("127.0.0.1", 8080) == b"red\n"
        assert sandbox.client.udp(HOST, 53) == b"blue\nhello\n"
        assert web.peers[0][0] == names.last_peer == CLIENT
    assert red.ping(SERVER)
    assert blue.ping(SERVER)


def all_ready(api):
    return [
        one
        for path in ("networks", "endpoints", "portmaps")
        for one in get(api, path)
        if one["status"]["state"] != "ready"
    ] == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_restart_changes_nothing_and_breaks_no_connection(sandbox, daemon, api, built, how):
    before, hardware = snapshot(sandbox), macs(sandbox)
    with sandbox.netns("red").tcp_server(80), sandbox.client.connect(HOST, 8080) as connection:
        assert connection.recv(100) == b"red\n"
        daemon.stop() if how == signal.SIGTERM else daemon.kill()
        talk(connection, b"while it is down")
        daemon.start()
        talk(connection, b"and up again")
        assert everything(api) == built
        assert before.difference(snapshot(sandbox)) == ""
        assert macs(sandbox) == hardware
        talk(connection, b"and after it")
    assert all_ready(api)
    works(sandbox)


def talk(connection, words):
    connection.sendall(words)
    assert connection.recv(100) == words


def test_traffic_passes_while_it_is_down(sandbox, daemon, built):
    daemon.kill()
    works(sandbox)


def test_kills_while_it_works_leave_database_and_kernel_agreeing(sandbox, daemon, api):
    """Whatever was answered is there; whatever is there works; nothing else is there."""
    network(api, "web")
    answered = [endpoint(api, "first")["name"]]
    for attempt in range(12):
        with daemon_killed_amid(daemon, after=0.02 + attempt * 0.0017):
            for number in range(200):
                answered.append(endpoint(api, f"e{attempt}-{number}")["name"])
        daemon.start()
        there = by_name(get(api, "endpoints?limit=1000"))
        assert set(answered) <= set(there)
        assert len(there) <= len(answered) + 1
        assert set(sandbox.netns_names()) == set(there)
        answered = list(there)
    bridge = sandbox.host.links()["web"].index
    ports = {name for name, link in sandbox.host.links().items() if link.master == bridge}
    assert ports == {one["host_ifname"] for one in there.values()}
    first = sandbox.netns("first")
    assert all(first.ping(one["address"]) for one in there.values())


@contextlib.contextmanager
def daemon_killed_amid(daemon, after):
    """`after` seconds into the block, which ends with it."""
    killer = threading.Timer(after, os.kill, (daemon.pid, signal.SIGKILL))
    killer.start()
    with contextlib.suppress(httpx.TransportError):
        yield
    killer.join()
    assert daemon.exit_code() == -signal.SIGKILL


# --- leftovers


def test_marked_leftovers_are_removed_at_start(sandbox, baseline, daemon):
    host = sandbox.host
    daemon.kill()
    host.exec(["ip", "link", "add", "junk", "type", "bridge"])
    host.exec(["ip", "link", "set", "junk", "alias", "bridgehead:xyz", "group", str(LINK_GROUP)])
    host.exec(["ip", "link", "add", "junk0", "type", "veth", "peer", "name", "junk1"])
    mark = ["alias", "bridgehead:abc", "group", str(LINK_GROUP)]
    host.exec(["ip", "link", "set", "junk0", *mark, "master", "junk"])
    left = sandbox.add_netns("left")
    left.exec(["ip", "link", "set", "lo", "alias", "bridgehead:xyz"])
    for table, chain, jump in (("nat", "PREROUTING", "OLD"), ("filter", "FORWARD", "TO-1"), ("raw", "PREROUTING", "X")):
        host.exec(["iptables-legacy", "-t", table, "-N", f"BRIDGEHEAD-{jump}"])
        host.exec(["iptables-legacy", "-t", table, "-A", f"BRIDGEHEAD-{jump}", "-p", "tcp", "-j", "ACCEPT"])
        host.exec(["iptables-legacy", "-t", table, "-I", chain, "-j", f"BRIDGEHEAD-{jump}"])
    daemon.start()
    assert baseline.difference() == ""


def test_leftovers_beside_what_is_wanted_are_removed(sandbox, daemon, built):
    before = snapshot(sandbox)
    daemon.kill()
    host = sandbox.host
    host.exec(["ip", "link", "add", "junk0", "type", "veth", "peer", "name", "junk1"])
    mark = ["alias", "bridgehead:abc", "group", str(LINK_GROUP)]
    host.exec(["ip", "link", "set", "junk0", *mark, "master", "web"])
    host.exec(["iptables-legacy", "-t", "nat", "-N", "BRIDGEHEAD-OLD"])
    host.exec(["iptables-legacy", "-I", "BRIDGEHEAD-FORWARD", "-j", "DROP"])
    host.exec(
        [
            "iptables-legacy",
            "-t",
            "nat",
            "-I",
            "BRIDGEHEAD-PORTS",
            "-p",
            "tcp",
            "--dport",
            "9999",
            "-j",
            "DNAT",
            "--to",
            "192.168.15.9:1",
        ]
    )
    daemon.start()
    assert before.difference(snapshot(sandbox)) == ""
    works(sandbox)


def test_what_bears_no_mark_stays(sandbox, baseline, daemon, api, built):
    host = sandbox.host
    daemon.kill()
    host.add_bridge("docker0")
    host.add_address("docker0", ip_interface("10.8.0.1/24"))
    inner = sandbox.add_netns("inner")
    host.add_veth("v-inner", "eth0", inner, master="docker0")
    host.exec(["iptables-legacy", "-A", "FORWARD", "-i", "docker0", "-j", "ACCEPT"])
    host.exec(["iptables-legacy", "-I", "FORWARD", "-o", "docker0", "-j", "ACCEPT"])
    host.exec(["iptables-legacy", "-t", "nat", "-A", "POSTROUTING", "-s", "10.8.0.0/24", "-j", "MASQUERADE"])
    host.exec(["ip", "route", "add", "10.77.0.0/16", "via", "203.0.113.1"])
    sandbox.netns("red").exec(["ip", "route", "add", "10.66.0.0/16", "via", "192.168.15.1"])
    before = snapshot(sandbox)
    daemon.start()
    assert set(before.firewall) == set(snapshot(sandbox).firewall)
    assert before.links == snapshot(sandbox).links
    assert before.addresses == snapshot(sandbox).addresses
    assert before.routes == snapshot(sandbox).routes
    works(sandbox)
    baseline.forget()


# --- rebuilding


def ours(sandbox):
    return [name for name, link in sandbox.host.links().items() if (link.alias or "").startswith("bridgehead:")]


def wipe(sandbox):
    for name in ours(sandbox):
        if name in sandbox.host.links():
            sandbox.host.delete_link(name)
    for name in sandbox.netns_names():
        sandbox.delete_netns(name)
    for table in ("raw", "nat", "filter"):
        sandbox.host.exec(["iptables-legacy", "-t", table, "-F"])
        sandbox.host.exec(["iptables-legacy", "-t", table, "-X"])
    sandbox.host.write_sysctl("net/ipv4/ip_forward", 0)


def test_an_empty_kernel_is_rebuilt(sandbox, daemon, api, built):
    before, hardware = snapshot(sandbox).unordered(), macs(sandbox)
    daemon.kill()
    wipe(sandbox)
    assert not ours(sandbox)
    daemon.start()
    assert everything(api) == built
    assert before.difference(snapshot(sandbox).unordered()) == ""
    assert {key: mac for key, mac in macs(sandbox).items() if key[1] not in peers(built)} == {
        key: mac for key, mac in hardware.items() if key[1] not in peers(built)
    }
    assert all_ready(api)
    works(sandbox)


def peers(built):
    """The bridge's sides, whose MACs are nobody's business."""
    return {one["host_ifname"] for one in built["endpoints"]}


DAMAGE = {
    "bridge gone": lambda sandbox, veth: sandbox.host.delete_link("web"),
    "veth gone": lambda sandbox, veth: sandbox.host.delete_link(veth),
    "namespace gone": lambda sandbox, veth: sandbox.delete_netns("red"),
    "bridge down": lambda sandbox, veth: sandbox.host.set_up("web", up=False),
    "veth down": lambda sandbox, veth: sandbox.host.set_up(veth, up=False),
    "port not in the bridge": lambda sandbox, veth: sandbox.host.exec(["ip", "link", "set", veth, "nomaster"]),
    "gateway's address gone": lambda sandbox, veth: sandbox.host.exec(["ip", "address", "flush", "dev", "web"]),
    "address gone": lambda sandbox, veth: sandbox.netns("red").exec(["ip", "address", "flush", "dev", "eth0"]),
    "default route gone": lambda sandbox, veth: sandbox.netns("red").exec(["ip", "route", "del", "default"]),
    "inside down": lambda sandbox, veth: sandbox.netns("red").set_up("eth0", up=False),
    "another mac": lambda sandbox, veth: sandbox.netns("red").exec(
        ["ip", "link", "set", "eth0", "address", "02:00:00:00:00:99"]
    ),
    "another mtu": lambda sandbox, veth: sandbox.netns("red").exec(["ip", "link", "set", "eth0", "mtu", "1280"]),
    "nat flushed": lambda sandbox, veth: sandbox.host.exec(["iptables-legacy", "-t", "nat", "-F"]),
    "jump gone": lambda sandbox, veth: sandbox.host.exec(
        ["iptables-legacy", "-D", "FORWARD", "-j", "BRIDGEHEAD-FORWARD"]
    ),
    "ip_forward off": lambda sandbox, veth: sandbox.host.write_sysctl("net/ipv4/ip_forward", 0),
    "route_localnet off": lambda sandbox, veth: sandbox.host.write_sysctl("net/ipv4/conf/web/route_localnet", 0),
}


def test_half_of_it_is_made_whole(sandbox, daemon, api, built):
    """Every damage is undone by the next start, whatever else is left."""
    before = snapshot(sandbox).unordered()
    veth = next(one["host_ifname"] for one in built["endpoints"] if one["name"] == "red")
    wrong = {}
    for name, damage in DAMAGE.items():
        daemon.kill()
        damage(sandbox, veth)
        daemon.start()
        difference = before.difference(snapshot(sandbox).unordered())
        if difference or everything(api) != built or not all_ready(api):
            wrong[name] = difference or [one["status"] for one in get(api, "endpoints")]
        else:
            works(sandbox)
    assert wrong == {}


# --- others


def one_line(daemon):
    lines = daemon.log().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_a_second_daemon_in_the_namespace_is_refused(sandbox, daemon, api, built):
    before = snapshot(sandbox)
    second = sandbox.daemon(name="second", firewall="iptables")
    with pytest.raises(DaemonFailed):
        second.start()
    assert second.exit_code() == 1
    assert "another daemon" in one_line(second)
    assert before.difference(snapshot(sandbox)) == ""
    assert everything(api) == built


def test_a_second_daemon_on_the_state_directory_is_refused(sandbox, daemon, api, built):
    before = snapshot(sandbox)
    with Sandbox() as other:
        untouched = snapshot(other)
        second = other.daemon(firewall="iptables", values={"state_dir": str(daemon.state_dir)})
        with pytest.raises(DaemonFailed):
            second.start()
        assert second.exit_code() == 1
        assert str(daemon.pid) in one_line(second)
        assert untouched.difference(snapshot(other)) == ""
    assert before.difference(snapshot(sandbox)) == ""
    assert everything(api) == built
    works(sandbox)


def test_a_port_that_a_process_took_meanwhile_is_left_to_it(sandbox, daemon, api, built):
    daemon.kill()
    with sandbox.host.tcp_server(8080), sandbox.netns("red").tcp_server(80):
        daemon.start()
        status = {one["host_port"]: one["status"] for one in get(api, "portmaps")}
        assert status[8080]["state"] == "failed", status
        assert f"(pid {os.getpid()})" in status[8080]["message"], status
        assert status[53]["state"] == "ready", status
        assert sandbox.client.tcp(HOST, 8080) == b"host\n"
        refused(api.post("/portmaps", json={"endpoint": "blue", "host_port": 8080}), 409, "port_taken")
    eventually(lambda: all_ready(api), timeout=20)
    works(sandbox)


@pytest.mark.parametrize("firewall", ["iptables", "nftables"])
@pytest.mark.parametrize("forward_policy", ["ACCEPT"])
def test_a_flow_by_a_rule_that_nobody_wants_ends_with_it(sandbox, daemon, api):
    """Row 13, where the store lost a mapping that the kernel still has."""
    network(api)
    endpoint(api, "red")
    portmap(api, "red", 5000, protocol="udp")
    portmap(api, "red", 5001, protocol="udp")
    with sandbox.netns("red").udp_server(5000) as server, sandbox.client.udp_flow(HOST, 5000) as flow:
        assert flow.ask()
        daemon.stop()
        with contextlib.closing(sqlite3.connect(daemon.state_dir / "bridgehead.db")) as store, store:
            assert store.execute("DELETE FROM portmap WHERE host_port = 5000").rowcount == 1
        assert flow.ask()
        daemon.start()
        server.received.clear()
        assert flow.ask(timeout=0.2) is None
        assert server.received == []
