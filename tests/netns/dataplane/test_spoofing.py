"""spoof_protection: an endpoint sends only from its own MAC and addresses, inside its bridge and beyond."""

import socket
from ipaddress import ip_address, ip_interface

import pytest
from cells import PROTOCOLS
from frames import EVERYTHING, ether, forged, hear, honest, udp4, udp6
from frames import IPV4 as ETHER4
from frames import IPV6 as ETHER6
from lab import IPV4, IPV6
from world import QUIET, get

from app.kernel.announce import frames_of
from app.sandbox import SERVER, SERVER6

pytestmark = pytest.mark.parametrize("family", [IPV6], ids=str)
bridge_nf_off_and_on = pytest.mark.parametrize("bridge_nf", [False, True])
GUARDS = "table bridge bridgehead"
PORT = 2000


def own(lab, name):
    """MAC and addresses of an endpoint."""
    given = get(lab.api, f"endpoints/{name}")
    return given["mac"], given["address"], given["address6"]


def all_forged(lab, name, neighbour):
    _mac, address, address6 = own(lab, neighbour)
    return forged(*own(lab, name), address, address6, IPV4.web_gateway, IPV6.web_gateway)


def tables(lab):
    return lab.host.exec(["nft", "list", "tables"]).stdout


def heard(lab, place, neighbour, frames):
    """Names of the frames that both neighbour and host get to see; each sees the same."""
    mac, address, _address6 = own(lab, place.name)
    last = ether(ETHER4, udp4(address, dport=9), mac)
    ears = [(neighbour, "eth0"), (lab.host, "web")]
    at_neighbour, at_host = (set(found) for found in hear(place, ears, frames.values(), last))
    names = {name for name, frame in frames.items() if frame in at_neighbour}
    assert names == {name for name, frame in frames.items() if frame in at_host}
    return names


def expect(lab, place, neighbour, *, guarded):
    """All frames of its own come out; the forged ones do where nobody minds."""
    lies = all_forged(lab, place.name, neighbour.name)
    truths = honest(*own(lab, place.name))
    assert heard(lab, place, neighbour, truths) == set(truths)
    wanted = set() if guarded else set(lies) - {"VLAN"}  # the sandbox's kernel may take a tag off
    assert heard(lab, place, neighbour, lies) - {"VLAN"} == wanted


@bridge_nf_off_and_on
def test_only_its_own_frames_come_out_of_an_endpoint(lab, family):
    """On from the start, off and on again on the live network; an endpoint that comes later is guarded too."""
    red, blue = lab.web(spoof_protection=True)
    expect(lab, red, blue, guarded=True)
    expect(lab, blue, red, guarded=True)
    lab.patch("networks/web", spoof_protection=False)
    assert GUARDS not in tables(lab)
    expect(lab, red, blue, guarded=False)
    lab.patch("networks/web", spoof_protection=True)
    later = lab.endpoint("later")
    for one, other in ((red, blue), (blue, later), (later, red)):
        expect(lab, one, other, guarded=True)


def test_another_networks_endpoints_are_free(lab, family):
    lab.web(spoof_protection=True)
    green, other = lab.green(), lab.endpoint("other", "lan")
    mac, address, _address6 = own(lab, "green")
    lie = ether(ETHER4, udp4("198.51.100.7"), mac)
    assert hear(green, [(other, "eth0")], [lie], ether(ETHER4, udp4(address, dport=9), mac)) == [[lie]]


def test_guards_come_and_go_with_what_they_guard(lab, family):
    lab.web(spoof_protection=True)
    assert GUARDS in tables(lab)
    for name in ("red", "blue"):
        host_ifname = get(lab.api, f"endpoints/{name}")["host_ifname"]
        assert host_ifname in lab.host.exec(["nft", "list", "table", "bridge", "bridgehead"]).stdout
        lab.delete(f"endpoints/{name}")
        if name == "red":
            assert host_ifname not in lab.host.exec(["nft", "list", "table", "bridge", "bridgehead"]).stdout
    assert GUARDS not in tables(lab)


def test_a_restart_and_a_flush_leave_no_gap(lab, daemon, family):
    red, blue = lab.web(spoof_protection=True)
    daemon.restart()
    expect(lab, red, blue, guarded=True)
    lab.host.exec(["nft", "delete", "table", "bridge", "bridgehead"])
    daemon.restart()
    expect(lab, red, blue, guarded=True)


# --- beyond the bridge


def sent_out(lab, place, destination, destination6, ear, ifname):
    """By which sources a datagram gets there that goes by way of the gateway."""
    mac, address, address6 = own(lab, place.name)
    gateway = lab.host.links()["web"].mac
    sources = [address, IPV4.blue, HERE, ELSEWHERE], [address6, IPV6.blue, HERE6, ELSEWHERE6]
    with (
        ear.open_socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(EVERYTHING)) as listener,
        place.open_socket(socket.AF_PACKET, socket.SOCK_RAW) as mouth,
    ):
        listener.bind((ifname, EVERYTHING))
        listener.settimeout(5)
        numbered = {}
        for version, found in ((4, sources[0]), (6, sources[1])):
            for source in (*found[1:], found[0]):
                port = PORT + len(numbered)
                make, kind, to = (udp4, ETHER4, destination) if version == 4 else (udp6, ETHER6, destination6)
                numbered[port] = source
                mouth.sendto(ether(kind, make(source, to, dport=port), mac, gateway), ("eth0", 0))
        return set(_numbers(listener, numbered, {address, address6}))


