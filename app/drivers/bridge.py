"""The driver `bridge`: a Linux bridge on the host, a veth pair for each endpoint."""

from __future__ import annotations

from ipaddress import ip_interface

from app.model import ipam
from app.model.errors import AddressOutsideSubnet, Invalid
from app.model.naming import bridge_mac
from app.model.spec import AddressPlan, Endpoint, IPAddress, Network
from app.model.state import Attachment, Bridge, IPInterface, Item, SourceGuard

PORTS_MAX = 1023
"""Ports that a Linux bridge takes (net/bridge/br_private.h, BR_PORT_BITS)."""


class BridgeDriver:
    """See `app.drivers.base.Driver`."""

    def validate(self, network: Network) -> None:
        for plan in network.plans:
            _check_plan(plan)

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
    return ip_interface(f"{address}/{plan.subnet.prefixlen}")


def _check_plan(plan: AddressPlan) -> None:
    subnet, ip_range = plan.subnet, plan.ip_range
    if subnet.is_multicast or subnet.is_loopback or subnet.is_link_local or int(subnet.network_address) == 0:
        raise Invalid(f"subnet {subnet} is not for hosts; use a private one, such as 192.168.15.0/24")
    if plan.gateway is not None:
        if subnet.prefixlen >= subnet.max_prefixlen - 1:
            raise Invalid(f'subnet {subnet} has no room for a gateway; use "gateway": null, or a larger subnet')
        ipam.check_usable(plan.gateway, subnet, "gateway")
    if ip_range.version != subnet.version or not _within(plan):
        raise AddressOutsideSubnet(f"ip_range {ip_range} is outside the subnet {subnet}")
    first, last = ipam.automatic_span(subnet, ip_range)
    if first > last:
        raise Invalid(f"ip_range {ip_range} leaves no usable address of {subnet}")


def _within(plan: AddressPlan) -> bool:
    first, last = int(plan.subnet.network_address), int(plan.subnet.broadcast_address)
    return first <= int(plan.ip_range.network_address) and int(plan.ip_range.broadcast_address) <= last
