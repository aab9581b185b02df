"""Rows 1 and 2: neighbours, and the host."""

import socket

import pytest
from cells import PROTOCOLS
from lab import IPV4, asking, together
from world import QUIET

from app.sandbox import eventually

bridge_nf_off_and_on = pytest.mark.parametrize("bridge_nf", [False, True])
accepting = pytest.mark.parametrize("forward_policy", ["ACCEPT"])  # DROP would do our work


@bridge_nf_off_and_on
@pytest.mark.parametrize("gateway", [True, False])
def test_row_01_neighbours_reach_one_another(lab, family, cell, gateway):
    red, blue = lab.web(**({} if gateway else {"gateway": None, **lab.only6(gateway6=None)}))
    lab.check(cell, True, red, family.blue, blue)
    lab.check(cell, True, blue, family.red, red)


@pytest.mark.parametrize("bridge_nf", [True])
def test_row_01_on_an_internal_network_too(lab, family, cell):
    red, blue = lab.web(internal=True)
    lab.check(cell, True, red, family.blue, blue)


@pytest.mark.parametrize("family", [IPV4])  # IPv6 has no broadcast
@bridge_nf_off_and_on
def test_row_01_broadcasts_pass(lab, cell):
    red, blue = lab.web()
    with cell("udp"), blue.udp_server(67) as server, red.open_socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sender.bind(("", 68))
        sender.sendto(b"who", ("192.168.15.255", 67))
        eventually(lambda: server.peers == [(IPV4.red, 68)])


@accepting
@bridge_nf_off_and_on
def test_row_01_without_icc_neighbours_are_apart(lab, family, cell):
    """Not by way of the gateway either; host and internet stay in reach; each change on the live network."""
    red, blue = lab.web(icc=False)
    apart(lab, cell, red, blue)
    for protocol in PROTOCOLS:
        with cell(protocol), lab.server(lab.internet, protocol, 80):
            assert red.ask(protocol, family.server, 80) == b"internet\n"
    lab.patch("networks/web", icc=True)
    lab.check(cell, True, red, family.blue, blue)
    by_the_gateway(lab, red, blue)
    lab.check(cell, True, red, family.blue, blue)
    lab.patch("networks/web", icc=False)
    lab.check(cell, False, red, family.blue, blue)


def apart(lab, cell, red, blue):
    family = lab.family
    lab.check(cell, False, red, family.blue, blue)
    lab.check(cell, True, lab.host, family.blue, blue)
    lab.check(cell, True, red, family.web_gateway, lab.host)
    by_the_gateway(lab, red, blue)
    lab.check(cell, False, red, family.blue, blue)
    lab.check(cell, False, blue, family.red, red)


def by_the_gateway(lab, red, blue):
    """Both send what is for the other one to the gateway, which the host would forward."""
    family = lab.family
    for place, other in ((red, family.blue), (blue, family.red)):
        lab.route(place, f"{other}/{family.bits}", family.web_gateway)


@accepting
def test_row_01_an_endpoint_that_comes_later_is_apart_too(lab, family, cell):
    lab.network("web")
    red = lab.endpoint("red")
    lab.patch("networks/web", icc=False)
    blue = lab.endpoint("blue")
    lab.check(cell, False, red, family.blue, blue)
    lab.check(cell, True, lab.host, family.blue, blue)


# --- 2


@bridge_nf_off_and_on
def test_row_02_host_and_endpoint_reach_one_another(lab, family, cell):
    red = lab.red()
    lab.check(cell, True, lab.host, family.red, red)
    for address in (family.web_gateway, family.host, family.host_second):
        lab.check(cell, True, red, address, lab.host)


def test_row_02_input_is_the_hosts_own_affair(lab, baseline, family, cell):
    program = "iptables" if family.version == 4 else "ip6tables"
    for protocol in PROTOCOLS:
        rule = ["-A", "INPUT", "-p", protocol, "--dport", "81", "-j", "DROP"]
        lab.host.exec([f"{program}-legacy", *rule])
    baseline.take()
    red = lab.red()
    with lab.servers(lab.host, 80), lab.servers(lab.host, 81):
        for protocol in PROTOCOLS:
            with cell(protocol):
                assert red.ask(protocol, family.web_gateway, 80) == b"host\n"
        refused = together(
            {protocol: asking(red, protocol, family.web_gateway, 81, lab.host) for protocol in PROTOCOLS}
        )
        for protocol in PROTOCOLS:
            with cell(protocol):
                assert not refused[protocol]


def test_row_02_the_bridge_answers_by_its_new_address_once_it_moves(lab, family, cell):
    red = lab.red()
    moved = family.web_gateway.removesuffix("1") + "9"
    lab.patch("networks/web", **{f"gateway{family.suffix}": moved})
    lab.check(cell, True, red, moved, lab.host)
    assert not red.ping(family.web_gateway, timeout=QUIET)
    assert red.default_route(family.version) == (moved, "eth0")
