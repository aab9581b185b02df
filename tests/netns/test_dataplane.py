"""The rows of docs/dataplane.md's table, packet by packet. A silence is always set against an answer."""

import socket
import struct

import pytest
from world import QUIET, delete, endpoint, network, patch, portmap, route_back

from app.sandbox import CLIENT, HOST, HOST_SECOND, SERVER, eventually

WEB, LAN = "192.168.15.0/24", "192.168.16.0/24"
WEB_GATEWAY, LAN_GATEWAY = "192.168.15.1", "192.168.16.1"
RED, BLUE, GREEN = "192.168.15.2", "192.168.15.3", "192.168.16.2"

bridge_nf_off_and_on = pytest.mark.parametrize("bridge_nf", [False, True])
hosts = pytest.mark.parametrize(("bridge_nf", "rp_filter"), [(False, 0), (True, 1)])
"""Lax and strict; each setting makes a difference where the other does not."""
both_policies = pytest.mark.parametrize("forward_policy", ["ACCEPT", "DROP"])


@pytest.fixture
def web(api):
    return network(api, "web", subnet=WEB)


@pytest.fixture
def red(sandbox, api, web):
    assert endpoint(api, "red")["address"] == RED
    return sandbox.netns("red")


@pytest.fixture
def blue(sandbox, api, red):
    assert endpoint(api, "blue")["address"] == BLUE
    return sandbox.netns("blue")


def neighbours_network(sandbox, api, **fields):
    """Another network, with green in it."""
    network(api, "lan", subnet=LAN, **fields)
    assert endpoint(api, "green", "lan")["address"] == GREEN
    return sandbox.netns("green")


@pytest.fixture
def green(sandbox, api, web):
    return neighbours_network(sandbox, api)


def reaches(one, address, other, port=80):
    """Whether echo requests, TCP and UDP pass: all, or none, and then not even one way."""
    with other.tcp_server(port), other.udp_server(port) as datagrams:
        found = {
            "ping": one.ping(address, timeout=QUIET),
            "tcp": one.tcp(address, port, timeout=QUIET) == other.banner,
            "udp": one.udp(address, port, timeout=QUIET) is not None,
            "one way": bool(datagrams.received),
        }
    assert len(set(found.values())) == 1, f"from {one} to {address} only some pass: {found}"
    return found["ping"]


# --- 1


@bridge_nf_off_and_on
@pytest.mark.parametrize("gateway", [WEB_GATEWAY, None])
def test_row_1_same_network_passes(sandbox, api, gateway):
    network(api, "web", subnet=WEB, gateway=gateway)
    one, two = endpoint(api, "one"), endpoint(api, "two")
    assert reaches(sandbox.netns("one"), two["address"], sandbox.netns("two"))
    assert reaches(sandbox.netns("two"), one["address"], sandbox.netns("one"))


@bridge_nf_off_and_on
def test_row_1_passes_on_an_internal_network_too(sandbox, api):
    network(api, "web", subnet=WEB, internal=True)
    endpoint(api, "red")
    endpoint(api, "blue")
    assert reaches(sandbox.netns("red"), BLUE, sandbox.netns("blue"))


@bridge_nf_off_and_on
def test_row_1_broadcasts_pass(sandbox, red, blue):
    with blue.udp_server(67) as server, red.open_socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sender.bind(("", 68))
        sender.sendto(b"who", ("192.168.15.255", 67))
        eventually(lambda: server.peers == [(RED, 68)])


# --- 2


def test_row_2_host_and_endpoint_reach_one_another(sandbox, red):
    assert reaches(sandbox.host, RED, red)
    assert reaches(red, WEB_GATEWAY, sandbox.host)
    assert reaches(red, HOST, sandbox.host)


def test_row_2_input_is_the_hosts_own_affair(sandbox, baseline, daemon, api):
    sandbox.host.exec(["iptables-legacy", "-A", "INPUT", "-p", "tcp", "--dport", "81", "-j", "DROP"])
    baseline.take()
    network(api, "web", subnet=WEB)
    endpoint(api, "red")
    red = sandbox.netns("red")
    with sandbox.host.tcp_server(80), sandbox.host.tcp_server(81):
        assert red.tcp(WEB_GATEWAY, 80)
        assert red.tcp(WEB_GATEWAY, 81, timeout=QUIET) is None


# --- 3


@both_policies
def test_row_3_outbound_is_masqueraded(sandbox, red):
    with sandbox.internet.tcp_server(80) as web, sandbox.internet.udp_server(53) as names:
        assert red.tcp(SERVER, 80) == b"internet\n"
        assert red.udp(SERVER, 53) == b"internet\nhello\n"
        assert (web.last_peer, names.last_peer) == (HOST, HOST)
    assert red.ping(SERVER)
    assert red.ping(CLIENT)


