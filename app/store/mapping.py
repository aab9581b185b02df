"""Between rows and the model's frozen values."""

from __future__ import annotations

from datetime import UTC, datetime
from ipaddress import ip_address, ip_network

from app.model.spec import (
    AddressPlan,
    Allocation,
    AllocationKind,
    Endpoint,
    IPAddress,
    IPNetwork,
    NetnsKind,
    NetnsRef,
    Network,
    Portmap,
    Protocol,
)
from app.store.tables import AllocationRow, EndpointRow, NetworkRow, PortmapRow


def key_of(address: IPAddress) -> str:
    """Sorts as the addresses do; an IPv4 address is written as its mapped IPv6 one (RFC 4291, 2.5.5.2)."""
    value = int(address) + (0xFFFF << 32 if address.version == 4 else 0)
    return f"{value:032x}"


def value_of(key: str, version: int) -> int:
    """The integer value of the address behind a key."""
    return int(key, 16) - (0xFFFF << 32 if version == 4 else 0)


def span_of(subnet: IPNetwork) -> tuple[str, str]:
    """Keys of a subnet's first and last address."""
    return key_of(subnet.network_address), key_of(subnet.broadcast_address)


def to_text(moment: datetime) -> str:
    """ISO 8601 in UTC with microseconds: of one width, so that it sorts."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def network_of(row: NetworkRow) -> Network:
    plans = [_plan_of(row.subnet, row.gateway, row.ip_range)]
    if row.subnet6 is not None:
        plans.append(_plan_of(row.subnet6, row.gateway6, row.ip_range6 or row.subnet6))
    return Network(
        id=row.id,
        name=row.name,
        bridge=row.bridge,
        plans=tuple(plans),
        mtu=row.mtu,
        internal=row.internal,
        isolated=row.isolated,
        icc=row.icc,
        masquerade=row.masquerade,
        snat_address=_address(row.snat_address),
        spoof_protection=row.spoof_protection,
        labels=dict(row.labels),
        created_at=datetime.fromisoformat(row.created_at),
        updated_at=datetime.fromisoformat(row.updated_at),
    )


def _plan_of(subnet: str, gateway: str | None, ip_range: str) -> AddressPlan:
    return AddressPlan(ip_network(subnet), _address(gateway), ip_network(ip_range))


def _address(text: str | None) -> IPAddress | None:
    return ip_address(text) if text is not None else None


def _text(value: IPAddress | IPNetwork | None) -> str | None:
    return str(value) if value is not None else None


def fill_network(row: NetworkRow, network: Network) -> NetworkRow:
    plan = network.ipv4
    row.subnet = str(plan.subnet)
    row.subnet_first, row.subnet_last = span_of(plan.subnet)
    row.gateway = _text(plan.gateway)
    row.ip_range = str(plan.ip_range)
    plan6 = network.plan(6)
    row.subnet6_first, row.subnet6_last = span_of(plan6.subnet) if plan6 is not None else (None, None)
    row.subnet6, row.gateway6, row.ip_range6 = (
        (_text(plan6.subnet), _text(plan6.gateway), _text(plan6.ip_range)) if plan6 is not None else (None,) * 3
    )
    row.id, row.name, row.bridge = network.id, network.name, network.bridge
    row.mtu, row.internal = network.mtu, network.internal
    row.isolated, row.icc, row.masquerade = network.isolated, network.icc, network.masquerade
    row.snat_address, row.spoof_protection = _text(network.snat_address), network.spoof_protection
    row.labels = dict(network.labels)
    row.created_at, row.updated_at = to_text(network.created_at), to_text(network.updated_at)
    return row


def endpoint_of(row: EndpointRow) -> Endpoint:
    return Endpoint(
        id=row.id,
        network_id=row.network_id,
        name=row.name,
        netns=NetnsRef(NetnsKind(row.netns_kind), row.netns_value, row.netns_start_time),
        namespace_key=row.namespace_key,
        create_namespace=row.create_namespace,
        ephemeral=row.ephemeral,
        addresses=tuple(ip_address(text) for text in (row.address, row.address6) if text is not None),
        mac=row.mac,
        ifname=row.ifname,
        host_ifname=row.host_ifname,
        default_route=row.default_route,
        default_route_at=datetime.fromisoformat(row.default_route_at) if row.default_route_at else None,
        labels=dict(row.labels),
        uid=row.uid,
        created_at=datetime.fromisoformat(row.created_at),
        updated_at=datetime.fromisoformat(row.updated_at),
    )


def fill_endpoint(row: EndpointRow, endpoint: Endpoint) -> EndpointRow:
    row.id, row.network_id, row.name = endpoint.id, endpoint.network_id, endpoint.name
    row.netns_kind, row.netns_value = str(endpoint.netns.kind), endpoint.netns.value
    row.netns_start_time, row.namespace_key = endpoint.netns.start_time, endpoint.namespace_key
    row.create_namespace, row.ephemeral = endpoint.create_namespace, endpoint.ephemeral
    row.address, row.address6 = str(endpoint.address(4)), _text(endpoint.address(6))
    row.mac, row.ifname, row.host_ifname = endpoint.mac, endpoint.ifname, endpoint.host_ifname
    row.default_route = endpoint.default_route
    row.default_route_at = to_text(endpoint.default_route_at) if endpoint.default_route_at else None
    row.labels, row.uid = dict(endpoint.labels), endpoint.uid
    row.created_at, row.updated_at = to_text(endpoint.created_at), to_text(endpoint.updated_at)
    return row


def portmap_of(row: PortmapRow) -> Portmap:
    return Portmap(
        id=row.id,
        endpoint_id=row.endpoint_id,
        protocol=Protocol(row.protocol),
        host_ip=ip_address(row.host_ip),
        host_port=row.host_port,
        target_port=row.target_port,
        count=row.count,
        labels=dict(row.labels),
        created_at=datetime.fromisoformat(row.created_at),
        updated_at=datetime.fromisoformat(row.updated_at),
    )


def fill_portmap(row: PortmapRow, portmap: Portmap) -> PortmapRow:
    row.id, row.endpoint_id, row.protocol = portmap.id, portmap.endpoint_id, str(portmap.protocol)
    row.host_ip, row.host_port, row.target_port = str(portmap.host_ip), portmap.host_port, portmap.target_port
    row.count = portmap.count
    row.labels = dict(portmap.labels)
    row.created_at, row.updated_at = to_text(portmap.created_at), to_text(portmap.updated_at)
    return row


def allocation_of(row: AllocationRow) -> Allocation:
    return Allocation(
        id=row.id,
        network_id=row.network_id,
        address=ip_address(row.address),
        kind=AllocationKind(row.kind),
        endpoint_id=row.endpoint_id,
        note=row.note,
        created_at=datetime.fromisoformat(row.created_at),
    )


def allocation_row(allocation: Allocation) -> AllocationRow:
    return AllocationRow(
        id=allocation.id,
        network_id=allocation.network_id,
        address=str(allocation.address),
        address_key=key_of(allocation.address),
        kind=str(allocation.kind),
        endpoint_id=allocation.endpoint_id,
        note=allocation.note,
        created_at=to_text(allocation.created_at),
    )
