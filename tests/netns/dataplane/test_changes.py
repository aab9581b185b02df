"""Row 13: what becomes of flows and connections while their mapping, or their network, changes."""

import socket
from contextlib import ExitStack, contextmanager

from cells import PROTOCOLS
from lab import together
from world import QUIET

from app.kernel.conntrack import Conntrack

FLOWING = ("udp", "sctp")
NUMBERS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "sctp": 132}
SPORT = 40001


class Flows:
    """UDP and SCTP flows with fixed source ports, to one port of each address, and TCP connections."""

    def __init__(self, lab, cell, stack, ways, port):
        self._lab, self._cell, self._stack, self._ways, self._port = lab, cell, stack, ways, port
        self._connections = []
        self._flows = {
            (protocol, place.name, address): stack.enter_context(place.flow(protocol, address, port, sport))
            for protocol in FLOWING
            for sport, (place, address) in enumerate(ways, SPORT + 10 * (port % 10))
        }

    def connect(self, banner):
        """One TCP connection each way."""
        with self._cell("tcp"):
            for place, address in self._ways:
                connection = self._stack.enter_context(place.connect(address, self._port))
                assert connection.recv(100) == banner
                self._connections.append((f"{place.name} to {address}", connection))

    def live_on(self, change):
        with self._cell("tcp"):
            for way, connection in self._connections:
                echo(connection, f"{way}, {change}")

    def are_answered(self, banner, change, protocols=PROTOCOLS):
        """By that banner, or not at all where it is None. By TCP a new connection is."""
        timeout = 1.0 if banner else QUIET
        works = {key: lambda flow=flow: flow.ask(b"?", timeout) for key, flow in self._flows.items()}
        for place, address in self._ways if "tcp" in protocols else ():
            works["tcp", place.name, address] = lambda one=place, to=address: one.tcp(to, self._port, timeout)
        told = together({key: work for key, work in works.items() if key[0] in protocols})
        for protocol in protocols:
            expected = banner + b"?" if banner and protocol != "tcp" else banner
            wrong = {way: answer for way, answer in told.items() if way[0] == protocol and answer != expected}
            with self._cell(protocol):
                assert not wrong, f"{change}: not {expected}"


def echo(connection, why=""):
    connection.sendall(b"still here")
    assert connection.recv(100) == b"still here", why


def ways(lab, red, blue, green):
    """From outside, from each kind of inside, from the host itself."""
    family = lab.family
    loopback = [(lab.host, family.loopback)] if family.version == 4 else []  # ::1 does not leave lo
    return [
        *loopback,
        (lab.client, family.host),
        (red, family.web_gateway),
        (blue, family.web_gateway),
        (green, family.lan_gateway),
        (green, family.host),
        (lab.host, family.host),
    ]


def change_all(lab, mappings, **fields):
    for mapping in mappings.values():
        lab.patch(f"portmaps/{mapping['id']}", **fields)


def delete_all(lab, mappings):
    for mapping in mappings.values():
        lab.delete(f"portmaps/{mapping['id']}")


def test_row_13_flows_follow_their_mapping_and_connections_live_on(lab, family, cell):
    red, blue = lab.web()
    inside = ways(lab, red, blue, lab.green())
    lab.portmap("red", 9999)  # red's bridge port keeps its hairpin, the bridge its route_localnet
    with lab.servers(red, 80), lab.servers(blue, 80), lab.servers(red, 81, banner=b"81\n"), ExitStack() as stack:
        first, second = (Flows(lab, cell, stack, inside, port) for port in (8080, 8081))
        for flows in (first, second):
            flows.are_answered(None, "before", FLOWING)
        mappings = lab.publish("red", 8080, target_port=80)
        first.are_answered(b"red\n", "added", FLOWING)
        first.connect(b"red\n")
        for change, flows, banner in (
            ({"endpoint": "blue"}, first, b"blue\n"),
            ({"endpoint": "red", "target_port": 81}, first, b"81\n"),
            ({"host_port": 8081}, second, b"81\n"),
            ({"host_port": 8080, "target_port": 80}, first, b"red\n"),
        ):
            change_all(lab, mappings, **change)
            flows.are_answered(banner, change)
            first.live_on(change)
            if "host_port" in change:
                (first if flows is second else second).are_answered(None, change)
        delete_all(lab, mappings)
        first.are_answered(None, "deleted")
        first.live_on("deleted")


