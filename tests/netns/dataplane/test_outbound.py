"""Row 3: from an endpoint to the outside."""

import pytest
from cells import PROTOCOLS
from multicast import multicast_router, send, waiting

both_policies = pytest.mark.parametrize(
    ("firewall", "forward_policy"), [("iptables", "ACCEPT"), ("iptables", "DROP"), ("nftables", "ACCEPT")]
)


@both_policies
def test_row_03_outbound_is_masqueraded(lab, family, cell):
    """And what comes back of it passes: answers, and an error about a closed port."""
    red = lab.red()
    comes_from(lab, cell, red, *masqueraded(family))
    for protocol in PROTOCOLS:
        with cell(protocol):
            assert red.ping(family.server)
            assert red.ping(family.client)
    with cell("udp"):
        assert red.udp(family.server, 81) is None
        assert isinstance(red.failure, ConnectionRefusedError)


def test_row_03_masquerade_changes_on_the_live_network(lab, family, cell):
    """A routed network keeps its addresses."""
    red = lab.red(masquerade=False)
    lab.route_back(family.web)
    comes_from(lab, cell, red, family.red)
    for masquerade, sources in ((True, masqueraded(family)), (False, [family.red])):
        lab.patch("networks/web", masquerade=masquerade)
        comes_from(lab, cell, red, *sources)


def masqueraded(family):
    """Of an interface's IPv6 addresses, which one is the kernel's choice."""
    return [family.host] if family.version == 4 else [family.host, family.host_second]


def comes_from(lab, cell, place, *sources):
    with lab.servers(lab.internet) as servers:
        for protocol in PROTOCOLS:
            with cell(protocol):
                assert place.ask(protocol, lab.family.server, 80) == b"internet\n", place.failure
                assert servers[protocol].last_peer in sources


def test_row_03_the_hosts_own_traffic_from_a_networks_address(lab, family, cell):
    """It leaves like the network's; an address of the uplink stays as it is."""
    lab.red()
    with lab.servers(lab.internet) as servers:
        uplink = [(one, [one]) for one in (family.host, family.host_second)]
        for source, seen in ((family.web_gateway, masqueraded(family)), *uplink):
            with cell("tcp"):
                assert lab.host.tcp(family.server, 80, source=source) == b"internet\n"
                assert servers["tcp"].last_peer in seen


@pytest.mark.parametrize("bridge_nf", [True])  # else bridged packets are not even looked at
def test_row_03_no_masquerade_inside_the_subnet(lab, family, cell):
    red, blue = lab.web()
    with lab.servers(blue) as servers:
        for protocol in PROTOCOLS:
            with cell(protocol):
                assert red.ask(protocol, family.blue, 80) == b"blue\n"
                assert servers[protocol].last_peer == family.red
    with cell("udp"), waiting(blue, "eth0", family.version) as receiver:
        send(red, "eth0", family.red)
        assert receiver() == family.red


def test_row_03_multicast_is_never_masqueraded(lab, family, cell):
    """Of an endpoint, routed by the host, and of the host itself with the bridge's address."""
    red = lab.red()
    with (
        cell("udp"),
        waiting(lab.internet, "wan0", family.version) as receiver,
        multicast_router(lab.host, "web", "eth0", family.red),
    ):
        send(red, "eth0", family.red)
        assert receiver() == family.red
        send(lab.host, "eth0", family.web_gateway)
        assert receiver() == family.web_gateway
