"""One namespace on two networks or three: whose default route it has, and that every published port answers."""

from contextlib import ExitStack

import pytest
from cells import PROTOCOLS
from lab import IPV4, IPV6, together
from world import QUIET, get

STRICT = {f"net/ipv4/conf/{scope}/rp_filter": 1 for scope in ("all", "default")}
PORTS = {"one": 8081, "two": 8082}
"""Host ports, by endpoint."""


@pytest.fixture
def red(lab, baseline, daemon):
    """A namespace of somebody else's that filters strictly by reverse path."""
    place = lab.sandbox.add_netns("red")
    for path, value in STRICT.items():
        place.write_sysctl(path, value)
    baseline.take()
    return place


def both(lab, **fields):
    """Red's endpoints: one on web, two on lan; blue beside one, green beside two."""
    lab.network("web", **fields)
    lab.network("lan", **fields)
    lab.endpoint("red", name="one")
    lab.endpoint("red", "lan", name="two", **addresses(IPV4.lan, IPV6.lan, lab))
    return lab.endpoint("blue"), lab.endpoint("green", "lan", **addresses(IPV4.lan, IPV6.lan, lab, 3))


def addresses(subnet, subnet6, lab, number=2):
    """That a family's names say for red on web, on another network."""
    found = {"address": subnet.replace("0/24", str(number))}
    return found | lab.only6(address6=subnet6.replace("/64", str(number)))


def publish(lab):
    for endpoint, port in PORTS.items():
        lab.publish(endpoint, port, target_port=port)


def check_ports(lab, red, askers):
    """Every port by every protocol, for everybody at once."""
    family = lab.family
    with ExitStack() as stack:
        for port in PORTS.values():
            stack.enter_context(lab.servers(red, port))
        questions = {
            (asker.name, address, port, protocol): asking(asker, protocol, address, port)
            for asker, address in [(asker, family.host) for asker in askers] + loopback(lab)
            for port in PORTS.values()
            for protocol in PROTOCOLS
        }
        found = together(questions)
    failed = {question for question, answer in found.items() if answer != b"red\n"}
    assert not failed, sorted(failed)


def asking(asker, protocol, address, port):
    return lambda: asker.ask(protocol, address, port, timeout=0.5)


def loopback(lab):
    return [(lab.host, "127.0.0.1")] if lab.family is IPV4 else []


def gateways(family):
    return (family.web_gateway, "eth0"), (family.lan_gateway, "eth1")


@pytest.mark.parametrize(("bridge_nf", "rp_filter"), [(False, 0), (False, 1), (True, 1), (True, 2)])
def test_every_endpoints_ports_answer_everybody(lab, red, family):
    """Wherever the default route is, and while it moves."""
    blue, green = both(lab)
    third = lab.network("third", subnet6="auto" if family is IPV6 else None) and lab.endpoint("third", "third")
    publish(lab)
    by_one, by_two = gateways(family)
    everybody = (lab.client, lab.host, third, blue, green, red)
    assert red.default_route(family.version) == by_one
    check_ports(lab, red, everybody)
    lab.patch("endpoints/two", default_route=True)
    assert red.default_route(family.version) == by_two
    check_ports(lab, red, everybody)
    assert red.ping(family.server)