def test_row_3_routed_network_keeps_its_addresses(sandbox, api):
    network(api, "web", subnet=WEB, masquerade=False)
    endpoint(api, "red")
    red = sandbox.netns("red")
    route_back(sandbox, WEB, HOST)
    with sandbox.internet.tcp_server(80) as server:
        assert red.tcp(SERVER, 80) == b"internet\n"
        assert server.last_peer == RED


def test_row_3_masquerade_changes_on_the_live_network(sandbox, api, red):
    route_back(sandbox, WEB, HOST)
    with sandbox.internet.tcp_server(80) as server:
        seen = []
        for masquerade in (False, True):
            patch(api, "networks/web", masquerade=masquerade)
            assert red.tcp(SERVER, 80)
            seen.append(server.last_peer)
    assert seen == [RED, HOST]


@pytest.mark.parametrize("bridge_nf", [True])  # else bridged packets are not even looked at
def test_row_3_no_masquerade_inside_the_subnet(red, blue):
    with blue.tcp_server(80) as server:
        assert red.tcp(BLUE, 80)
        assert server.last_peer == RED


# --- 4


@pytest.mark.parametrize("forward_policy", ["ACCEPT"])  # DROP would do our work
@pytest.mark.parametrize(("web_isolated", "lan_isolated"), [(True, True), (True, False), (False, True)])
def test_row_4_isolated_networks_do_not_reach_one_another(sandbox, api, red, web_isolated, lan_isolated):
    patch(api, "networks/web", isolated=web_isolated)
    green = neighbours_network(sandbox, api, isolated=lan_isolated)
    assert not reaches(red, GREEN, green)
    assert not reaches(green, RED, red)
    assert reaches(sandbox.host, GREEN, green)


@pytest.mark.parametrize("forward_policy", ["ACCEPT"])
@pytest.mark.parametrize("masquerade", [(True, False), (False, False)])
def test_row_4_routed_networks_are_isolated_too(sandbox, api, red, masquerade):
    patch(api, "networks/web", masquerade=masquerade[0])
    green = neighbours_network(sandbox, api, masquerade=masquerade[1])
    assert not reaches(red, GREEN, green)
    assert not reaches(green, RED, red)


@pytest.mark.parametrize("masquerade", [(True, True), (True, False), (False, False)])
def test_row_4_open_networks_reach_one_another_with_their_own_addresses(sandbox, api, red, masquerade):
    patch(api, "networks/web", isolated=False, masquerade=masquerade[0])
    green = neighbours_network(sandbox, api, isolated=False, masquerade=masquerade[1])
    with green.tcp_server(80) as server, red.tcp_server(80) as other:
        assert red.tcp(GREEN, 80) == b"green\n"
        assert green.tcp(RED, 80) == b"red\n"
        assert (server.last_peer, other.last_peer) == (RED, GREEN)
    assert red.ping(GREEN)


def test_row_4_isolation_changes_on_the_live_network(sandbox, api, red):
    green = neighbours_network(sandbox, api, isolated=False)
    found = []
    for isolated in (False, True, False):
        patch(api, "networks/web", isolated=isolated)
        found.append(reaches(red, GREEN, green))
    assert found == [True, False, True]


# --- 5


@pytest.mark.parametrize(("bridge_nf", "rp_filter"), [(False, 0), (False, 1), (True, 1)])
@pytest.mark.parametrize("asker", ["red", "blue", "green"])
def test_row_5_published_port_from_inside(sandbox, api, red, blue, green, asker):
    portmap(api, "red", 8080, target_port=80)
    portmap(api, "red", 53, protocol="udp")
    inside = sandbox.netns(asker)
    with red.tcp_server(80) as server, red.udp_server(53):
        for address in (WEB_GATEWAY, LAN_GATEWAY, HOST, HOST_SECOND):
            assert inside.tcp(address, 8080) == b"red\n", f"{asker} by {address}: {inside.failure}"
            assert inside.udp(address, 53) == b"red\nhello\n", f"{asker} by {address}: {inside.failure}"
        if asker == "green":
            assert server.last_peer == GREEN


def test_row_5_isolation_stays_where_a_port_is_published(sandbox, api, red, green):
    portmap(api, "red", 8080, target_port=80)
    with red.tcp_server(80), red.tcp_server(81):
        assert green.tcp(LAN_GATEWAY, 8080) == b"red\n"
        assert green.tcp(RED, 80, timeout=QUIET) is None
        assert green.tcp(RED, 81, timeout=QUIET) is None


# --- 6


