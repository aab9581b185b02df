"""The host's links, addresses and routes in memory: as the kernel has them, whatever happened."""

from ipaddress import ip_address, ip_interface, ip_network

import pytest

from app.kernel.mirror import HostMirror
from app.sandbox import GATEWAY

FAR = ip_network("10.99.0.0/16")


class Watched:
    def __init__(self, host):
        self._host = host
        self.mirror = host.run(HostMirror)

    def overlap(self, subnet=FAR):
        def ask():
            self.mirror.refresh()
            return self.mirror.route_in_the_way(subnet)

        return self._host.run(ask)

    def default_mtu(self):
        def ask():
            self.mirror.refresh()
            return self.mirror.default_mtu()

        return self._host.run(ask)


@pytest.fixture
def watched(sandbox):
    made = Watched(sandbox.host)
    yield made
    made.mirror.close()


def ip(sandbox, command):
    sandbox.host.exec(["ip", *command.split()])


def test_a_route_that_goes_with_its_link_set_down(sandbox, watched):
    ip(sandbox, "link add d0 type bridge")
    ip(sandbox, "link set d0 up")
    ip(sandbox, f"route add {FAR} dev d0")
    assert watched.overlap() == (FAR, "d0")
    ip(sandbox, "link set d0 down")
    assert watched.overlap() is None
    ip(sandbox, "link delete d0")


def test_a_replaced_route(sandbox, watched):
    ip(sandbox, "link add d0 mtu 1300 type bridge")
    ip(sandbox, "address add 10.98.0.1/24 dev d0")
    ip(sandbox, "link set d0 up")
    ip(sandbox, f"route add {FAR} via {GATEWAY}")
    assert watched.overlap() == (FAR, "eth0")
    ip(sandbox, f"route replace {FAR} dev d0")
    assert watched.overlap() == (FAR, "d0")
    ip(sandbox, f"route delete {FAR}")
    assert watched.overlap() is None
    assert watched.default_mtu() == 1500
    ip(sandbox, "route replace default via 10.98.0.2")
    assert watched.default_mtu() == 1300
    ip(sandbox, f"route replace default via {GATEWAY}")
    assert watched.default_mtu() == 1500
    ip(sandbox, "link delete d0")


def test_routes_that_go_with_a_link_s_last_address(sandbox, watched):
    ip(sandbox, "link add d0 type bridge")
    ip(sandbox, "address add 10.98.0.1/24 dev d0")
    ip(sandbox, "link set d0 up")
    ip(sandbox, f"route add {FAR} dev d0")
    assert watched.overlap() == (FAR, "d0")
    ip(sandbox, "address delete 10.98.0.1/24 dev d0")
    assert watched.overlap() is None
    ip(sandbox, "link delete d0")


def test_a_route_that_goes_with_an_address(sandbox, watched):
    ip(sandbox, "link add d0 type bridge")
    ip(sandbox, "address add 10.98.0.1/24 dev d0")
    ip(sandbox, "link set d0 up")
    ip(sandbox, f"route add {FAR} via {GATEWAY} src 10.98.0.1")
    assert watched.overlap() == (FAR, "eth0")
    ip(sandbox, "address delete 10.98.0.1/24 dev d0")
    assert watched.overlap() is None
    ip(sandbox, "link delete d0")


def test_a_route_of_several_ways_is_known_by_the_first(sandbox, watched):
    ip(sandbox, f"route add {FAR} nexthop via {GATEWAY} nexthop via 203.0.113.9")
    assert watched.overlap() == (FAR, "eth0")


def test_what_happens_while_events_are_lost(sandbox, monkeypatch):
    monkeypatch.setattr("app.kernel.mirror._BUFFER", 2048)
    watched = Watched(sandbox.host)
    ip(sandbox, "link add old type bridge")
    for number in range(300):
        sandbox.host.add_address("eth0", ip_interface(f"10.77.{number // 250}.{number % 250 + 1}/32"))
    ip(sandbox, "link delete old")
    monkeypatch.undo()

    def reload_while_others_act():
        load = HostMirror._load

        def busy(mirror):
            load(mirror)
            # what comes between the dump and the next look must not be lost
            with sandbox.host.rtnl() as rtnl:
                rtnl.add_plain_bridge("late")
                rtnl.delete_address(rtnl.index_of("eth0"), ip_interface("10.77.0.1/32"))

        monkeypatch.setattr(HostMirror, "_load", busy)
        watched.mirror.refresh()
        watched.mirror.refresh()
        monkeypatch.setattr(HostMirror, "_load", load)

    sandbox.host.run(reload_while_others_act)
    mirror = watched.mirror
    assert mirror.link("late") is not None
    assert mirror.link("old") is None
    assert not mirror.holds_address(ip_address("10.77.0.1"))
    assert mirror.holds_address(ip_address("10.77.1.50"))
    found = {link.name for link in mirror.links()}
    assert found == sandbox.host.links().keys()
    mirror.close()


def test_the_buffer_is_as_large_as_asked_for(watched):
    import socket

    with socket.socket(fileno=watched.mirror._events.fileno()) as events:
        size = events.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        events.detach()
    assert size == 2 * (4 << 20)
