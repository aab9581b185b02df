"""What the backend's rules do to packets where no daemon is needed to see it; both IP versions."""

import re
import socket
from contextlib import ExitStack
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from app.firewall.iptables import IptablesFirewall
from app.model.spec import Protocol
from app.model.state import NetworkPolicy, PortForward
from app.sandbox import CLIENT, CLIENT6, HOST, HOST6, HOST_SECOND, SERVER, SERVER6, eventually
from tests.netns.world import QUIET

PROGRAMS = {4: "iptables-legacy", 6: "ip6tables-legacy"}


@dataclass
class World:
    """Three bridges on the host with an endpoint each, `web` with two."""

    sandbox: object
    version: int
    firewall: IptablesFirewall

    def __getattr__(self, name):
        return self.sandbox.netns(name)

    @property
    def host(self):
        return self.sandbox.host

    @property
    def client(self):
        return self.sandbox.client

    def pick(self, four, six):
        return four if self.version == 4 else six

    @property
    def host_address(self):
        return self.pick(HOST, HOST6)

    def subnet(self, bridge):
        number = ("web", "ueb", "db").index(bridge)
        return ip_network(self.pick(f"10.{number}.0.0/24", f"fd00:{number}::/64"))

    def policy(self, bridge="web", **options):
        flags = {"routed": True, "isolated": True, "masquerade": True} | options
        return NetworkPolicy(owner=f"id-{bridge}", bridge=bridge, subnet=self.subnet(bridge), **flags)

    def port(self, host_port=8000, target_port=9000, count=1, protocol=Protocol.TCP, bridge="web"):
        anywhere, target = ip_address(self.pick("0.0.0.0", "::")), self.subnet(bridge)[2]
        owner = f"{protocol}-{host_port}"
        return PortForward(owner, bridge, protocol, anywhere, host_port, target, target_port, count)

    def hold(self, *items):
        self.host.run(lambda: self.firewall.sync(items))

    def attach(self, bridge, name, number):
        subnet = self.subnet(bridge)
        inner = self.sandbox.add_netns(name)
        inner.write_sysctl("net/ipv6/conf/all/disable_ipv6", 0)
        inner.write_sysctl("net/ipv6/conf/default/accept_dad", 0)
        inner.set_up("lo")
        self.host.add_veth(f"v-{name}", "eth0", inner, master=bridge)
        inner.add_address("eth0", ip_interface(f"{subnet[number]}/{subnet.prefixlen}"))
        inner.add_default_route(subnet[1], "eth0")

    def dropped(self):
        """How often the rules for INVALID segments matched."""
        listed = self.host.exec([PROGRAMS[self.version], "-vxnL", "BRIDGEHEAD-INVALID"]).stdout
        return sum(int(count) for count in re.findall(r"^\s*(\d+)\s+\d+ DROP", listed, re.MULTILINE))


@pytest.fixture
def ipv6():
    return True


@pytest.fixture
def bridge_nf():
    return False


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def world(request, sandbox):
    made = World(sandbox, request.param, IptablesFirewall())
    host = sandbox.host
    for path in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
        host.write_sysctl(path, 1)
    for bridge in ("web", "ueb", "db"):
        host.add_bridge(bridge)
        subnet = made.subnet(bridge)
        host.add_address(bridge, ip_interface(f"{subnet[1]}/{subnet.prefixlen}"))
        host.write_sysctl(f"net/ipv4/conf/{bridge}/route_localnet", 1)
    for bridge, name, number in (("web", "red", 2), ("web", "pink", 3), ("ueb", "blue", 2), ("db", "green", 2)):
        made.attach(bridge, name, number)
    for name in ("red", "pink", "blue", "green"):
        inner = sandbox.netns(name)
        bridge = {"blue": "ueb", "green": "db"}.get(name, "web")
        eventually(lambda inner=inner, bridge=bridge: inner.ping(str(made.subnet(bridge)[1]), timeout=0.2))
    return made


def test_each_port_of_a_range_reaches_its_own(world):
    any_address = world.pick("0.0.0.0", "::")
    world.hold(
        world.policy(),
        *(world.port(8000, 9000, 3, protocol) for protocol in (Protocol.TCP, Protocol.UDP)),
        world.port(9100, 9100, 3),
        world.port(8126, 9201, 4),
        world.port(443, 9300),
    )
    targets = {443: 9300} | {8000 + i: 9000 + i for i in range(3)} | {9100 + i: 9100 + i for i in range(3)}
    targets |= {8126 + i: 9201 + i for i in range(4)}
    with ExitStack() as servers:
        for target in targets.values():
            for serve in (world.red.tcp_server, world.red.udp_server):
                servers.enter_context(serve(target, any_address, banner=f"{target}\n".encode()))
        for port, target in targets.items():
            assert world.client.tcp(world.host_address, port) == f"{target}\n".encode()
        for port in range(8000, 8003):
            assert world.client.udp(world.host_address, port).startswith(f"{port + 1000}\n".encode())
        for port in (7999, 8003, 9099, 9103, 8125, 8130, 444):
            assert world.client.tcp(world.host_address, port, timeout=QUIET) is None


