"""The sandbox itself: what every other test here stands on."""

import os
import signal
import subprocess
import sys
import threading
import time
from ipaddress import ip_interface

import pytest

from app.firewall.libnftables import Libnftables
from app.model.errors import KernelRefused
from app.sandbox import (
    CLIENT,
    CLIENT6,
    HOST,
    HOST6,
    HOST6_SECOND,
    HOST_SECOND,
    SERVER,
    SERVER6,
    DaemonFailed,
    Sandbox,
    eventually,
    machine_view,
    snapshot,
)
from app.sandbox.launcher import environment
from app.sandbox.rtnl import PlainRtnl


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class TestTopology:
    @pytest.mark.parametrize("address", [HOST, HOST_SECOND])
    def test_client_reaches_the_hosts_addresses(self, sandbox, address):
        assert sandbox.client.ping(address)
        with sandbox.host.tcp_server(80, http=True) as server:
            assert sandbox.client.http(address, 80) == b"host\n"
            assert server.last_peer == CLIENT

    def test_host_reaches_the_internet_and_the_client(self, sandbox):
        assert sandbox.host.ping(SERVER)
        assert sandbox.host.ping(CLIENT)
        with sandbox.internet.tcp_server(80) as server:
            assert sandbox.host.tcp(SERVER, 80) == b"internet\n"
            assert server.last_peer == HOST

    def test_nobody_answers_for_an_address_that_is_not_there(self, sandbox):
        assert not sandbox.host.ping("203.0.113.99", timeout=0.2)
        assert sandbox.client.tcp("203.0.113.99", 80, timeout=0.2) is None
        assert isinstance(sandbox.client.failure, TimeoutError)

    @pytest.mark.parametrize("forward_policy", ["ACCEPT"])
    def test_host_forwards_only_when_told_to(self, sandbox):
        inner = attach(sandbox, "inner", "10.9.0.1/24", "10.9.0.2/24")
        assert not inner.ping(SERVER, timeout=0.05)
        sandbox.host.write_sysctl("net/ipv4/ip_forward", 1)
        with sandbox.internet.rtnl() as rtnl:
            rtnl.add_plain_route(
                ip_interface("10.9.0.0/24").network, rtnl.index_of("wan0"), ip_interface(f"{HOST}/32").ip
            )
        assert inner.ping(SERVER)

    def test_policy_drop_stops_forwarding(self, sandbox):
        inner = attach(sandbox, "inner", "10.9.0.1/24", "10.9.0.2/24")
        sandbox.host.write_sysctl("net/ipv4/ip_forward", 1)
        sandbox.host.exec(["iptables-legacy", "-t", "nat", "-A", "POSTROUTING", "-o", "eth0", "-j", "MASQUERADE"])
        assert not inner.ping(SERVER, timeout=0.05)
        sandbox.host.exec(["iptables-legacy", "-P", "FORWARD", "ACCEPT"])
        assert inner.ping(SERVER)

    @pytest.mark.parametrize("bridge_nf", [False, True])
    def test_bridge_nf_is_the_hosts_own(self, sandbox, bridge_nf):
        assert sandbox.host.sysctl("net/bridge/bridge-nf-call-iptables") in (str(int(bridge_nf)), None)

    @pytest.mark.parametrize("ipv6", [True])
    def test_ipv6_works_at_once(self, sandbox):
        assert sandbox.client.ping(HOST6)
        assert sandbox.host.ping(SERVER6)
        with sandbox.host.tcp_server(80, "::") as server:
            assert sandbox.client.tcp(HOST6, 80) == b"host\n"
            assert server.last_peer == CLIENT6


def attach(sandbox, name, host_address, address):
    """A namespace behind the host, by hand."""
    inner = sandbox.add_netns(name)
    sandbox.host.add_veth(f"v-{name}", "eth0", inner)
    sandbox.host.add_address(f"v-{name}", ip_interface(host_address))
    inner.add_address("eth0", ip_interface(address))
    inner.add_default_route(ip_interface(host_address).ip, "eth0")
    return inner


