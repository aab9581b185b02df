"""One namespace on two networks or three: whose default route it has, and that every published port answers."""

from contextlib import ExitStack

import pytest
from cells import PROTOCOLS
from lab import IPV4, IPV6, together
from world import QUIET

from app.sandbox import snapshot

STRICT = {f"net/ipv4/conf/{scope}/rp_filter": 1 for scope in ("all", "default")}
PORTS = {"one": 8081, "two": 8082}
"""Host ports, by endpoint."""


@pytest.fixture
def rp_filter():
    return 1


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


@pytest.mark.parametrize(("bridge_nf", "rp_filter", "isolated"), [(False, 0, True), (False, 1, False), (True, 2, True)])
def test_every_endpoints_ports_answer_everybody(lab, red, family, isolated):
    """Wherever the default route is, and once it has moved."""
    blue, green = both(lab, isolated=isolated)
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


def test_two_endpoints_on_one_network(lab, red, family):
    lab.network("web")
    lab.endpoint("red", name="one")
    lab.endpoint("red", name="two", **addresses(IPV4.web, IPV6.web, lab, 7))
    blue = lab.endpoint("blue")
    publish(lab)
    check_ports(lab, red, [lab.client, lab.host, blue, red])
    lab.delete("endpoints/one?force=true")
    assert red.default_route(family.version) == (family.web_gateway, "eth1")
    with lab.servers(red, 8082):
        for asker in (lab.client, lab.host, blue, red):
            for protocol in PROTOCOLS:
                assert asker.ask(protocol, family.host, 8082) == b"red\n", f"{asker.name} by {protocol}"


# --- directly


@pytest.mark.parametrize("bridge_nf", [False, True])
def test_open_networks_reach_it_by_either_address(lab, red, family, bridge_nf):
    """It answers past the host: conntrack there sees half a connection, which is no stray. Isolated ones do not."""
    blue, green = both(lab, isolated=False)
    by_lan = addresses(IPV4.lan, IPV6.lan, lab)[f"address{family.suffix}"]
    ways = {(asker, address) for asker in (blue, green) for address in (family.red, by_lan)}
    assert {way for way in ways if not all(lab.reached(way[0], way[1], red).values())} == set()
    lab.patch("networks/web", isolated=True)
    apart = {(blue, by_lan), (green, family.red)}
    assert {way for way in ways if not any(lab.reached(way[0], way[1], red).values())} == apart


# --- the default route


def test_the_default_route_follows_what_is_asked_and_what_is_there(lab, red, family):
    """The oldest on a network with a gateway, unless another one asks for it; the internet answers all along."""
    both(lab)
    by_one, by_two = gateways(family)
    gateway, off = f"gateway{family.suffix}", {"default_route": False}
    for path, change, wanted in (
        ("endpoints/two", {"default_route": True}, by_two),
        ("endpoints/one", {"default_route": True}, by_one),
        ("endpoints/one", {"default_route": None}, by_two),
        ("endpoints/two", {"default_route": None}, by_one),
        ("networks/web", {"internal": True}, by_two),
        ("networks/web", {"internal": False}, by_one),
        ("networks/web", {gateway: None}, by_two),
        ("networks/web", {gateway: by_one[0]}, by_one),
        ("endpoints/one", off, by_two),
        ("endpoints/two", off, None),
        ("endpoints/one", {"default_route": None}, by_one),
    ):
        lab.patch(path, **change)
        assert red.default_route(family.version) == wanted, (path, change)
        assert red.ping(family.server, timeout=QUIET) is (wanted is not None), (path, change)


def test_what_goes_leaves_the_rest_working(lab, red, family):
    """The default route goes on to the next of three, and every port that is left answers."""
    both(lab)
    lab.network("third", subnet="192.168.17.0/24", **lab.only6(subnet6="fd00:17::/64"))
    lab.endpoint("red", "third", name="three", **addresses("192.168.17.0/24", "fd00:17::/64", lab), default_route=True)
    publish(lab)
    asked = lab.client, lab.host, red
    check_ports(lab, red, asked)
    lab.delete("endpoints/three")
    by_one, by_two = gateways(family)
    assert red.default_route(family.version) == by_one
    check_ports(lab, red, asked)
    lab.delete("endpoints/one?force=true")
    assert red.default_route(family.version) == by_two
    with lab.servers(red, 8082):
        for asker in asked:
            for protocol in PROTOCOLS:
                assert asker.ask(protocol, family.host, 8082) == b"red\n", f"{asker.name} by {protocol}"


def test_an_internal_network_beside_changes_nothing(lab, red, family):
    """Its endpoint is the oldest, and has neither the default route nor a port."""
    lab.network("lan", internal=True)
    lab.endpoint("red", "lan", name="two", **addresses(IPV4.lan, IPV6.lan, lab))
    green = lab.endpoint("green", "lan", **addresses(IPV4.lan, IPV6.lan, lab, 3))
    lab.network("web")
    lab.endpoint("red", name="one")
    blue = lab.endpoint("blue")
    lab.publish("one", 8081, target_port=80)
    assert red.default_route(family.version) == (family.web_gateway, "eth1")
    with lab.servers(red, 80):
        for asker in (lab.client, lab.host, blue, red):
            for protocol in PROTOCOLS:
                assert asker.ask(protocol, family.host, 8081) == b"red\n", f"{asker.name} by {protocol}"
        assert lab.answered(green, family.host, 8081, b"red\n") == set()
        assert green.tcp(addresses(IPV4.lan, IPV6.lan, lab)[f"address{family.suffix}"], 80) == b"red\n"
    lab.patch("networks/lan", internal=False)
    assert red.default_route(family.version) == (family.lan_gateway, "eth0")
    assert red.ping(family.server)
    lab.publish("two", 8082)
    with lab.servers(red, 8082):
        for protocol in PROTOCOLS:
            assert lab.client.ask(protocol, family.host, 8082) == b"red\n"


# --- the bridges' filter


@pytest.mark.parametrize("family", [IPV4], ids=str)
@pytest.mark.parametrize("firewall", ["nftables"])
@pytest.mark.parametrize("rp_filter", [0, 1, 2])
def test_the_bridges_filter_is_loose_while_they_share_a_namespace(lab, red, family, rp_filter):
    both(lab)
    lab.network("third")
    lab.endpoint("third", "third")
    loose = "2" if rp_filter == 1 else str(rp_filter)
    assert filters(lab) == {"web": loose, "lan": loose, "third": str(rp_filter)}
    lab.endpoint("red", "third", name="three", address=None)
    assert filters(lab) == dict.fromkeys(("web", "lan", "third"), loose)
    lab.delete("endpoints/one")
    assert filters(lab) == {"web": str(rp_filter), "lan": loose, "third": loose}
    lab.delete("endpoints/two")
    assert filters(lab) == dict.fromkeys(("web", "lan", "third"), str(rp_filter))


def filters(lab):
    return {name: lab.host.sysctl(f"net/ipv4/conf/{name}/rp_filter") for name in ("web", "lan", "third")}


def test_a_restart_changes_no_rule(lab, red, daemon, family):
    both(lab)
    publish(lab)
    before = snapshot(lab.sandbox)
    daemon.restart()
    assert before.difference(snapshot(lab.sandbox)) == ""
    check_ports(lab, red, [lab.client, red])
