"""Both IP versions on one network: gateways, ports of either version, neighbours that learn at once."""

from contextlib import ExitStack, contextmanager
from ipaddress import ip_address, ip_network

import pytest
from cells import PROTOCOLS
from lab import IPV4, IPV6
from world import QUIET, get, refused

dual = pytest.mark.parametrize("family", [IPV6], ids=str)
V4, V6 = IPV4, IPV6


def default_routes(place):
    return tuple(place.default_route(version) for version in (4, 6))


@dual
def test_auto_is_a_prefix_of_its_own_and_works_at_once(lab, family):
    """No endpoint waits for its IPv6 address: host, neighbours and internet know it at the first try."""
    web = lab.network("web", subnet6="auto")
    subnet6 = ip_network(web["subnet6"])
    assert subnet6.prefixlen == 64
    assert subnet6.subnet_of(ip_network("fd00::/8"))
    assert web["gateway6"] == str(subnet6[1])
    assert web["ip_range6"] in (str(subnet6), None)
    before = lab.host
    with lab.internet.tcp_server(80, "::"):
        for name in ("one", "two", "three"):
            made = lab.endpoint(name)
            address6 = get(lab.api, f"endpoints/{name}")["address6"]
            assert ip_address(address6) in subnet6
            with made.udp_server(80, "::"):
                assert before.udp(address6, 80, b"", timeout=0.1) == made.banner, name
            assert made.tcp(V6.server, 80, 0.1) == b"internet\n", name
            assert made.ping(web["gateway6"], timeout=0.1)
            before = made
    other = lab.network("other", subnet6="auto")
    assert not ip_network(other["subnet6"]).overlaps(subnet6)


@dual
def test_a_gateway6_comes_moves_and_goes_on_the_live_network(lab, family):
    """IPv4 goes on as if nothing were."""
    red, blue = lab.web(gateway6=None)
    by_v4 = (V4.web_gateway, "eth0")
    reach(lab, red, blue, None)
    for gateway6 in ("fd00:15::9", "fd00:15::a", None, V6.web_gateway):
        web = lab.patch("networks/web", gateway6=gateway6)
        assert web["gateway6"] == gateway6
        assert default_routes(red) == (by_v4, gateway6 and (gateway6, "eth0"))
        reach(lab, red, blue, gateway6)


def reach(lab, red, blue, gateway6):
    assert red.ping(V6.blue, timeout=0.3)
    assert red.ping(V6.server, timeout=0.3 if gateway6 else QUIET) is (gateway6 is not None)
    assert lab.host.ping(V6.red, timeout=0.3 if gateway6 else QUIET) is (gateway6 is not None)
    assert blue.ping(V4.server, timeout=0.3)
    if gateway6:
        assert red.ping(gateway6, timeout=0.3)


@dual
def test_a_port_waits_for_a_gateway6(lab, family):
    """It stays reserved where nothing can be forwarded to it, and says so."""
    red = lab.red()
    mappings = lab.publish("red", 8080, target_port=80)
    lab.patch("networks/web", gateway6=None)
    with lab.servers(red, 80) as servers:
        assert lab.answered(lab.client, V6.host, 8080, b"red\n") == set()
        assert not any(servers[protocol].peers for protocol in PROTOCOLS)
        status = get(lab.api, f"portmaps/{mappings['tcp']['id']}")["status"]
        assert status["state"] == "degraded"
        assert "IPv6 gateway" in status["message"]
        body = {"endpoint": "red", "host_port": 9090, "host_ip": "::"}
        refused(lab.api.post("/portmaps", json=body), 409, "no_gateway", "IPv6")
        lab.patch("networks/web", gateway6=V6.web_gateway)
        for protocol in PROTOCOLS:
            assert lab.client.ask(protocol, V6.host, 8080) == b"red\n"
    assert get(lab.api, f"portmaps/{mappings['tcp']['id']}")["status"]["state"] == "ready"


