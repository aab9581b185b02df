"""Rows 7 and 10: what the host is asked to forward by others, to our endpoints' own addresses and to foreign ones."""

import pytest
from cells import PROTOCOLS
from test_outbound import both_policies

accepting = pytest.mark.parametrize("forward_policy", ["ACCEPT"])  # the host forwards for others too


@both_policies
def test_row_07_endpoints_own_addresses_are_closed_to_the_outside(lab, family, cell):
    """Published or not, isolated or not, unless the network is routed; each change on the live network."""
    red = lab.red()
    green = lab.green(masquerade=False)
    lab.route_back(family.web, family.lan)
    lab.publish("red", 8080, target_port=80)
    with lab.servers(red) as servers:
        for protocol in PROTOCOLS:
            with cell(protocol):
                assert lab.client.ask(protocol, family.host, 8080) == b"red\n"
                assert servers[protocol].last_peer == family.client
    for outside in (lab.client, lab.internet):
        lab.check(cell, False, outside, family.red, red)
        lab.check(cell, True, outside, family.green, green)
    lab.check(cell, False, lab.client, family.red, red, 8080)
    lab.patch("networks/web", isolated=False)
    lab.check(cell, False, lab.client, family.red, red)
    lab.patch("networks/web", masquerade=False)
    lab.check(cell, True, lab.client, family.red, red)
    lab.patch("networks/web", masquerade=True)
    lab.check(cell, False, lab.client, family.red, red)


# --- 10


@pytest.fixture
def inner(lab, baseline):
    """A machine behind the host that is not the daemon's: its namespace, address and subnet."""
    version = lab.family.version
    subnet, near, far = {
        4: ("10.9.0.0/24", "10.9.0.1", "10.9.0.2"),
        6: ("2001:db8:9::/64", "2001:db8:9::1", "2001:db8:9::2"),
    }[version]
    made, bits = lab.sandbox.add_netns("inner"), subnet.rpartition("/")[2]
    lab.host.add_veth("v-inner", "eth0", made)
    lab.host.exec(["ip", "address", "add", f"{near}/{bits}", "dev", "v-inner", *lab.nodad])
    made.exec(["ip", "address", "add", f"{far}/{bits}", "dev", "eth0", *lab.nodad])
    lab.route(made, "default", near)
    lab.route_back(subnet)
    baseline.take()
    return made, near, far


@accepting
def test_row_10_transit_is_untouched(lab, inner, family, cell):
    """To a foreign address with a published port's number, and from one: no DNAT, no masquerade."""
    place, near, far = inner
    red = lab.red()
    lab.publish("red", 8080, target_port=80)
    with lab.servers(place, 8080) as inside, lab.servers(lab.internet, 8080) as outside, lab.servers(red):
        for protocol in PROTOCOLS:
            with cell(protocol):
                assert lab.client.ask(protocol, far, 8080) == b"inner\n"
                assert inside[protocol].last_peer == family.client
                assert place.ask(protocol, family.server, 8080) == b"internet\n"
                assert outside[protocol].last_peer == far
                for asker, address in ((lab.client, family.host), (place, family.host), (place, near)):
                    assert asker.ask(protocol, address, 8080) == b"red\n", f"{asker} to {address}"


@accepting
@pytest.mark.parametrize("bridge_nf", [False, True])
def test_row_10_foreign_servers_with_the_same_port_are_reached(lab, family, cell):
    """By endpoints and the host itself; foreign is a neighbour's own address, too."""
    red, blue = lab.web()
    green = lab.green(masquerade=False)
    lab.publish("red", 8080, target_port=80)
    lab.route_back(family.lan)
    with lab.servers(lab.internet, 8080), lab.servers(red), lab.servers(blue, 8080), lab.servers(green, 8080):
        for protocol in PROTOCOLS:
            with cell(protocol):
                for place in (red, blue, green, lab.host):
                    assert place.ask(protocol, family.server, 8080) == b"internet\n", place
                assert red.ask(protocol, family.blue, 8080) == b"blue\n"
                assert lab.host.ask(protocol, family.blue, 8080) == b"blue\n"
                assert lab.client.ask(protocol, family.green, 8080) == b"green\n"
