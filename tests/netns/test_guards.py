"""Frames from a guarded bridge port: which of them a neighbour hears."""

import socket
import struct
from ipaddress import ip_address

import pytest
from nftlab import Lab, address

from app.firewall.guards import GuardedFirewall
from app.firewall.null import NullFirewall
from app.model.state import SourceGuard

pytestmark = pytest.mark.parametrize("ipv6", [True])

MAC, OTHER_MAC = "02:00:00:00:00:aa", "02:00:00:00:00:bb"
LINK_LOCAL, OTHER_LINK_LOCAL = "fe80::ff:fe00:aa", "fe80::ff:fe00:bb"
BROADCAST, EVERYTHING = "ff:ff:ff:ff:ff:ff", 0x0003
ECHO6, ADVERTISEMENT, SOLICITATION, ROUTER, MLD = 128, 136, 135, 134, 143


def octets(mac):
    return bytes.fromhex(mac.replace(":", ""))


def ether(kind, payload, source=MAC):
    return octets(BROADCAST) + octets(source) + struct.pack("!H", kind) + payload


def arp(sender, mac=MAC):
    return struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2) + octets(mac) + ip_address(sender).packed + bytes(10)


def udp4(source, destination="192.168.15.3", sport=1000, dport=2000):
    udp = struct.pack("!HHHH", sport, dport, 8, 0)
    addresses = ip_address(source).packed + ip_address(destination).packed
    total = sum(struct.unpack("!10H", struct.pack("!BBHHHBBH", 0x45, 0, 28, 0, 0, 64, 17, 0) + addresses))
    total = (total >> 16) + (total & 0xFFFF)  # bridges that call iptables check the sum
    checksum = ~((total >> 16) + total) & 0xFFFF
    return struct.pack("!BBHHHBBH", 0x45, 0, 28, 0, 0, 64, 17, checksum) + addresses + udp


def icmp6(source, kind=ECHO6, target="::", destination="ff02::1"):
    body = struct.pack("!BBHI", kind, 0, 0, 0) + ip_address(target).packed
    head = struct.pack("!IHBB", 0x60000000, len(body), 58, 255)
    return head + ip_address(source).packed + ip_address(destination).packed + body


OWN, OWN6 = "192.168.15.2", "fd15::2"
PASS = {
    "ARP": ether(0x0806, arp(OWN)),
    "ARP probe": ether(0x0806, arp("0.0.0.0")),
    "IPv4": ether(0x0800, udp4(OWN)),
    "DHCP client": ether(0x0800, udp4("0.0.0.0", "255.255.255.255", 68, 67)),
    "IPv6": ether(0x86DD, icmp6(OWN6)),
    "link-local": ether(0x86DD, icmp6(LINK_LOCAL)),
    "advertisement": ether(0x86DD, icmp6(OWN6, ADVERTISEMENT, OWN6)),
    "advertisement of the link-local": ether(0x86DD, icmp6(LINK_LOCAL, ADVERTISEMENT, LINK_LOCAL)),
    "duplicate address detection": ether(0x86DD, icmp6("::", SOLICITATION, OWN6)),
    "multicast listener": ether(0x86DD, icmp6("::", MLD)),
}
DROP = {
    "MAC": ether(0x0800, udp4(OWN), OTHER_MAC),
    "ARP address": ether(0x0806, arp("192.168.15.3")),
    "ARP gateway": ether(0x0806, arp("192.168.15.1")),
    "ARP MAC": ether(0x0806, arp(OWN, OTHER_MAC)),
    "IPv4": ether(0x0800, udp4("192.168.15.3")),
    "IPv4 of the outside": ether(0x0800, udp4("198.51.100.7")),
    "DHCP server": ether(0x0800, udp4("0.0.0.0", "255.255.255.255", 67, 68)),
    "no IPv4 source": ether(0x0800, udp4("0.0.0.0", "192.168.15.3")),
    "IPv6": ether(0x86DD, icmp6("fd15::3")),
    "another link-local": ether(0x86DD, icmp6(OTHER_LINK_LOCAL)),
    "advertisement": ether(0x86DD, icmp6(OWN6, ADVERTISEMENT, "fd15::1")),
    "advertisement without a source": ether(0x86DD, icmp6("::", ADVERTISEMENT, "fd15::1")),
    "router advertisement": ether(0x86DD, icmp6(LINK_LOCAL, ROUTER)),
    "no IPv6 source": ether(0x86DD, icmp6("::")),
    "VLAN": ether(0x8100, struct.pack("!HH", 5, 0x0800) + udp4(OWN)),
    "another protocol": ether(0x88B5, bytes(46)),
}


@pytest.fixture
def forward_policy():
    return "ACCEPT"


@pytest.fixture
def lab(sandbox):
    made = Lab(sandbox, GuardedFirewall(NullFirewall()))
    made.ns["red"].exec(["ip", "link", "set", "eth0", "address", MAC])
    return made


def guard(port="v-red", mac=MAC, addresses=(OWN, OWN6)):
    return SourceGuard(f"id-{port}", port, mac, frozenset(map(ip_address, addresses)))


def heard(lab, frames, last):
    """Which of the frames, then `last`, come out at blue when red sends them."""
    with (
        lab.ns["red"].open_socket(socket.AF_PACKET, socket.SOCK_RAW) as sender,
        lab.ns["blue"].open_socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(EVERYTHING)) as ear,
    ):
        ear.settimeout(5)
        for frame in (*frames, last):
            sender.sendto(frame, ("eth0", 0))
        found = []
        while True:
            frame, place = ear.recvfrom(2048)
            if place[2] == socket.PACKET_OUTGOING:
                continue
            if frame == last:
                return found
            found += [frame] if frame in frames else []


@pytest.mark.parametrize("bridge_nf", [False, True])
def test_only_own_frames_come_out(lab):
    last = ether(0x0800, udp4(OWN, dport=9))
    everything = [*DROP.values(), *PASS.values()]
    bare = heard(lab, everything, last)
    assert set(bare) >= {frame for name, frame in [*DROP.items(), *PASS.items()] if name != "VLAN"}
    lab.want(guard())
    assert heard(lab, everything, last) == list(PASS.values())
    assert lab.ns["red"].ping(address(4, "blue"))
    assert lab.ns["red"].ping(address(6, "blue"))
    assert lab.ns["green"].ping(address(4, "db"))
    lab.want()
    assert heard(lab, everything, last) == bare


def test_the_host_is_guarded_too(lab):
    lab.want(guard())
    for version in (4, 6):
        assert lab.ns["red"].ping(address(version, "web"))
    lab.want(guard(addresses=("192.168.15.9",)))
    lab.ns["red"].exec(["ip", "neigh", "flush", "all"])
    for version in (4, 6):
        assert not lab.ns["red"].ping(address(version, "web"), timeout=0.3)
    lab.want(guard(), guard("v-blue", "02:00:00:00:00:cc", ("192.168.15.3",)))
    for version in (4, 6):
        assert lab.ns["red"].ping(address(version, "web"))
        assert not lab.ns["blue"].ping(address(version, "web"), timeout=0.3)
    lab.want()
