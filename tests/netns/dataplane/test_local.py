"""Row 8: local processes and published ports."""

import pytest
from cells import PROTOCOLS
from lab import IPV6
from test_published import every_way

LOOPBACKS = {4: ("127.0.0.1", "127.0.0.2"), 6: ()}
"""What works whatever the host's settings are; ::1 has a test of its own."""


@every_way
def test_row_08_local_process_by_any_host_address(lab, family, cell):
    """Loopback too, published for all addresses or for that one alone."""
    lab.green()
    red = lab.red()
    lab.publish("red", 8080, target_port=80)
    lab.publish("red", 8081, target_port=80, host_ip=family.loopback)
    lab.publish("red", 8082, target_port=80, host_ip=family.host_second)
    addresses = (family.host, family.host_second, family.web_gateway, family.lan_gateway)
    asked = [(one, 8080) for one in (*LOOPBACKS[family.version], *addresses)]
    asked += [(one, 8081) for one in LOOPBACKS[family.version][:1]] + [(family.host_second, 8082)]
    with lab.servers(red) as servers:
        for address, port in asked:
            masqueraded(lab, cell, servers, address, port)


def masqueraded(lab, cell, servers, address, port):
    for protocol in PROTOCOLS:
        with cell(protocol):
            assert lab.host.ask(protocol, address, port) == b"red\n", f"{protocol} to {address}: {lab.host.failure}"
            assert servers[protocol].last_peer == lab.family.web_gateway


@pytest.mark.parametrize("family", [IPV6], ids=str)
@pytest.mark.parametrize(("bridge_nf", "rp_filter"), [(False, 0), (False, 1)])
def test_row_08_local_process_by_the_ipv6_loopback(lab, family, cell):
    """Not with bridge-nf-call-ip6tables=1, where the kernel itself drops the answer.

    br_netfilter gives it the destination ::1 back before the kernel looks at it, and the kernel takes nothing for
    ::1 that did not come by lo. It has no setting for that, as IPv4 has route_localnet.
    """
    red = lab.red()
    lab.publish("red", 8080, target_port=80)
    lab.publish("red", 8081, target_port=80, host_ip="::1")
    with lab.servers(red) as servers:
        for port in (8080, 8081):
            masqueraded(lab, cell, servers, "::1", port)


@pytest.mark.parametrize("bridge_nf", [False])  # for ::1, see above
def test_row_08_published_on_loopback_is_for_this_host_alone(lab, family, cell):
    """And only while it is published."""
    red, blue = lab.web()
    mappings = lab.publish("red", 8080, target_port=80, host_ip=family.loopback)
    other = lab.green()
    lab.publish("green", 8081, target_port=80, host_ip=family.loopback)
    with lab.servers(red) as servers, lab.servers(other):
        for protocol in PROTOCOLS:
            with cell(protocol):
                assert lab.host.ask(protocol, family.loopback, 8080) == b"red\n"
        servers.forget()
        for place, address in (
            (lab.client, family.host),
            (lab.internet, family.host_second),
            (red, family.web_gateway),
            (blue, family.web_gateway),
            (blue, family.host),
            (lab.host, family.host),
        ):
            closed(lab, cell, place, address, servers)
        for mapping in mappings.values():
            lab.delete(f"portmaps/{mapping['id']}")
        closed(lab, cell, lab.host, family.loopback, servers)
        for protocol in PROTOCOLS:
            with cell(protocol):
                assert lab.host.ask(protocol, family.loopback, 8081) == b"green\n"


def closed(lab, cell, place, address, servers):
    answered = lab.answered(place, address, 8080, b"red\n")
    for protocol in PROTOCOLS:
        with cell(protocol):
            assert protocol not in answered, f"{place} to {address}"
            assert not servers[protocol].peers, f"{place} to {address}"
