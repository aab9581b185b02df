"""Rows 5 and 6: published ports, from inside and from outside."""

import pytest
from cells import PROTOCOLS
from lab import asking, together
from world import made

from app.sandbox import eventually

hosts = pytest.mark.parametrize(("bridge_nf", "rp_filter"), [(False, 0), (True, 1)])
"""Lax and strict; each setting makes a difference where the other does not."""
every_way = pytest.mark.parametrize(("bridge_nf", "rp_filter"), [(False, 0), (False, 1), (True, 1), (True, 2)])


@every_way
def test_row_05_published_port_from_inside(lab, family, cell):
    """By the publisher itself, its neighbour and another network's endpoint, by every address of the host."""
    red, blue = lab.web()
    green = lab.green()
    lab.publish("red", 8080, target_port=80)
    with lab.servers(red, 80) as servers:
        for inside in (red, blue, green):
            for address in (family.web_gateway, family.lan_gateway, family.host, family.host_second):
                for protocol in PROTOCOLS:
                    with cell(protocol):
                        answer = inside.ask(protocol, address, 8080)
                        assert answer == b"red\n", f"{inside.name} by {protocol} to {address}: {inside.failure}"
        for protocol in PROTOCOLS:
            with cell(protocol):
                assert servers[protocol].last_peer == family.green, "what came from another network keeps its source"


@pytest.mark.parametrize("forward_policy", ["ACCEPT"])
def test_row_05_isolation_stays_where_a_port_is_published(lab, family, cell):
    red = lab.red()
    green = lab.green()
    lab.publish("red", 8080, target_port=80)
    with lab.servers(red, 80):
        for protocol in PROTOCOLS:
            with cell(protocol):
                assert green.ask(protocol, family.lan_gateway, 8080) == b"red\n"
    lab.check(cell, False, green, family.red, red, 80)
    lab.check(cell, False, green, family.red, red, 81)


@pytest.mark.parametrize("bridge_nf", [False, True])
def test_row_05_without_icc_a_neighbours_port_is_closed_and_anothers_open(lab, family, cell):
    """Row 1 wins: bridge-nf-call-iptables must make no difference."""
    red, blue = lab.web(icc=False)
    green = lab.green()
    lab.publish("red", 8080, target_port=80)
    with lab.servers(red, 80) as servers:
        for protocol in PROTOCOLS:
            with cell(protocol):
                assert green.ask(protocol, family.lan_gateway, 8080) == b"red\n"
                assert lab.client.ask(protocol, family.host, 8080) == b"red\n"
        servers.forget()
        for address in (family.web_gateway, family.host):
            answered = lab.answered(blue, address, 8080, b"red\n")
            for protocol in PROTOCOLS:
                with cell(protocol):
                    assert protocol not in answered
                    assert not servers[protocol].peers


# --- 6


@hosts
def test_row_06_published_port_from_outside(lab, family, cell):
    red = lab.red()
    lab.publish("red", 8080, target_port=80)
    with lab.servers(red, 80) as servers:
        for protocol in PROTOCOLS:
            with cell(protocol):
                for address in (family.host, family.host_second):
                    assert lab.client.ask(protocol, address, 8080) == b"red\n", f"{address}: {lab.client.failure}"
                assert {peer for peer, _port in servers[protocol].peers} == {family.client}


def test_row_06_only_the_address_it_is_published_on(lab, family, cell):
    red, blue = lab.web()
    lab.publish("red", 8080, target_port=80, host_ip=family.host_second)
    with lab.servers(red, 80), lab.servers(blue, 80):
        for protocol in PROTOCOLS:
            with cell(protocol):
                assert lab.client.ask(protocol, family.host_second, 8080) == b"red\n"
        answered = lab.answered(lab.client, family.host, 8080, b"red\n")
        for protocol in PROTOCOLS:
            with cell(protocol):
                assert protocol not in answered
        lab.publish("blue", 8080, target_port=80, host_ip=family.host)
        for protocol in PROTOCOLS:
            with cell(protocol):
                assert lab.client.ask(protocol, family.host, 8080) == b"blue\n"
                assert lab.client.ask(protocol, family.host_second, 8080) == b"red\n"


def test_row_06_a_port_that_is_gone_is_closed(lab, family, cell):
    red = lab.red()
    mappings = lab.publish("red", 8080, target_port=80)
    with lab.servers(red, 80):
        for protocol in PROTOCOLS:
            with cell(protocol):
                assert lab.client.ask(protocol, family.host, 8080) == b"red\n"
            lab.delete(f"portmaps/{mappings[protocol]['id']}")
            with cell(protocol):
                assert lab.client.ask(protocol, family.host, 8080, timeout=0.1) is None
        lab.client.tcp(family.host, 8080)
        assert isinstance(lab.client.failure, ConnectionRefusedError)