def test_row_13_flows_follow_a_range(lab, family, cell):
    red, blue = lab.web()
    outside = [(lab.client, family.host), (lab.host, family.host)]
    with (
        lab.servers(red, 9000),
        lab.servers(red, 9003, banner=b"third\n"),
        lab.servers(red, 9101, banner=b"moved\n"),
        lab.servers(blue, 9000),
        lab.servers(blue, 9003),
        ExitStack() as stack,
    ):
        first, last = (Flows(lab, cell, stack, outside, port) for port in (8000, 8003))
        for flows in (first, last):
            flows.are_answered(None, "before", FLOWING)
        mappings = lab.publish("red", "8000-8003", target_port=9000)
        first.are_answered(b"red\n", "added", FLOWING)
        last.are_answered(b"third\n", "added", FLOWING)
        last.connect(b"third\n")
        change_all(lab, mappings, endpoint="blue")
        for flows in (first, last):
            flows.are_answered(b"blue\n", "to blue")
        change_all(lab, mappings, endpoint="red", host_port="8002-8005", target_port=9100)
        last.are_answered(b"moved\n", "moved")
        first.are_answered(None, "moved")
        delete_all(lab, mappings)
        last.are_answered(None, "deleted")
        last.live_on("all of them")


@contextmanager
def unchanged(lab, cell, count):
    """conntrack's entries of that many destinations, by protocol, are the same ones before and after."""
    before = entries(lab)
    for protocol in PROTOCOLS:
        assert len(before[protocol]) == count
    yield
    after = entries(lab)
    for protocol in PROTOCOLS:
        with cell(protocol):
            assert {one: after[protocol].get(one) for one in before[protocol]} == before[protocol]


def entries(lab):
    """The identity of each entry, by protocol and by the address and port that were asked."""
    kind = socket.AF_INET if lab.family.version == 4 else socket.AF_INET6

    def read():
        with Conntrack() as table:
            return {
                protocol: {(flow.destination, flow.port): flow.key for flow in table.flows(kind, number)}
                for protocol, number in NUMBERS.items()
            }

    return lab.host.run(read)


def test_row_13_flows_of_other_ports_and_addresses_are_left_alone(lab, family, cell):
    """Of another mapping, of the same port on another address, of the same port on a foreign address."""
    red, _blue = lab.web()
    lab.publish("red", 5353, target_port=53)
    lab.publish("red", 5354, target_port=53, host_ip=family.host_second)
    asked = ((lab.client, family.host, 5353), (lab.client, family.host_second, 5354), (red, family.server, 5354))
    with lab.servers(red, 53), lab.servers(lab.internet, 5354), ExitStack() as stack:
        for sport, (place, address, port) in enumerate(asked, SPORT):
            for protocol in FLOWING:
                flow = stack.enter_context(place.flow(protocol, address, port, sport))
                assert flow.ask(b"?")
            stack.enter_context(place.connect(address, port))
        with unchanged(lab, cell, len(asked)):
            mappings = lab.publish("blue", 5354, target_port=53, host_ip=family.host)
            change_all(lab, mappings, endpoint="red")
            change_all(lab, mappings, target_port=54)
            change_all(lab, mappings, host_port=5355)
            change_all(lab, mappings, host_port="5354-5360")
            delete_all(lab, mappings)


def every_change(snat_address):
    return (
        {"isolated": True},
        {"masquerade": False},
        {"masquerade": True},
        {"snat_address": snat_address},
        {"snat_address": None},
        {"icc": False},
        {"icc": True, "isolated": False},
    )


def test_row_13_connections_live_through_every_change_of_their_network(lab, family, cell):
    red, blue = lab.web(isolated=False)
    green = lab.green(isolated=False)
    lab.route_back(family.web)
    lab.portmap("red", 8080, target_port=80)
    asked = {
        "from outside": (lab.client, family.host, 8080),
        "from the host": (lab.host, family.host, 8080),
        "from another network to the port": (green, family.lan_gateway, 8080),
        "from another network": (green, family.red, 80),
        "to another network": (red, family.green, 80),
        "to the outside": (red, family.server, 80),
    }
    with (
        lab.server(red, "tcp", 80),
        lab.server(blue, "tcp", 80),
        lab.server(green, "tcp", 80),
        lab.server(lab.internet, "tcp", 80) as internet,
        cell("tcp"),
        ExitStack() as stack,
    ):
        kept = {way: stack.enter_context(one.connect(*to)) for way, (one, *to) in asked.items()}
        neighbour = stack.enter_context(red.connect(family.blue, 80))
        for connection in (*kept.values(), neighbour):
            assert connection.recv(100)
        masqueraded = internet.last_peer
        (fixed,) = {family.host, family.host_second} - {masqueraded}
        for change in every_change(fixed):
            lab.patch("networks/web", **change)
            for way, connection in kept.items():
                echo(connection, f"{way}, {change}")
            way = f"to the outside, {change}"
            kept[way] = stack.enter_context(red.connect(family.server, 80))
            assert kept[way].recv(100) == b"internet\n"
        echo(neighbour)
        seen = [address for address, _port in internet.peers]
        assert seen == [*[masqueraded] * 2, family.red, masqueraded, fixed, *[masqueraded] * 3]
