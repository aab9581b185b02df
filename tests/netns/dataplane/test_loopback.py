"""Row 9: what is addressed to the loopback and comes by another interface. Hand-made: no kernel would send it."""

import pytest
from arrivals import Arrivals, Injector, is_dropped
from cells import PROTOCOLS

LOOPBACKS = {4: ("127.0.0.1", "127.0.0.2"), 6: ("::1",)}
PUBLISHED, ON_LOOPBACK, UNPUBLISHED = 5000, 5001, 5002


@pytest.fixture
def red(lab, family, baseline):
    """With ports for all addresses, and for the loopback; these for another address too, for the control."""
    if family.version == 4:
        lab.host.write_sysctl("net/ipv4/conf/eth0/route_localnet", 1)  # somebody else's mistake
        baseline.take()
    made = lab.red()
    lab.publish("red", PUBLISHED)
    for address in (family.loopback, family.host):
        lab.publish("red", ON_LOOPBACK, host_ip=address)
    return made


def test_row_09_loopback_from_the_wire_is_dropped(lab, red, family, cell):
    """Published or not. Of IPv6, the kernel itself sees to it."""
    mac = lab.host.links()["eth0"].mac
    with Injector(lab.internet, "wan0", mac) as injector, Arrivals(family.version, red, lab.host) as arrivals:
        dropped(lab, cell, arrivals, injector, family.server, family.host)


@pytest.mark.parametrize("bridge_nf", [False, True])
def test_row_09_loopback_from_an_endpoint_is_dropped(lab, red, family, cell):
    """CVE-2020-8558: the bridge has route_localnet. br_netfilter would DNAT what is for a neighbour, too."""
    blue, green = lab.endpoint("blue"), lab.green()
    if family.version == 4:
        assert lab.host.sysctl("net/ipv4/conf/web/route_localnet") == "1"
    bridges = {name: lab.host.links()[name].mac for name in ("web", "lan")}
    with Arrivals(family.version, red, lab.host) as arrivals:
        for place, source, mac, control in (
            (blue, family.blue, bridges["web"], family.host),
            (green, family.green, bridges["lan"], family.host),
            (blue, family.blue, red.links()["eth0"].mac, family.red),
        ):
            with Injector(place, "eth0", mac) as injector:
                dropped(lab, cell, arrivals, injector, source, control)


def dropped(lab, cell, arrivals, injector, source, control):
    for destination in LOOPBACKS[lab.family.version]:
        for port in (PUBLISHED, ON_LOOPBACK, UNPUBLISHED):
            for protocol in PROTOCOLS:
                with cell(protocol):
                    words = f"{protocol} {port} of {destination} from {source}"
                    assert is_dropped(arrivals, injector, protocol, source, destination, port, control), words