@hosts
def test_row_6_published_port_from_outside(sandbox, api, red):
    portmap(api, "red", 8080, target_port=80)
    portmap(api, "red", 53, protocol="udp")
    with red.tcp_server(80) as web, red.udp_server(53) as names:
        for address in (HOST, HOST_SECOND):
            assert sandbox.client.tcp(address, 8080) == b"red\n"
            assert sandbox.client.udp(address, 53) == b"red\nhello\n"
        assert {address for address, _port in web.peers + names.peers} == {CLIENT}


def test_row_6_only_the_address_it_is_published_on(sandbox, api, red):
    portmap(api, "red", 8080, target_port=80, host_ip=HOST_SECOND)
    with red.tcp_server(80):
        assert sandbox.client.tcp(HOST_SECOND, 8080) == b"red\n"
        assert sandbox.client.tcp(HOST, 8080, timeout=QUIET) is None


def test_row_6_the_same_port_on_two_addresses(sandbox, api, red, blue):
    portmap(api, "red", 8080, target_port=80, host_ip=HOST)
    portmap(api, "blue", 8080, target_port=80, host_ip=HOST_SECOND)
    with red.tcp_server(80), blue.tcp_server(80):
        assert sandbox.client.tcp(HOST, 8080) == b"red\n"
        assert sandbox.client.tcp(HOST_SECOND, 8080) == b"blue\n"


def test_row_6_a_port_that_is_gone_is_closed(sandbox, api, red):
    mapping = portmap(api, "red", 8080, target_port=80)
    with red.tcp_server(80):
        assert sandbox.client.tcp(HOST, 8080) == b"red\n"
        delete(api, f"portmaps/{mapping['id']}")
        assert sandbox.client.tcp(HOST, 8080, timeout=QUIET) is None
        assert isinstance(sandbox.client.failure, ConnectionRefusedError)


def test_row_6_tcp_and_udp_of_one_port_are_two(sandbox, api, red, blue):
    portmap(api, "red", 53, protocol="tcp")
    portmap(api, "blue", 53, protocol="udp")
    with red.tcp_server(53), blue.udp_server(53):
        assert sandbox.client.tcp(HOST, 53) == b"red\n"
        assert sandbox.client.udp(HOST, 53) == b"blue\nhello\n"


# --- 7


@both_policies
def test_row_7_endpoint_addresses_are_closed_to_the_outside(sandbox, api, red):
    route_back(sandbox, WEB, HOST)
    portmap(api, "red", 8080, target_port=80)
    with red.tcp_server(80):
        assert sandbox.client.tcp(HOST, 8080) == b"red\n"
    assert not reaches(sandbox.client, RED, red)
    patch(api, "networks/web", masquerade=False)
    assert reaches(sandbox.client, RED, red)


# --- 8


@hosts
@pytest.mark.parametrize("host_ip", ["0.0.0.0", "127.0.0.1"])
def test_row_8_local_process_by_loopback(sandbox, api, red, host_ip):
    portmap(api, "red", 8080, target_port=80, host_ip=host_ip)
    portmap(api, "red", 53, protocol="udp", host_ip=host_ip)
    with red.tcp_server(80) as server, red.udp_server(53):
        assert sandbox.host.tcp("127.0.0.1", 8080) == b"red\n"
        assert sandbox.host.udp("127.0.0.1", 53) == b"red\nhello\n"
        assert server.last_peer == WEB_GATEWAY


@hosts
def test_row_8_local_process_by_any_host_address(sandbox, api, red):
    portmap(api, "red", 8080, target_port=80)
    with red.tcp_server(80):
        for address in (HOST, HOST_SECOND, WEB_GATEWAY, "127.0.0.2"):
            assert sandbox.host.tcp(address, 8080) == b"red\n", address


def test_row_8_published_on_loopback_is_for_this_host_alone(sandbox, api, red, blue):
    portmap(api, "red", 8080, target_port=80, host_ip="127.0.0.1")
    with red.tcp_server(80):
        assert sandbox.host.tcp("127.0.0.1", 8080) == b"red\n"
        for address in (HOST, HOST_SECOND):
            assert sandbox.client.tcp(address, 8080, timeout=QUIET) is None
        assert blue.tcp(WEB_GATEWAY, 8080, timeout=QUIET) is None


# --- 9


def udp_frame(source_mac, mac, source, destination, port):
    """A datagram without checksum, with all its headers."""
    payload = destination.encode()
    udp = struct.pack("!HHHH", 40000, port, 8 + len(payload), 0) + payload
    plain = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0)
    ends = socket.inet_aton(source) + socket.inet_aton(destination)
    total = sum(struct.unpack("!10H", plain + ends))
    total = (total >> 16) + (total & 0xFFFF)
    checksum = struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF)
    macs = bytes.fromhex((mac + source_mac).replace(":", ""))
    return macs + b"\x08\x00" + plain[:10] + checksum + ends + udp