@dual
def test_automatic_addresses_come_from_ip_range6(lab, family):
    lab.network("web", ip_range6="fd00:15::100/120")

    def given(name):
        lab.endpoint(name)
        return ip_address(get(lab.api, f"endpoints/{name}")["address6"])

    assert given("one") in ip_network("fd00:15::100/120")
    lab.patch("networks/web", ip_range6="fd00:15::200/120")
    assert given("two") in ip_network("fd00:15::200/120")
    lab.patch("networks/web", ip_range6=None)
    assert given("later") in ip_network("fd00:15::/64")
    refused(
        lab.api.patch("/networks/web", json={"ip_range6": "fd00:16::/64"}), 422, "address_outside_subnet", "ip_range6"
    )
    assert lab.sandbox.netns("one").ping(get(lab.api, "endpoints/two")["address6"])


@dual
def test_internal_is_so_in_both_versions(lab, family):
    red = lab.red(internal=True)
    green = lab.green(isolated=False)
    assert default_routes(red) == (None, None)
    for version in (V4, V6):
        assert red.ping(version.web_gateway)
        red.exec(["ip", f"-{version.version}", "route", "add", version.server, "via", version.web_gateway])
        assert not red.ping(version.server, timeout=QUIET)
        assert not green.ping(version.red, timeout=QUIET)
    lab.patch("networks/web", internal=False, isolated=False)
    for version in (V4, V6):
        assert red.ping(version.server)
        assert green.ping(version.red)


@dual
def test_one_port_number_is_two_ports(lab, family):
    """`::` is every IPv6 address of the host and no IPv4 one, and the other way round."""
    red, blue = lab.web()
    mappings = lab.publish("red", 8080, target_port=80)
    with lab.servers(red, 80), lab.servers(blue, 80), v4_servers(red), v4_servers(blue):
        for protocol in PROTOCOLS:
            for address in (V6.host, V6.host_second):
                assert lab.client.ask(protocol, address, 8080) == b"red\n"
        assert lab.answered(lab.client, V4.host, 8080, b"red\n") == set()
        theirs = lab.publish("blue", 8080, target_port=80, host_ip="0.0.0.0")
        for protocol in PROTOCOLS:
            for asker in (lab.client, lab.host, blue):
                assert asker.ask(protocol, V6.host, 8080) == b"red\n", f"{asker.name} by {protocol}"
                assert asker.ask(protocol, V4.host, 8080) == b"blue\n", f"{asker.name} by {protocol}"
            lab.delete(f"portmaps/{mappings[protocol]['id']}")
            assert lab.client.ask(protocol, V4.host, 8080) == b"blue\n"
            assert lab.client.ask(protocol, V6.host, 8080, timeout=QUIET) is None
            lab.delete(f"portmaps/{theirs[protocol]['id']}")


@contextmanager
def v4_servers(place):
    with ExitStack() as stack:
        for protocol in PROTOCOLS:
            stack.enter_context(place.server(protocol, 80))
        yield


# --- neighbours learn at once


def test_neighbours_learn_who_has_an_address_now(lab, family):
    """From a cached entry that is fresh, by the first packet: endpoints, host, and what a published port leads to."""
    moved = f"address{family.suffix}"
    address = family.web_gateway.removesuffix("1") + "77"
    lab.network("web")
    blue = lab.endpoint("blue")
    for name in ("one", "two", "one"):
        place = lab.endpoint(name, **{moved: address})
        lab.portmap(name, 8080, target_port=80)
        mac = get(lab.api, f"endpoints/{name}")["mac"]
        for peer in (blue, lab.host):
            assert peer.ping(address, timeout=0.2), f"{peer.name} to {name}"
            assert mac in peer.exec(["ip", "neighbour", "show", address]).stdout, f"{peer.name} of {name}"
        with place.tcp_server(80, family.any):
            assert lab.client.tcp(family.host, 8080, 0.2) == place.banner
        lab.delete(f"endpoints/{name}?force=true")


def test_neighbours_learn_that_the_gateway_took_an_address(lab, family):
    lab.network("web")
    blue = lab.endpoint("blue")
    address, gateway = family.web_gateway.removesuffix("1") + "77", f"gateway{family.suffix}"
    for _again in range(2):
        lab.endpoint("one", **{f"address{family.suffix}": address})
        assert blue.ping(address, timeout=0.2)
        lab.delete("endpoints/one")
        lab.patch("networks/web", **{gateway: address})
        assert blue.ping(address, timeout=0.2)
        assert blue.ping(family.server, timeout=0.2)
        lab.patch("networks/web", **{gateway: family.web_gateway})
        assert blue.ping(family.server, timeout=0.2)
