"""The driver `bridge`: a Linux bridge on the host, a veth pair for each endpoint."""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv6Interface, ip_network

from app.model import ipam
from app.model.errors import AddressOutsideSubnet, Invalid
from app.model.naming import bridge_mac
from app.model.spec import AddressPlan, Endpoint, IPAddress, IPNetwork, Network, Version
from app.model.state import Attachment, Bridge, IPInterface, Item, SourceGuard

PORTS_MAX = 1023
"""Ports that a Linux bridge takes (net/bridge/br_private.h, BR_PORT_BITS)."""
IPV6_MTU_MIN = 1280
"""Bytes; below it the kernel turns IPv6 off on an interface (RFC 8200, 5)."""
_SUFFIX: dict[Version, str] = {4: "", 6: "6"}
_EXAMPLE: dict[Version, str] = {4: "192.168.15.0/24", 6: "fd00:15::/64"}
_NOT_FOR_HOSTS: dict[Version, list[IPNetwork]] = {
    # this network, loopback, link-local, multicast, limited broadcast (RFC 6890)
    4: [ip_network(text) for text in ("0.0.0.0/32", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255")],
    # unspecified, loopback, IPv4-mapped, link-local, multicast (RFC 4291)
    6: [ip_network(text) for text in ("::/127", "::ffff:0:0/96", "fe80::/10", "ff00::/8")],
}


class BridgeDriver:
    """See `app.drivers.base.Driver`."""

    def validate(self, network: Network) -> None:
        for plan in network.plans:
            _check_plan(plan, _SUFFIX[plan.version])
        if network.plan(6) is not None and network.mtu < IPV6_MTU_MIN:
            raise Invalid(
                f"mtu {network.mtu} is too small for subnet6: the kernel turns IPv6 off below {IPV6_MTU_MIN}; "
                f"use {IPV6_MTU_MIN} or more, or a network without subnet6"
            )

    def network(self, network: Network) -> tuple[Item, ...]:
        addresses = (_interface(plan.gateway, plan) for plan in network.plans if plan.gateway is not None)
        return (
            Bridge(
                owner=network.id,
                name=network.bridge,
                mac=bridge_mac(network.id),
                mtu=network.mtu,
                addresses=frozenset(addresses),
                ipv6=network.plan(6) is not None,
            ),
        )

    def endpoint(self, network: Network, endpoint: Endpoint, *, published: bool) -> tuple[Item, ...]:
        plans = {plan.version: plan for plan in network.plans}
        own = frozenset(endpoint.addresses)
        guard = SourceGuard(endpoint.id, endpoint.host_ifname, endpoint.mac, own)
        return (
            *((guard,) if network.spoof_protection else ()),
            Attachment(
                owner=endpoint.id,
                host_ifname=endpoint.host_ifname,
                bridge=network.bridge,
                netns=endpoint.netns,
                namespace_key=endpoint.namespace_key,
                ifname=endpoint.ifname,
                mac=endpoint.mac,
                mtu=network.mtu,
                addresses=frozenset(_interface(held, plans[held.version]) for held in endpoint.addresses),
                ipv6=network.plan(6) is not None,
                # with bridge-nf-call-iptables, a publisher's own port leads back out of its own bridge port
                hairpin=published,
                isolated=not network.icc,
                locked=network.spoof_protection,
            ),
        )


def _interface(address: IPAddress, plan: AddressPlan) -> IPInterface:
    kind = IPv4Interface if address.version == 4 else IPv6Interface
    return kind((int(address), plan.subnet.prefixlen))


def _check_plan(plan: AddressPlan, suffix: str) -> None:
    subnet, ip_range = plan.subnet, plan.ip_range
    met = next((one for one in _NOT_FOR_HOSTS[plan.version] if one.overlaps(subnet)), None)
    if met is not None:
        raise Invalid(
            f"subnet{suffix} {subnet} is not for hosts (it overlaps {met}); "
            f"use a private one, such as {_EXAMPLE[plan.version]}"
        )
    if plan.gateway is not None:
        if subnet.prefixlen >= subnet.max_prefixlen - 1:
            raise Invalid(
                f'subnet{suffix} {subnet} has no room for a gateway; use "gateway{suffix}": null, or a larger subnet'
            )
        ipam.check_usable(plan.gateway, subnet, f"gateway{suffix}")
    if ip_range.version != subnet.version or not _within(plan):
        raise AddressOutsideSubnet(f"ip_range{suffix} {ip_range} is outside the subnet {subnet}; use a part of it")
    first, last = ipam.automatic_span(subnet, ip_range)
    if first > last:
        raise Invalid(f"ip_range{suffix} {ip_range} leaves no usable address of {subnet}; use a larger part of it")


def _within(plan: AddressPlan) -> bool:
    first, last = int(plan.subnet.network_address), int(plan.subnet.broadcast_address)
    return first <= int(plan.ip_range.network_address) and int(plan.ip_range.broadcast_address) <= last