class TestIsolation:
    def test_building_and_dropping_leaves_the_machine_as_it_was(self):
        before, held, threads = machine_view(), descriptors(), threading.active_count()
        for _round in range(3):
            with Sandbox(forward="DROP") as sandbox:
                sandbox.add_netns("red")
                with sandbox.host.tcp_server(80), sandbox.process():
                    assert sandbox.client.tcp(HOST, 80)
        assert machine_view() == before
        assert (descriptors(), threading.active_count()) == (held, threads)

    def test_everything_is_gone_once_dropped(self):
        """A veth's end here goes when the namespace of its other end does: nothing else shows that from outside."""
        with Sandbox() as outer:
            with Sandbox() as inner:
                named = inner.add_netns("red")
                outer.host.add_veth("to-host", "x", inner.host)
                outer.host.add_veth("to-red", "x", named)
                assert {"to-host", "to-red"} <= set(outer.host.links())
            eventually(lambda: set(outer.host.links()) == {"lo", "eth0"})

    def test_sandboxes_do_not_see_one_another(self):
        machine = os.listdir("/run/netns") if os.path.isdir("/run/netns") else []
        with Sandbox() as one, Sandbox() as other:
            one.add_netns("red")
            assert one.netns_names() == ["red"]
            assert other.netns_names() == []
            assert not other.netns("red").exists
            assert (os.listdir("/run/netns") if os.path.isdir("/run/netns") else []) == machine
            assert one.host.exec(["ls", "/run/netns"]).stdout == "red\n"
            assert one.host.inode != other.host.inode

    def test_a_failure_while_building_leaves_nothing(self, monkeypatch):
        def refuse(*_args):
            raise KernelRefused(1, "on purpose")

        held = descriptors()
        monkeypatch.setattr(PlainRtnl, "add_plain_veth", refuse)
        with pytest.raises(KernelRefused):
            Sandbox()
        assert descriptors() == held

    def test_a_named_namespace_is_not_kept_alive_by_its_handle(self, sandbox):
        red = attach(sandbox, "red", "10.9.0.1/24", "10.9.0.2/24")
        assert sandbox.host.ping("10.9.0.2")
        sandbox.delete_netns("red")
        assert not red.exists
        eventually(lambda: "v-red" not in sandbox.host.links())

    def test_building_and_dropping_is_fast(self):
        took = []
        for _round in range(7):
            start = time.perf_counter()
            with Sandbox(forward="DROP"):
                pass
            took.append(time.perf_counter() - start)
        assert sorted(took)[3] < 0.1, took


