"""What the kernel shall hold for each object; the worker asks for the objects that a change touches."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from app.drivers import DRIVERS
from app.model.spec import Endpoint, NetnsKind, Network, Portmap, Version
from app.model.state import DefaultRoute, HostPort, Item, LoopbackRoute, Netns, NetworkPolicy, PortForward, Sysctl

_DRIVER = DRIVERS["bridge"]
_NAMED = f"{NetnsKind.NAME}:"
_VERSIONS: tuple[Version, ...] = (4, 6)
_FORWARDING: dict[Version, str] = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}


def host_items(routed: Collection[Version]) -> tuple[Item, ...]:
    """What the host itself needs; `routed`: the IP versions of the networks that it forwards for."""
    return tuple(Sysctl("host", _FORWARDING[version], "1") for version in _VERSIONS if version in routed)


def network_items(
    network: Network, *, local_ports: Collection[Version], beside: Collection[Network] = ()
) -> tuple[Item, ...]:
    """`local_ports`: the IP versions in which a port of 127.0.0.1 or ::1 leads into the network (row 8).

    `beside`: other networks that an endpoint's namespace is on too, by which its answers may come back: strict
    reverse path filtering would drop them.
    """
    others = [plan.subnet for other in beside for plan in other.plans]
    policies = tuple(
        NetworkPolicy(
            owner=network.id,
            bridge=network.bridge,
            subnet=plan.subnet,
            routed=network.gateway_for(plan.version) is not None,
            isolated=network.isolated,
            masquerade=network.masquerade,
            icc=network.icc,
            snat_address=network.snat_for(plan.version),
            beside=frozenset(subnet for subnet in others if subnet.version == plan.version),
        )
        for plan in network.plans
    )
    items = [*_DRIVER.network(network), *policies]
    if 4 in local_ports and network.gateway_for(4) is not None:
        items.append(Sysctl(network.id, f"net/ipv4/conf/{network.bridge}/route_localnet", "1"))
    if 6 in local_ports and network.gateway_for(6) is not None:
        items.append(LoopbackRoute(network.id, network.bridge))
    if beside:
        items.append(Sysctl(network.id, f"net/ipv4/conf/{network.bridge}/rp_filter", "2"))
    return tuple(items)


def endpoint_items(network: Network, endpoint: Endpoint, *, published: bool) -> tuple[Item, ...]:
    """`published`: the endpoint has port mappings."""
    return _DRIVER.endpoint(network, endpoint, published=published)


def namespace_items(members: Sequence[tuple[Endpoint, Network]]) -> tuple[Item, ...]:
    """A namespace and its default routes, from all its endpoints, oldest first."""
    items: list[Item] = []
    named = [endpoint for endpoint, _network in members if endpoint.namespace_key.startswith(_NAMED)]
    if named:
        # one that is here by its process keeps a namespace of that name too
        create = any(one.create_namespace and one.netns.kind is NetnsKind.NAME for one in named)
        items.append(Netns(named[0].namespace_key.removeprefix(_NAMED), named[0].id, create))
    for version in _VERSIONS:
        route = _default_route(members, version)
        if route is not None:
            items.append(route)
    return tuple(items)


def _default_route(members: Sequence[tuple[Endpoint, Network]], version: Version) -> DefaultRoute | None:
    """The endpoint that took the route last has it, else the oldest one that does not refuse it."""
    candidates = [
        (endpoint, gateway)
        for endpoint, network in members
        if endpoint.default_route is not False and (gateway := network.gateway_for(version)) is not None
    ]
    if not candidates:
        return None
    takers = [pair for pair in candidates if pair[0].default_route and pair[0].default_route_at is not None]
    endpoint, gateway = max(takers, key=lambda pair: str(pair[0].default_route_at)) if takers else candidates[0]
    return DefaultRoute(endpoint.id, endpoint.netns, endpoint.namespace_key, gateway, endpoint.ifname)


def portmap_items(network: Network, endpoint: Endpoint, portmap: Portmap) -> tuple[Item, ...]:
    """The port stays reserved while nothing can be forwarded to it: on a network without a way in."""
    reservation = HostPort(portmap.id, portmap.protocol, portmap.host_ip, portmap.host_port, portmap.count)
    version = portmap.host_ip.version
    target = endpoint.address(version)
    if target is None or network.gateway_for(version) is None:
        return (reservation,)
    forward = PortForward(
        owner=portmap.id,
        bridge=network.bridge,
        protocol=portmap.protocol,
        host_ip=portmap.host_ip,
        host_port=portmap.host_port,
        target_ip=target,
        target_port=portmap.target_port,
        count=portmap.count,
    )
    return (reservation, forward)