def _numbers(listener, numbered, last):
    """What came in, until the honest datagram of each IP version did: each came last of its version."""
    waiting = set(last)
    while waiting:
        frame, place = listener.recvfrom(2048)
        if place[2] == socket.PACKET_OUTGOING:
            continue
        kind = int.from_bytes(frame[12:14], "big")
        port = int.from_bytes(frame[36:38] if kind == ETHER4 else frame[56:58], "big")
        if kind in (ETHER4, ETHER6) and port in numbered:
            waiting.discard(numbered[port])
            yield numbered[port]


HERE, HERE6 = "192.168.15.77", "fd00:15::77"
ELSEWHERE, ELSEWHERE6 = "10.9.9.9", "fd99::9"
"""Nobody's address of the subnet, and of the world."""


@bridge_nf_off_and_on
def test_no_foreign_source_reaches_the_internet_or_another_network(lab, family):
    red, _blue = lab.web(isolated=False)
    green = lab.green(isolated=False)
    honest_ones = {IPV4.red, IPV6.red}
    every = honest_ones | {IPV4.blue, IPV6.blue, HERE, HERE6, ELSEWHERE, ELSEWHERE6}
    ways = [(SERVER, SERVER6, lab.internet, "wan0"), (IPV4.green, IPV6.green, green, "eth0")]
    for way in ways:
        assert sent_out(lab, red, *way) == every
    lab.patch("networks/web", spoof_protection=True)
    for way in ways:
        assert sent_out(lab, red, *way) == honest_ones


def test_neighbours_are_not_taken_in(lab, family):
    """Red says that it has the gateway's and blue's addresses: who believes it sends it what is for them."""
    red, blue = lab.web(spoof_protection=True)
    assert believers(lab, red, blue) == set()
    lab.patch("networks/web", spoof_protection=False)
    assert believers(lab, red, blue) == {("blue", 4), ("blue", 6), ("host", 4), ("host", 6)}


def believers(lab, red, blue):
    mac, _address, _address6 = own(lab, "red")
    for version in (IPV4, IPV6):
        assert blue.ping(version.web_gateway)
        assert lab.host.ping(version.blue)
    with red.open_socket(socket.AF_PACKET, socket.SOCK_RAW) as mouth:
        for version in (IPV4, IPV6):
            for victim in (version.web_gateway, version.blue):
                mouth.bind(("eth0", 0))
                for frame in frames_of(mac, [ip_interface(f"{victim}/{version.bits}")], router=True):
                    mouth.send(frame)
    assert red.ping(IPV4.web_gateway)  # what was sent before has arrived
    assert red.ping(IPV6.web_gateway)
    victims = {"blue": [one.web_gateway for one in (IPV4, IPV6)], "host": [one.blue for one in (IPV4, IPV6)]}
    return {
        (place.name, ip_address(victim).version)
        for place in (blue, lab.host)
        for victim in victims[place.name]
        if mac in place.exec(["ip", "neighbour", "show", victim]).stdout
    }


# --- what goes on


@bridge_nf_off_and_on
@pytest.mark.parametrize("icc", [True, False])
def test_honest_traffic_passes(lab, family, icc):
    """From nothing known; published ports with hairpin, and the way out."""
    red, blue = lab.web(spoof_protection=True, icc=icc)
    for version in (IPV4, IPV6):
        assert red.ping(version.blue, timeout=1 if icc else QUIET) is icc
        assert red.ping(version.web_gateway)
        assert lab.host.ping(version.blue)
        assert red.ping(version.server)
        lab.portmap("red", 8080, target_port=80, host_ip=version.any)
        with red.tcp_server(80, version.any):
            for asker in (lab.client, lab.host):
                assert asker.tcp(version.host, 8080) == b"red\n", asker.name
            for asker in (red, blue):
                assert (asker.tcp(version.host, 8080, 1 if icc else QUIET) == b"red\n") is icc, asker.name
    for protocol in PROTOCOLS:
        with lab.server(lab.internet, protocol, 80) as server:
            assert red.ask(protocol, SERVER6, 80) == b"internet\n"
            assert server.last_peer in (IPV6.host, IPV6.host_second)


# --- without a firewall


@pytest.mark.parametrize("firewall", ["none"])
@bridge_nf_off_and_on
def test_without_a_firewall_the_mac_is_guarded_by_the_bridge_port(lab, family):
    """Also against a MAC that the bridge learnt there before. The rest is left to whoever keeps the rules."""
    red, blue = lab.web()
    lies = all_forged(lab, "red", "blue")
    assert "MAC" in heard(lab, red, blue, lies)
    lab.patch("networks/web", spoof_protection=True)
    found = heard(lab, red, blue, lies)
    assert "MAC" not in found
    assert {"IPv4", "IPv6", "ARP address"} <= found
    assert heard(lab, red, blue, honest(*own(lab, "red"))) == set(honest(*own(lab, "red")))
    lab.patch("networks/web", spoof_protection=False)
    assert "MAC" in heard(lab, red, blue, lies)
    assert red.ping(IPV4.blue)
    assert blue.ping(IPV6.red)