def test_local_and_own_connections_reach_a_published_port(world):
    world.hold(world.policy(), world.port(), world.policy("db"))
    with world.red.tcp_server(9000, world.pick("0.0.0.0", "::")) as server:
        for address in (world.host_address, str(world.subnet("web")[1]), str(world.subnet("db")[1])):
            assert world.host.tcp(address, 8000) == b"red\n"
            assert world.pink.tcp(address, 8000) == b"red\n"
            assert world.green.tcp(address, 8000) == b"red\n"
        assert world.client.tcp(world.host_address, 8000) == b"red\n"
        assert server.last_peer == world.pick(CLIENT, CLIENT6)


def test_a_local_process_reaches_a_published_port_by_loopback(world):
    """IPv6 has no route_localnet: an answer to ::1 wants a local route on the bridge that it comes from."""
    world.hold(world.policy(), world.port())
    if world.version == 6:
        route = "-6 route add local ::1 dev web table local metric 4096"
        world.host.exec(["ip", *route.split()])
    with world.red.tcp_server(9000, world.pick("0.0.0.0", "::")):
        assert world.host.tcp(world.pick("127.0.0.1", "::1"), 8000) == b"red\n"


def test_nothing_from_a_closed_network_is_rewritten(world):
    world.hold(world.policy(), world.port(), world.policy("db", routed=False))
    any_address = world.pick("0.0.0.0", "::")
    with world.red.tcp_server(9000, any_address), world.host.tcp_server(8000, any_address):
        assert world.green.tcp(str(world.subnet("db")[1]), 8000) == b"host\n"
        assert world.green.tcp(world.host_address, 8000) == b"host\n"
        assert world.client.tcp(world.host_address, 8000) == b"red\n"
        assert world.green.tcp(world.pick(SERVER, SERVER6), 80, timeout=QUIET) is None


def test_a_bridge_whose_name_differs_in_one_bit_is_another(world):
    world.hold(world.policy(routed=False), world.policy("ueb"))
    assert world.blue.ping(world.pick(SERVER, SERVER6))
    assert not world.red.ping(world.pick(SERVER, SERVER6), timeout=QUIET)


def test_snat_address(world):
    second = world.pick(HOST_SECOND, "2001:db8:1::3")
    if world.version == 6:
        world.host.write_sysctl("net/ipv6/conf/eth0/accept_dad", 0)
        world.host.add_address("eth0", ip_interface(f"{second}/64"))
    world.hold(world.policy(snat_address=ip_address(second)), world.policy("db"))
    with world.sandbox.internet.tcp_server(80, world.pick("0.0.0.0", "::")) as server:
        assert world.red.tcp(world.pick(SERVER, SERVER6), 80) == b"internet\n"
        assert server.last_peer == second
        assert world.green.tcp(world.pick(SERVER, SERVER6), 80) == b"internet\n"
        assert server.last_peer in {world.host_address, second}  # IPv6 masquerades behind the address made last


@pytest.mark.parametrize("bridge_nf", [True])
def test_neighbours_where_iptables_sees_bridged_packets(world):
    policy = world.policy()
    world.hold(policy, world.port())
    neighbour = str(world.subnet("web")[3])
    assert world.red.ping(neighbour)
    world.hold(replace(policy, icc=False), world.port())
    assert not world.red.ping(neighbour, timeout=QUIET)
    assert world.red.ping(world.pick(SERVER, SERVER6))
    with world.red.tcp_server(9000, world.pick("0.0.0.0", "::")):
        assert world.client.tcp(world.host_address, 8000) == b"red\n"
        assert world.pink.tcp(world.host_address, 8000, timeout=QUIET) is None


def test_a_stray_segment_is_dropped_both_ways(world):
    world.hold(world.policy(isolated=False), world.policy("db", isolated=False))
    family = world.pick(socket.AF_INET, socket.AF_INET6)
    with world.red.open_socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
        assert world.dropped() == 0
        raw.sendto(bytes(20), (world.pick(SERVER, SERVER6), 0))
        eventually(lambda: world.dropped() == 1)
    with world.client.open_socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
        with world.sandbox.internet.rtnl() as rtnl:
            subnet, via = world.subnet("web"), ip_address(world.host_address)
            rtnl.add_plain_route(subnet, rtnl.index_of("wan0"), via)
        raw.sendto(bytes(20), (str(world.subnet("web")[2]), 0))
        eventually(lambda: world.dropped() == 2)
