"""Row 12: networks without a way out: internal ones, and those without a gateway."""

import pytest
from cells import PROTOCOLS
from world import QUIET, refused

accepting = pytest.mark.parametrize("forward_policy", ["ACCEPT"])  # DROP would do our work
kinds = pytest.mark.parametrize("kind", ["internal", "no_gateway"])


def closing(lab, kind):
    """The fields that close a network, and those that open it again."""
    family = lab.family
    if kind == "internal":
        return {"internal": True}, {"internal": False}
    gateways = {f"gateway{family.suffix}": family.web_gateway}
    return dict.fromkeys(gateways), gateways


def closed(lab, kind, **fields):
    """red on a closed network; it sends whatever it has to the bridge, and the host and the internet send to it."""
    family = lab.family
    lab.network("web", **closing(lab, kind)[0], **fields)
    red = lab.endpoint("red")
    assert red.default_route(family.version) is None
    lab.route_back(family.web)
    if kind == "no_gateway":
        knows(red, family, family.web_gateway, "eth0", lab.host.links()["web"].mac)
        knows(lab.host, family, family.red, "web", red.links()["eth0"].mac)
        lab.host.exec(["ip", f"-{family.version}", "route", "replace", f"{family.red}/{family.bits}", "dev", "web"])
    lab.route(red, "default", family.web_gateway)
    return red


def knows(place, family, address, ifname, mac):
    """A neighbour's MAC by hand: nobody answers for the address."""
    place.exec(["ip", f"-{family.version}", "neighbour", "replace", address, "lladdr", mac, "dev", ifname])


@accepting
@kinds
def test_row_12_no_way_out_and_none_in(lab, family, cell, kind):
    """Though the host forwards, for another network; its gateway answers."""
    red = closed(lab, kind, isolated=False)
    green = lab.green(isolated=False)
    assert lab.host.sysctl("net/ipv4/ip_forward" if family.version == 4 else "net/ipv6/conf/all/forwarding") == "1"
    if kind == "internal":
        lab.check(cell, True, red, family.web_gateway, lab.host)
        lab.check(cell, True, lab.host, family.red, red)
    lab.check(cell, False, red, family.server, lab.internet)
    lab.check(cell, False, lab.client, family.red, red)
    lab.check(cell, False, green, family.red, red)
    lab.check(cell, False, red, family.green, green)


@accepting
@kinds
def test_row_12_no_published_ports(lab, family, cell, kind):
    """Neither another network's, which its packets are not even translated to, nor one of its own."""
    red = closed(lab, kind)
    green = lab.green()
    lab.publish("green", 8080, target_port=80)
    with lab.servers(green, 80) as servers:
        for protocol in PROTOCOLS:
            with cell(protocol):
                assert lab.client.ask(protocol, family.host, 8080) == b"green\n"
        servers.forget()
        answers = kind == "internal"  # else the host has no way back
        for address in (family.web_gateway, family.lan_gateway, family.host)[not answers :]:
            answered = lab.answered(red, address, 8080, b"green\n")
            for protocol in PROTOCOLS:
                with cell(protocol):
                    assert protocol not in answered
                    assert not servers[protocol].peers
        if answers:
            red.tcp(family.host, 8080, timeout=QUIET)
            assert isinstance(red.failure, ConnectionRefusedError), "it is the host that was asked"
    code = "internal_network" if kind == "internal" else "no_gateway"
    for protocol in PROTOCOLS:
        with cell(protocol):
            body = {"endpoint": "red", "host_port": 8081, "protocol": protocol, "host_ip": family.any}
            refused(lab.api.post("/portmaps", json=body), 409, code, "web")


@accepting
@kinds
def test_row_12_it_closes_and_opens_on_the_live_network(lab, family, cell, kind):
    """Established connections are stopped too, and go on later."""
    red = lab.red()
    lab.publish("red", 8080, target_port=80)
    shut, opened = closing(lab, kind)
    with lab.servers(red, 80), lab.client.connect(family.host, 8080) as connection:
        assert connection.recv(100) == b"red\n"
        passes(lab, cell, True, red)
        lab.patch("networks/web", **shut)
        connection.sendall(b"waits")
        passes(lab, cell, False, red)
        with cell("tcp"):
            assert red.default_route(family.version) is None
            connection.settimeout(0.01)
            with pytest.raises(TimeoutError):
                connection.recv(100)
        lab.patch("networks/web", **opened)
        passes(lab, cell, True, red)
        with cell("tcp"):
            connection.settimeout(5)
            assert connection.recv(100) == b"waits"


def passes(lab, cell, expected, red):
    """Out, and in by the published port."""
    family = lab.family
    lab.check(cell, expected, red, family.server, lab.internet)
    answered = lab.answered(lab.client, family.host, 8080, b"red\n")
    for protocol in PROTOCOLS:
        with cell(protocol):
            assert (protocol in answered) is expected
