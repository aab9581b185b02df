"""Issue 2's walk-through, step by step as written there, and the bare bodies."""

import pytest
from world import QUIET, delete, endpoint, made, network, patch, portmap

from app.sandbox import CLIENT, HOST, SERVER

BLUE, RED, GATEWAY = "192.168.15.2", "192.168.15.1", "192.168.15.5"
WAYS_OF_THE_HOST = [False, True]


@pytest.mark.parametrize("bridge_nf", WAYS_OF_THE_HOST)
def test_walk_through(sandbox, baseline, daemon, api):
    red, blue = sandbox.netns("red"), sandbox.netns("blue")
    step_1_a_bridge_without_address(api, sandbox, red)
    step_2_a_gateway(api, sandbox, red, blue)
    step_3_the_way_out(sandbox, red)
    mapping = step_4_a_published_port(api, sandbox, red, blue)
    step_5_everything_is_as_before(api, baseline, mapping)


def step_1_a_bridge_without_address(api, sandbox, red):
    network(api, "br0", subnet="192.168.15.0/24", gateway=None)
    for name, address in (("red", RED), ("blue", BLUE)):
        given = endpoint(api, name, "br0", ifname=f"veth-{name}", host_ifname=f"veth-{name}-br")
        assert given["address"] == address
    links = sandbox.host.links()
    assert {"br0", "veth-red-br", "veth-blue-br"} <= set(links)
    assert links["veth-red-br"].master == links["br0"].index
    assert "veth-red" in red.links()
    assert "br0" not in sandbox.host.addresses()
    assert red.ping(BLUE)
    assert not sandbox.host.ping(RED, timeout=QUIET)


def step_2_a_gateway(api, sandbox, red, blue):
    assert patch(api, "networks/br0", gateway=GATEWAY)["gateway"] == GATEWAY
    assert sandbox.host.ping(RED)
    assert red.ping(GATEWAY)
    assert red.default_route() == (GATEWAY, "veth-red")
    assert blue.default_route() == (GATEWAY, "veth-blue")


def step_3_the_way_out(sandbox, red):
    assert red.ping(SERVER)
    with sandbox.internet.tcp_server(80) as server:
        assert red.tcp(SERVER, 80) == b"internet\n"
        assert server.last_peer == HOST
    assert sandbox.host.sysctl("net/ipv4/ip_forward") == "1"
    assert "-P FORWARD DROP" in sandbox.host.exec(["iptables-legacy", "-S", "FORWARD"]).stdout


def step_4_a_published_port(api, sandbox, red, blue):
    mapping = portmap(api, "red", 8080, target_port=80)
    with red.tcp_server(80, http=True) as server:
        assert sandbox.client.http(HOST, 8080) == b"red\n"
        assert server.last_peer == CLIENT
        assert sandbox.host.http("127.0.0.1", 8080) == b"red\n"
        assert sandbox.host.http(HOST, 8080) == b"red\n"
        assert blue.http(GATEWAY, 8080) == b"red\n"
    return mapping


def step_5_everything_is_as_before(api, baseline, mapping):
    delete(api, f"portmaps/{mapping['id']}")
    delete(api, "endpoints/red")
    delete(api, "endpoints/blue")
    delete(api, "networks/br0")
    assert baseline.difference() == ""


@pytest.mark.parametrize("bridge_nf", WAYS_OF_THE_HOST)
def test_walk_through_with_bare_bodies(sandbox, baseline, api):
    web = made(api, "networks", name="web")
    assert (web["bridge"], web["subnet"], web["gateway"], web["mtu"]) == ("web", "192.168.15.0/24", RED, 1500)
    red = made(api, "endpoints", network="web", namespace="red")
    assert (red["name"], red["address"], red["ifname"], red["gateway"]) == ("red", BLUE, "eth0", RED)
    mapping = made(api, "portmaps", endpoint="red", host_port=8080)
    assert (mapping["protocol"], mapping["host_ip"], mapping["target_port"]) == ("tcp", "0.0.0.0", 8080)
    inside = sandbox.netns("red")
    with inside.tcp_server(8080, http=True) as server:
        assert sandbox.client.http(HOST, 8080) == b"red\n"
        assert server.last_peer == CLIENT
        assert sandbox.host.http("127.0.0.1", 8080) == b"red\n"
    assert inside.ping(SERVER)
    delete(api, f"portmaps/{mapping['id']}")
    delete(api, "endpoints/red")
    delete(api, "networks/web")
    assert baseline.difference() == ""
