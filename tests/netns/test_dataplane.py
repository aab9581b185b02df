"""The rows of docs/dataplane.md's table, packet by packet. A silence is always set against an answer."""

import socket

import pytest
from world import QUIET, delete, endpoint, network, patch, portmap, refused, route_back

from app.sandbox import CLIENT, HOST, HOST_SECOND, SERVER, eventually

WEB, LAN = "192.168.15.0/24", "192.168.16.0/24"
WEB_GATEWAY, LAN_GATEWAY = "192.168.15.1", "192.168.16.1"
RED, BLUE, GREEN = "192.168.15.2", "192.168.15.3", "192.168.16.2"

bridge_nf_off_and_on = pytest.mark.parametrize("bridge_nf", [False, True])
hosts = pytest.mark.parametrize(("bridge_nf", "rp_filter"), [(False, 0), (True, 1)])
"""Lax and strict; each setting makes a difference where the other does not."""


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


# --- 12


@pytest.fixture
def closed(sandbox, api):
    """red alone on an internal network that the internet has a route to, and green on another one."""
    network(api, "web", subnet=WEB, internal=True)
    endpoint(api, "red")
    route_back(sandbox, WEB, HOST)
    return sandbox.netns("red")


@pytest.mark.parametrize("forward_policy", ["ACCEPT"])
def test_row_12_internal_network_has_no_way_out_and_none_in(sandbox, api, closed):
    assert closed.default_route() is None
    assert reaches(closed, WEB_GATEWAY, sandbox.host)
    assert reaches(sandbox.host, RED, closed)
    closed.exec(["ip", "route", "add", SERVER, "via", WEB_GATEWAY])
    closed.exec(["ip", "route", "add", CLIENT, "via", WEB_GATEWAY])
    network(api, "lan", subnet=LAN)  # somebody has the host forward
    assert sandbox.host.sysctl("net/ipv4/ip_forward") == "1"
    assert not reaches(closed, SERVER, sandbox.internet)
    assert not reaches(sandbox.client, RED, closed)


@pytest.mark.parametrize("forward_policy", ["ACCEPT"])
def test_row_12_no_published_ports_of_others(sandbox, api, closed):
    neighbours_network(sandbox, api)
    portmap(api, "green", 8080, target_port=80)
    portmap(api, "green", 8080, target_port=80, protocol="udp")
    closed.exec(["ip", "route", "add", "default", "via", WEB_GATEWAY])
    for address in (WEB_GATEWAY, LAN_GATEWAY, HOST):
        assert not published(closed, address, sandbox.netns("green")), address
    assert published(sandbox.client, HOST, sandbox.netns("green"))


@pytest.mark.parametrize("forward_policy", ["ACCEPT"])
def test_row_12_no_open_neighbour_network(sandbox, api, closed):
    patch(api, "networks/web", isolated=False)
    green = neighbours_network(sandbox, api, isolated=False)
    closed.exec(["ip", "route", "add", GREEN, "via", WEB_GATEWAY])
    assert not reaches(green, RED, closed)
    assert not reaches(closed, GREEN, green)


def test_row_12_no_published_port_of_its_own(api, closed):
    refused(api.post("/portmaps", json={"endpoint": "red", "host_port": 8080}), 409, "internal_network", "web")


def test_row_12_internal_changes_on_the_live_network(sandbox, api, red):
    portmap(api, "red", 8080, target_port=80)
    found = []
    with red.tcp_server(80):
        for internal in (False, True, False):
            patch(api, "networks/web", internal=internal)
            outbound = red.ping(SERVER, timeout=QUIET)
            inbound = sandbox.client.tcp(HOST, 8080, timeout=QUIET) == b"red\n"
            found.append((outbound, inbound, red.default_route() is not None))
    assert found == [(True,) * 3, (False,) * 3, (True,) * 3]


def published(one, address, other):
    """Whether port 8080, TCP and UDP, is other's port 80: both, or not even one way."""
    with other.tcp_server(80), other.udp_server(80) as datagrams:
        by_tcp = one.tcp(address, 8080, timeout=QUIET) == other.banner
        by_udp = one.udp(address, 8080, timeout=QUIET) is not None
        assert len({by_tcp, by_udp, bool(datagrams.received)}) == 1
    return by_tcp


# --- 13


