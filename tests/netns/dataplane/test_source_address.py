"""snat_address: a fixed source for what leaves a network."""

import pytest
from cells import PROTOCOLS
from lab import IPV4, IPV6
from world import get, refused


def others(family):
    """An address of the host that masquerading does not take, and what that takes."""
    return (family.host_second, family.host) if family.version == 4 else (family.host, family.host_second)


def leaves_by(lab, place, family=None):
    """By which address each protocol comes to the internet."""
    family = family or lab.family
    found = {}
    for protocol in PROTOCOLS:
        with lab.internet.server(protocol, 80, family.any) as server:
            assert place.ask(protocol, family.server, 80) == b"internet\n", f"{protocol}: {place.failure}"
            found[protocol] = server.last_peer
    assert len(set(found.values())) == 1, found
    return found["tcp"]


def test_a_fixed_source_comes_and_goes_on_the_live_network(lab, family):
    """Of its own IP version and network only."""
    fixed, usual = others(family)
    red, green = lab.red(snat_address=fixed), lab.green()
    assert leaves_by(lab, red) == fixed
    assert leaves_by(lab, green) == usual
    if family is IPV6:
        assert leaves_by(lab, red, IPV4) == IPV4.host
    blue = lab.endpoint("blue")
    lab.patch("networks/web", snat_address=None)
    assert leaves_by(lab, red) == leaves_by(lab, blue) == usual
    lab.patch("networks/web", snat_address=fixed)
    assert leaves_by(lab, red) == leaves_by(lab, blue) == fixed
    lab.patch("networks/web", snat_address=usual)
    assert leaves_by(lab, red) == usual
    lab.patch("networks/web", snat_address=None, masquerade=False)
    lab.route_back(family.web)
    assert leaves_by(lab, red) == family.red


@pytest.mark.parametrize("family", [IPV6], ids=str)
def test_of_a_dual_stack_network_one_version_is_fixed(lab, family):
    red = lab.red(snat_address=IPV4.host_second)
    assert leaves_by(lab, red, IPV4) == IPV4.host_second
    assert leaves_by(lab, red) == IPV6.host_second
    lab.patch("networks/web", snat_address=IPV6.host)
    assert leaves_by(lab, red, IPV4) == IPV4.host
    assert leaves_by(lab, red) == IPV6.host


@pytest.mark.parametrize(("bridge_nf", "rp_filter"), [(False, 1), (True, 1)])
def test_published_ports_and_neighbours_know_nothing_of_it(lab, family):
    fixed, _usual = others(family)
    red, blue = lab.web(snat_address=fixed, isolated=False)
    green = lab.green(isolated=False)
    lab.publish("red", 8080, target_port=80)
    with lab.servers(red, 80) as servers:
        for protocol in PROTOCOLS:
            for asker, address, seen in (
                (lab.client, family.host, family.client),
                (lab.client, fixed, family.client),
                (lab.host, family.host, family.web_gateway),
                (green, family.host, family.green),
                (green, family.red, family.green),
                (blue, family.red, family.blue),
                (blue, family.host, None),
                (red, family.host, None),
            ):
                port = 80 if address == family.red else 8080
                answer = asker.ask(protocol, address, port)
                assert answer == b"red\n", f"{asker.name} by {protocol} to {address}: {asker.failure}"
                assert seen in (None, servers[protocol].last_peer), f"{asker.name} by {protocol} to {address}"
                assert servers[protocol].last_peer != fixed, f"{asker.name} by {protocol} to {address}"
        with lab.servers(green, 80) as hers:
            for protocol in PROTOCOLS:
                assert red.ask(protocol, family.green, 80) == b"green\n"
                assert hers[protocol].last_peer == family.red


def test_what_cannot_be_a_source_is_refused_and_changes_nothing(lab, family):
    fixed, usual = others(family)
    red = lab.red(snat_address=fixed)
    before = get(lab.api, "networks/web")
    for wrong, word in (
        (family.server, family.server),
        (family.red, family.red),
        (family.any, family.any),
        (family.loopback, family.loopback),
        ("224.0.0.1" if family is IPV4 else "ff02::1", "address of this host"),
        ("nonsense", "nonsense"),
    ):
        refused(lab.api.patch("/networks/web", json={"snat_address": wrong}), 422, "invalid", word)
        body = {"name": "other", "subnet6": "auto", "snat_address": wrong}
        refused(lab.api.post("/networks", json=body), 422, "invalid", word)
    refused(lab.api.patch("/networks/web", json={"masquerade": False}), 422, "invalid", "masquerade")
    lab.network("lan", subnet6=None)
    refused(lab.api.patch("/networks/lan", json={"snat_address": "2001:db8:1::2"}), 422, "invalid", "IPv6")
    assert get(lab.api, "networks/web")["snat_address"] == before["snat_address"]
    assert leaves_by(lab, red) == fixed != usual
