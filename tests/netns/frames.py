"""Raw frames, for those who send what an honest endpoint does not."""

import socket
import struct
from contextlib import ExitStack
from ipaddress import ip_address

from app.firewall.nft_rules import link_local
from app.sandbox import eventually

BROADCAST = "ff:ff:ff:ff:ff:ff"
OTHER_MAC = "02:00:00:00:00:bb"
EVERYTHING = 0x0003
"""ETH_P_ALL."""
ARP, IPV4, IPV6, VLAN, UNKNOWN = 0x0806, 0x0800, 0x86DD, 0x8100, 0x88B5
ECHO6, ROUTER, SOLICITATION, ADVERTISEMENT, MLD = 128, 134, 135, 136, 143


def octets(mac):
    return bytes.fromhex(mac.replace(":", ""))


def ether(kind, payload, source, destination=BROADCAST):
    return octets(destination) + octets(source) + struct.pack("!H", kind) + payload


def arp(sender, mac):
    return struct.pack("!HHBBH", 1, IPV4, 6, 4, 2) + octets(mac) + ip_address(sender).packed + bytes(10)


def udp4(source, destination="192.168.15.3", sport=1000, dport=2000):
    udp = struct.pack("!HHHH", sport, dport, 8, 0)
    addresses = ip_address(source).packed + ip_address(destination).packed
    # bridges that call iptables check the sum
    total = checksum(struct.pack("!BBHHHBBH", 0x45, 0, 28, 0, 0, 64, 17, 0) + addresses)
    return struct.pack("!BBHHHBBH", 0x45, 0, 28, 0, 0, 64, 17, total) + addresses + udp


def udp6(source, destination, sport=1000, dport=2000):
    """With its sum, which IPv6 wants."""
    addresses = ip_address(source).packed + ip_address(destination).packed
    total = checksum(addresses + struct.pack("!IIHHHH", 8, 17, sport, dport, 8, 0))
    return struct.pack("!IHBB", 0x60000000, 8, 17, 64) + addresses + struct.pack("!HHHH", sport, dport, 8, total)


def icmp6(source, kind=ECHO6, target="::", destination="ff02::1"):
    body = struct.pack("!BBHI", kind, 0, 0, 0) + ip_address(target).packed
    head = struct.pack("!IHBB", 0x60000000, len(body), 58, 255)
    return head + ip_address(source).packed + ip_address(destination).packed + body


def checksum(data):
    """RFC 1071, of an even number of bytes."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~((total >> 16) + total) & 0xFFFF


def honest(mac, own, own6):
    """What an endpoint with this MAC and these addresses may send, by what it is."""
    local = str(link_local(mac))
    return {
        "ARP": ether(ARP, arp(own, mac), mac),
        "ARP probe": ether(ARP, arp("0.0.0.0", mac), mac),
        "IPv4": ether(IPV4, udp4(own), mac),
        "DHCP client": ether(IPV4, udp4("0.0.0.0", "255.255.255.255", 68, 67), mac),
        "IPv6": ether(IPV6, icmp6(own6), mac),
        "link-local": ether(IPV6, icmp6(local), mac),
        "advertisement": ether(IPV6, icmp6(own6, ADVERTISEMENT, own6), mac),
        "advertisement of the link-local": ether(IPV6, icmp6(local, ADVERTISEMENT, local), mac),
        "duplicate address detection": ether(IPV6, icmp6("::", SOLICITATION, own6), mac),
        "multicast listener": ether(IPV6, icmp6("::", MLD), mac),
    }


def forged(mac, own, own6, neighbour, neighbour6, gateway, gateway6):
    """What it may not, by what it pretends."""
    local = str(link_local(mac))
    return {
        "MAC": ether(IPV4, udp4(own), OTHER_MAC),
        "ARP address": ether(ARP, arp(neighbour, mac), mac),
        "ARP gateway": ether(ARP, arp(gateway, mac), mac),
        "ARP MAC": ether(ARP, arp(own, OTHER_MAC), mac),
        "IPv4": ether(IPV4, udp4(neighbour), mac),
        "IPv4 of the outside": ether(IPV4, udp4("198.51.100.7"), mac),
        "DHCP server": ether(IPV4, udp4("0.0.0.0", "255.255.255.255", 67, 68), mac),
        "no IPv4 source": ether(IPV4, udp4("0.0.0.0", neighbour), mac),
        "IPv6": ether(IPV6, icmp6(neighbour6), mac),
        "another link-local": ether(IPV6, icmp6(str(link_local(OTHER_MAC))), mac),
        "advertisement": ether(IPV6, icmp6(own6, ADVERTISEMENT, gateway6), mac),
        "advertisement of a neighbour": ether(IPV6, icmp6(local, ADVERTISEMENT, neighbour6), mac),
        "advertisement without a source": ether(IPV6, icmp6("::", ADVERTISEMENT, gateway6), mac),
        "router advertisement": ether(IPV6, icmp6(local, ROUTER), mac),
        "no IPv6 source": ether(IPV6, icmp6("::"), mac),
        "VLAN": ether(VLAN, struct.pack("!HH", 5, IPV4) + udp4(own), mac),
        "another protocol": ether(UNKNOWN, bytes(46), mac),
    }


def hear(sender, ears, frames, last):
    """Which of the frames, then `last`, come in at each ear (place and interface) when the sender's eth0 sends them."""
    with ExitStack() as stack:
        opened = []
        for place, ifname in ears:
            ear = stack.enter_context(place.open_socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(EVERYTHING)))
            ear.bind((ifname, EVERYTHING))
            ear.settimeout(5)
            opened.append(ear)
        mouth = stack.enter_context(sender.open_socket(socket.AF_PACKET, socket.SOCK_RAW))
        for frame in (*frames, last):
            mouth.sendto(frame, ("eth0", 0))
        return [_until(ear, set(frames), last) for ear in opened]


def _until(ear, frames, last):
    found = []
    while True:
        frame, place = ear.recvfrom(2048)
        if place[2] == socket.PACKET_OUTGOING:
            continue
        if frame == last:
            return found
        found += [frame] if frame in frames else []


def advertise(place):
    """The internet's router says so to the host, whose default route it becomes; that route."""
    place.host.exec(["ip", "-6", "route", "delete", "default"])
    place.host.write_sysctl("net/ipv6/conf/eth0/accept_ra", 1)

    def send():
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sender:
            sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
            index = socket.if_nametoindex("wan0")
            sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
            sender.sendto(struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0), ("ff02::1", 0, 0, index))

    def arrived():
        place.internet.run(send)
        return place.host.default_route(6)

    return eventually(arrived)