class TestTraffic:
    def test_tcp_tells_refused_from_silent(self, sandbox):
        assert sandbox.client.tcp(HOST, 81) is None
        assert isinstance(sandbox.client.failure, ConnectionRefusedError)
        sandbox.host.exec(["iptables-legacy", "-A", "INPUT", "-p", "tcp", "--dport", "81", "-j", "DROP"])
        assert sandbox.client.tcp(HOST, 81, timeout=0.3) is None
        assert isinstance(sandbox.client.failure, TimeoutError)

    def test_a_connection_echoes_after_its_banner(self, sandbox):
        with sandbox.host.tcp_server(80) as server, sandbox.client.connect(HOST, 80, sport=4000) as connection:
            assert connection.recv(100) == b"host\n"
            connection.sendall(b"still here")
            assert connection.recv(100) == b"still here"
            assert server.peers == [(CLIENT, 4000)]

    def test_udp_answers_from_the_address_that_was_asked(self, sandbox):
        with sandbox.host.udp_server(53) as server:
            assert sandbox.client.udp(HOST_SECOND, 53, b"who", sport=5353) == b"host\nwho"
            assert server.peers == [(CLIENT, 5353)]

    def test_a_udp_flow_keeps_its_port(self, sandbox):
        with sandbox.host.udp_server(53) as server, sandbox.client.udp_flow(HOST, 53) as flow:
            assert flow.ask(b"1") == b"host\n1"
            assert flow.ask(b"2") == b"host\n2"
            assert server.peers == [(CLIENT, flow.sport)] * 2
        assert sandbox.client.udp(HOST, 53, timeout=0.5) is None
        assert isinstance(sandbox.client.failure, ConnectionRefusedError)

    @pytest.mark.parametrize("ipv6", [True])
    @pytest.mark.parametrize("version", [4, 6])
    @pytest.mark.parametrize("protocol", ["udp", "sctp"])
    def test_flows_of_both_families(self, sandbox, version, protocol):
        one, two, peer, everywhere = {
            4: (HOST, HOST_SECOND, CLIENT, "0.0.0.0"),
            6: (HOST6, HOST6_SECOND, CLIENT6, "::"),
        }[version]
        with sandbox.host.server(protocol, 53, everywhere) as server:
            assert sandbox.client.ask(protocol, two, 53) == b"host\n"
            with sandbox.client.flow(protocol, one, 53, sport=4000) as flow:
                assert [flow.ask(b"1"), flow.ask(b"2")] == [b"host\n1", b"host\n2"]
            assert server.peers[1:] == [(peer, 4000)] * 2
            assert server.received == [b"", b"1", b"2"]
        assert sandbox.client.ask(protocol, one, 53, timeout=0.1) is None

    def test_an_sctp_answer_counts_only_from_where_it_was_asked(self, sandbox):
        with sandbox.host.sctp_server(80) as server, sandbox.client.sctp_flow(HOST, 80) as flow:
            assert flow.ask() == b"host\nhello\n"
            forge = f"ip protocol sctp notrack ip saddr set {HOST_SECOND}"
            chain = "add chain ip t c { type filter hook output priority raw; }"
            sandbox.host.run(lambda: nft("add table ip t", chain, f"add rule ip t c {forge}"))
            assert flow.ask(timeout=0.1) is None
            assert server.peers == [(CLIENT, flow.sport)] * 2

    def test_a_source_address_can_be_chosen(self, sandbox):
        with sandbox.internet.tcp_server(80) as server:
            assert sandbox.host.tcp(SERVER, 80, source=HOST_SECOND)
            assert server.last_peer == HOST_SECOND

    def test_a_process_has_a_namespace_of_its_own(self, sandbox):
        with sandbox.process() as (pid, inside):
            assert os.stat(f"/proc/{pid}/ns/net").st_ino == inside.inode
            assert inside.inode != sandbox.host.inode
            assert inside.ping("127.0.0.1")
        assert not inside.exists

    def test_commands_run_inside_and_tell_why_they_fail(self, sandbox):
        assert "203.0.113.2/24" in sandbox.host.exec(["ip", "address"]).stdout
        with pytest.raises(subprocess.CalledProcessError) as failed:
            sandbox.host.exec(["ip", "link", "show", "nothing"])
        assert "nothing" in "".join(failed.value.__notes__)

    def test_exceptions_come_out(self, sandbox):
        with pytest.raises(ZeroDivisionError):
            sandbox.host.run(lambda: 1 // 0)


def nft(*commands):
    with Libnftables() as library:
        library.run("\n".join(commands))


class TestSnapshot:
    @pytest.mark.parametrize("forward_policy", ["ACCEPT"])
    def test_a_table_that_was_only_looked_at_is_no_difference(self, sandbox):
        before = snapshot(sandbox)
        sandbox.host.exec(["iptables-legacy", "-t", "nat", "-L"])
        assert before.difference(snapshot(sandbox)) == ""
        sandbox.host.exec(["iptables-legacy", "-t", "nat", "-N", "LEFT"])
        assert before.difference(snapshot(sandbox)).splitlines()[-1] == "  + iptables -t nat :LEFT -"

    def test_it_shows_what_nftables_holds(self, sandbox):
        before = snapshot(sandbox)
        sandbox.host.run(lambda: nft("add table ip6 left", "add chain ip6 left way"))
        assert [line for line in before.difference(snapshot(sandbox)).splitlines() if "way" in line]
        sandbox.host.run(lambda: nft("delete table ip6 left"))
        assert before.difference(snapshot(sandbox)) == ""

    def test_traffic_is_no_difference(self, sandbox):
        before = snapshot(sandbox)
        assert sandbox.client.ping(HOST)
        assert before == snapshot(sandbox)

    def test_it_shows_what_changed(self, sandbox):
        red = sandbox.add_netns("red")
        before = snapshot(sandbox)
        sandbox.host.add_bridge("br9")
        sandbox.host.write_sysctl("net/ipv4/conf/eth0/route_localnet", 1)
        red.add_address("lo", ip_interface("10.1.1.1/32"))
        sandbox.add_netns("blue")
        with sandbox.host.tcp_server(80), sandbox.host.udp_server(53, HOST):
            bound = sandbox.host.open_socket(2, 1)  # not listening
            bound.bind((HOST, 90))
            changes = before.difference(snapshot(sandbox)).splitlines()
            bound.close()
        assert any(line.startswith("  + br9 bridge up") for line in changes)
        assert {
            "  + ipv4/conf/eth0/route_localnet = 1",
            "  - ipv4/conf/eth0/route_localnet = 0",
            "  + red: lo 10.1.1.1/32",
            "  + blue",
            "  + tcp 0.0.0.0 80",
            f"  + udp {HOST} 53",
            f"  + tcp {HOST} 90",
        } <= set(changes)


class TestDaemon:
    @pytest.mark.parametrize("command", [False, True])
    def test_it_starts_stops_and_starts_again(self, sandbox, command):
        daemon = sandbox.daemon(firewall="none", command=command).start()
        first = daemon.pid
        assert daemon.client.get("/healthz").is_success
        assert os.stat(f"/proc/{first}/ns/net").st_ino == sandbox.host.inode
        assert os.stat(f"/proc/{first}/ns/mnt").st_ino == os.fstat(sandbox.mounts).st_ino
        assert daemon.stop() == 0
        assert not daemon.running
        assert daemon.start().pid != first
        assert daemon.stop() == 0

    def test_a_kill_leaves_namespaces_and_state(self, sandbox):
        sandbox.add_netns("red")
        with sandbox.daemon(firewall="none") as daemon:
            daemon.kill()
            assert daemon.exit_code() == -signal.SIGKILL
            assert sandbox.netns_names() == ["red"]
            assert daemon.state_dir.exists()
            daemon.start()
            assert daemon.client.get("/readyz").is_success

    def test_one_that_cannot_start_says_why(self, sandbox):
        daemon = sandbox.daemon(entry=("app.nothing:run", "builtins:dict"))
        with pytest.raises(DaemonFailed, match=r"(?s)ended with 1.*No module named 'app.nothing'"):
            daemon.start()

    def test_dropping_the_sandbox_ends_its_daemons(self):
        held = descriptors()
        with Sandbox() as sandbox:
            pid = sandbox.daemon(firewall="none").start().pid
        assert not os.path.exists(f"/proc/{pid}")
        assert descriptors() == held

    def test_daemons_end_with_a_parent_that_is_killed(self, tmp_path):
        program = (
            "import os, pathlib, signal, sys\n"
            "from app.sandbox import Sandbox\n"
            "sandbox = Sandbox(directory=pathlib.Path(sys.argv[1]))\n"
            "print(sandbox.daemon(firewall='none').start().pid, flush=True)\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        ended = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        pid = ended.stdout.strip()
        eventually(lambda: not os.path.exists(f"/proc/{pid}"))


def test_eventually_gives_the_value_or_says_what_was_missing():
    values = iter([0, None, "there"])
    assert eventually(lambda: next(values)) == "there"
    with pytest.raises(AssertionError, match="the sky falls, last value False"):
        eventually(lambda: False, timeout=0.01, what="the sky falls")