def flows(sandbox, where):
    place, address = {"client": (sandbox.client, HOST), "host": (sandbox.host, "127.0.0.1")}[where]
    return place.udp_flow(address, 5353, sport=40001)


@pytest.mark.parametrize(("where", "target_port"), [("client", 5353), ("client", 53), ("host", 53)])
def test_row_13_udp_flow_follows_its_mapping(sandbox, api, red, blue, where, target_port):
    with red.udp_server(target_port) as old, blue.udp_server(target_port) as new, flows(sandbox, where) as flow:
        assert flow.ask(timeout=QUIET) is None
        mapping = portmap(api, "red", 5353, protocol="udp", target_port=target_port)
        assert flow.ask(b"1") == b"red\n1"
        patch(api, f"portmaps/{mapping['id']}", endpoint="blue")
        assert flow.ask(b"2") == b"blue\n2"
        delete(api, f"portmaps/{mapping['id']}")
        assert flow.ask(b"3", timeout=QUIET) is None
        assert (old.received, new.received) == ([b"1"], [b"2"])


def test_row_13_udp_flow_follows_a_target_port(sandbox, api, red):
    mapping = portmap(api, "red", 5353, protocol="udp", target_port=53)
    with red.udp_server(53, banner=b"a\n"), red.udp_server(54, banner=b"b\n"), flows(sandbox, "client") as flow:
        assert flow.ask(b"1") == b"a\n1"
        patch(api, f"portmaps/{mapping['id']}", target_port=54)
        assert flow.ask(b"2") == b"b\n2"


def test_row_13_udp_flow_of_another_port_is_left_alone(sandbox, api, red, blue):
    """Its entry would be made again; with the mapping gone in between, only the old entry carries it on."""
    portmap(api, "red", 5353, protocol="udp", target_port=53)
    with red.udp_server(53) as server, flows(sandbox, "client") as flow:
        assert flow.ask(b"1")
        other = portmap(api, "blue", 5354, protocol="udp", target_port=53)
        delete(api, f"portmaps/{other['id']}")
        assert flow.ask(b"2") == b"red\n2"
        assert server.peers == [(CLIENT, 40001)] * 2


def test_row_13_tcp_connections_of_a_changed_mapping_live_on(sandbox, api, red, blue):
    mapping = portmap(api, "red", 8080, target_port=80)
    with red.tcp_server(80), blue.tcp_server(80), sandbox.client.connect(HOST, 8080) as connection:
        assert connection.recv(100) == b"red\n"
        patch(api, f"portmaps/{mapping['id']}", endpoint="blue")
        assert sandbox.client.tcp(HOST, 8080) == b"blue\n"
        connection.sendall(b"still here")
        assert connection.recv(100) == b"still here"


def test_row_13_a_mapping_moves_to_another_host_port(sandbox, api, red):
    mapping = portmap(api, "red", 5353, protocol="udp", target_port=53)
    with red.udp_server(53) as server, flows(sandbox, "client") as flow:
        assert flow.ask(b"1")
        patch(api, f"portmaps/{mapping['id']}", host_port=5354)
        assert flow.ask(b"2", timeout=QUIET) is None
        assert sandbox.client.udp(HOST, 5354, b"3") == b"red\n3"
        assert server.received == [b"1", b"3"]


# --- 14 and 15


def test_row_14_a_freed_address_and_port_work_for_the_next(sandbox, api, red):
    portmap(api, "red", 8080, target_port=80)
    assert api.delete("/endpoints/red?force=true").status_code == 204
    endpoint(api, "blue", address=RED)
    portmap(api, "blue", 8080, target_port=80)
    blue = sandbox.netns("blue")
    with blue.tcp_server(80):
        assert sandbox.client.tcp(HOST, 8080) == b"blue\n"
    assert blue.ping(SERVER)


def test_row_15_a_foreign_drop_at_the_end_of_forward(sandbox, baseline, daemon, api):
    sandbox.host.exec(["iptables-legacy", "-A", "FORWARD", "-j", "DROP"])
    baseline.take()
    network(api, "web", subnet=WEB)
    endpoint(api, "red")
    portmap(api, "red", 8080, target_port=80)
    red = sandbox.netns("red")
    with red.tcp_server(80):
        assert sandbox.client.tcp(HOST, 8080) == b"red\n"
    assert red.ping(SERVER)