def inject(place, ifname, mac, source, port, *destinations):
    """Datagrams to `mac` from an interface of `place`, whatever its routes say; one queue keeps their order."""
    own = place.links()[ifname].mac
    with place.open_socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((ifname, 0))
        for destination in destinations:
            raw.send(udp_frame(own, mac, source, destination, port))


def loopback_is_dropped(place, ifname, mac, source, port, control, server):
    """Of both datagrams only the later one, to `control`, arrives."""
    inject(place, ifname, mac, source, port, "127.0.0.1", control)
    eventually(lambda: control.encode() in server.received)
    return server.received == [control.encode()]


@pytest.mark.parametrize("host_ip", ["0.0.0.0", "127.0.0.1"])
def test_row_9_published_loopback_from_the_wire_is_dropped(sandbox, api, red, host_ip):
    portmap(api, "red", 5000, protocol="udp", host_ip=host_ip)
    control = HOST
    if host_ip != "0.0.0.0":
        portmap(api, "red", 5000, protocol="udp", host_ip=HOST)
    mac = sandbox.host.links()["eth0"].mac
    with red.udp_server(5000) as server:
        assert loopback_is_dropped(sandbox.internet, "wan0", mac, SERVER, 5000, control, server)


def test_row_9_the_hosts_own_loopback_service_is_not_reached_from_the_wire(sandbox, baseline, daemon, api):
    sandbox.host.write_sysctl("net/ipv4/conf/eth0/route_localnet", 1)  # somebody else's mistake
    baseline.take()
    network(api, "web", subnet=WEB)
    endpoint(api, "red")
    mac = sandbox.host.links()["eth0"].mac
    with sandbox.host.udp_server(5001) as server:
        assert loopback_is_dropped(sandbox.internet, "wan0", mac, SERVER, 5001, HOST, server)


def test_row_9_an_endpoint_does_not_reach_the_hosts_loopback(sandbox, api, red):
    """CVE-2020-8558: the bridge has route_localnet."""
    portmap(api, "red", 8080)
    assert sandbox.host.sysctl("net/ipv4/conf/web/route_localnet") == "1"
    mac = sandbox.host.links()["web"].mac
    with sandbox.host.udp_server(5001) as server:
        assert loopback_is_dropped(red, "eth0", mac, RED, 5001, WEB_GATEWAY, server)


def test_row_9_an_endpoint_does_not_reach_what_is_published_on_loopback(sandbox, api, red, blue):
    portmap(api, "red", 5000, protocol="udp", host_ip="127.0.0.1")
    portmap(api, "red", 5000, protocol="udp", host_ip=HOST)
    mac = sandbox.host.links()["web"].mac
    with red.udp_server(5000) as server:
        assert loopback_is_dropped(blue, "eth0", mac, BLUE, 5000, HOST, server)


# --- 10


@pytest.fixture
def inner(sandbox, baseline):
    """A machine behind the host that is not the daemon's."""
    made = sandbox.add_netns("inner")
    sandbox.host.add_veth("v-inner", "eth0", made)
    sandbox.host.exec(["ip", "address", "add", "10.9.0.1/24", "dev", "v-inner"])
    made.exec(["ip", "address", "add", "10.9.0.2/24", "dev", "eth0"])
    made.exec(["ip", "route", "add", "default", "via", "10.9.0.1"])
    route_back(sandbox, "10.9.0.0/24", HOST)
    baseline.take()
    return made


@pytest.mark.parametrize("forward_policy", ["ACCEPT"])
def test_row_10_transit_to_a_foreign_address_is_untouched(sandbox, inner, api, red):
    portmap(api, "red", 8080, target_port=80)
    with inner.tcp_server(8080) as server, red.tcp_server(80):
        assert sandbox.client.tcp("10.9.0.2", 8080) == b"inner\n"
        assert server.last_peer == CLIENT
        assert sandbox.client.tcp(HOST, 8080) == b"red\n"


@pytest.mark.parametrize("forward_policy", ["ACCEPT"])
def test_row_10_foreign_traffic_out_is_not_masqueraded(sandbox, inner, api, red):
    with sandbox.internet.tcp_server(80) as server:
        assert inner.tcp(SERVER, 80) == b"internet\n"
        assert server.last_peer == "10.9.0.2"


def test_row_10_endpoints_and_host_reach_foreign_servers_with_the_same_port(sandbox, api, red, blue):
    portmap(api, "red", 8080, target_port=80)
    with sandbox.internet.tcp_server(8080), red.tcp_server(80), blue.tcp_server(8080):
        for place in (red, blue, sandbox.host):
            assert place.tcp(SERVER, 8080) == b"internet\n"
        assert red.tcp(BLUE, 8080) == b"blue\n"