def test_row_06_the_protocols_of_one_port_are_three(lab, family, cell):
    places = dict(zip(PROTOCOLS, (*lab.web(), lab.green()), strict=True))
    for protocol, place in places.items():
        lab.portmap(place.name, 53, protocol=protocol)
    for protocol, place in places.items():
        with cell(protocol), lab.server(place, protocol, 53):
            assert lab.client.ask(protocol, family.host, 53) == place.banner


def test_row_06_a_range_of_ports(lab, family, cell):
    """Port by port to the same one, or shifted; its neighbours stay closed. A live change of both ends."""
    red = lab.red()
    same = lab.publish("red", "8000-8003")
    shifted = lab.publish("red", "8100-8103", target_port=9100)
    for first, target in ((8000, 8000), (8100, 9100)):
        ranges(lab, cell, red, first, target)
    for protocol in PROTOCOLS:
        lab.patch(f"portmaps/{shifted[protocol]['id']}", host_port="8200-8204", target_port=9200)
        lab.patch(f"portmaps/{same[protocol]['id']}", target_port=9000)
    ranges(lab, cell, red, 8200, 9200, count=5)
    ranges(lab, cell, red, 8000, 9000)
    closed(lab, cell, red, 8100, 9100)


def ranges(lab, cell, place, first, target, count=4):
    for offset in (0, count // 2, count - 1):
        for protocol in PROTOCOLS:
            with cell(protocol), lab.server(place, protocol, target + offset, banner=b"%d\n" % offset):
                assert lab.client.ask(protocol, lab.family.host, first + offset) == b"%d\n" % offset
    closed(lab, cell, place, first - 1, target - 1)
    closed(lab, cell, place, first + count, target + count)


def closed(lab, cell, place, port, target):
    with lab.servers(place, target) as servers:
        answered = together(
            {protocol: asking(lab.client, protocol, lab.family.host, port, place) for protocol in PROTOCOLS}
        )
        for protocol in PROTOCOLS:
            with cell(protocol):
                assert not answered[protocol], f"port {port}"
                assert not servers[protocol].peers


def test_row_06_a_port_that_nobody_chose(lab, family, cell):
    red = lab.red()
    for protocol in PROTOCOLS:
        body = {"endpoint": "red", "protocol": protocol, "target_port": 80, "host_ip": family.any}
        port = made(lab.api, "portmaps", **body)["host_port"]
        with cell(protocol), lab.server(red, protocol, 80):
            assert port >= 49153
            assert lab.client.ask(protocol, family.host, port) == b"red\n"


def test_row_06_every_change_of_a_mapping_is_live(lab, family, cell):
    red, blue = lab.web()
    mappings = lab.publish("red", 8080, target_port=80)
    with lab.servers(red, 80), lab.servers(blue, 80), lab.servers(red, 81, banner=b"81\n"):
        for change, address, port, banner in (
            ({"endpoint": "blue"}, family.host, 8080, b"blue\n"),
            ({"endpoint": "red", "target_port": 81}, family.host, 8080, b"81\n"),
            ({"host_port": 8081}, family.host, 8081, b"81\n"),
            ({"host_ip": family.host_second}, family.host_second, 8081, b"81\n"),
            ({"host_ip": family.any, "target_port": 80, "host_port": 8080}, family.host, 8080, b"red\n"),
        ):
            for protocol in PROTOCOLS:
                lab.patch(f"portmaps/{mappings[protocol]['id']}", **change)
                with cell(protocol):
                    assert lab.client.ask(protocol, address, port) == banner, change
            old = [family.host, 8080] if port == 8081 else [family.host, 8081]
            answered = lab.answered(lab.client, *old, banner) if change.keys() & {"host_port", "host_ip"} else set()
            for protocol in PROTOCOLS:
                with cell(protocol):
                    assert protocol not in answered, change


def test_row_06_one_mapping_of_many_moves_alone(lab, family, cell):
    red, blue = lab.web()
    for port in range(8000, 8130):
        lab.portmap("red", port, target_port=80)
    for protocol in PROTOCOLS[1:]:
        lab.portmap("red", 8064, target_port=80, protocol=protocol)
    moved = eventually(lambda: [one for one in lab.api.get("/portmaps?limit=1000").json() if one["host_port"] == 8064])
    for one in moved:
        lab.patch(f"portmaps/{one['id']}", endpoint="blue")
    with lab.servers(red, 80), lab.servers(blue, 80):
        for protocol in PROTOCOLS:
            with cell(protocol):
                assert lab.client.ask(protocol, family.host, 8064) == b"blue\n"
        with cell("tcp"):
            for port in (8000, 8063, 8065, 8129):
                assert lab.client.tcp(family.host, port) == b"red\n"
