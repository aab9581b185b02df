"""Between rows and the model's frozen values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Any

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

Row = Any
"""A row as the driver gives it: its columns are attributes."""
Values = dict[str, Any]
"""A row's columns."""
_PROTOCOLS = {str(one): one for one in Protocol}
_NO_LABELS: Mapping[str, str] = {}
# many rows share theirs: a value is made once, and kept once
_address_of = lru_cache(maxsize=4096)(ip_address)
_moment_of = lru_cache(maxsize=1024)(datetime.fromisoformat)


def key_of(address: IPAddress) -> str:
    """Sorts as the addresses do; an IPv4 address is written as its mapped IPv6 one (RFC 4291, 2.5.5.2)."""
    return key_at(int(address), address.version)


def key_at(value: int, version: int) -> str:
    """The key of the address with this integer value."""
    return f"{value + (0xFFFF << 32 if version == 4 else 0):032x}"


def value_of(key: str, version: int) -> int:
    """The integer value of the address behind a key."""
    return int(key, 16) - (0xFFFF << 32 if version == 4 else 0)


def span_of(subnet: IPNetwork) -> tuple[str, str]:
    """Keys of a subnet's first and last address."""
    return key_of(subnet.network_address), key_of(subnet.broadcast_address)


def to_text(moment: datetime) -> str:
    """ISO 8601 in UTC with microseconds: of one width, so that it sorts."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def network_of(row: Row) -> Network:
    plans = [_plan_of(row.subnet, row.gateway, row.ip_range)]
    if row.subnet6 is not None:
        plans.append(_plan_of(row.subnet6, row.gateway6, row.ip_range6 or row.subnet6))
    return Network(
        id=row.id,
        name=row.name,
        bridge=row.bridge,
        plans=tuple(plans),
        mtu=row.mtu,
        internal=bool(row.internal),
        isolated=bool(row.isolated),
        icc=bool(row.icc),
        masquerade=bool(row.masquerade),
        snat_address=_address(row.snat_address),
        spoof_protection=bool(row.spoof_protection),
        labels=_labels_of(row.labels),
        created_at=_moment_of(row.created_at),
        updated_at=_moment_of(row.updated_at),
    )


def _plan_of(subnet: str, gateway: str | None, ip_range: str) -> AddressPlan:
    return AddressPlan(ip_network(subnet), _address(gateway), ip_network(ip_range))


def _json(labels: Mapping[str, str]) -> str:
    """As the driver takes it."""
    return json.dumps(dict(labels)) if labels else "{}"


def _labels_of(text: str) -> Mapping[str, str]:
    found: Mapping[str, str] = _NO_LABELS if text == "{}" else json.loads(text)
    return found


def _address(text: str | None) -> IPAddress | None:
    return _address_of(text) if text is not None else None


def _text(value: IPAddress | IPNetwork | None) -> str | None:
    return str(value) if value is not None else None


def network_values(network: Network) -> Values:
    """But for the cursors, which are no part of the object."""
    plan, plan6 = network.ipv4, network.plan(6)
    first, last = span_of(plan.subnet)
    first6, last6 = span_of(plan6.subnet) if plan6 is not None else (None, None)
    return {
        "id": network.id,
        "name": network.name,
        "bridge": network.bridge,
        "subnet": str(plan.subnet),
        "subnet_first": first,
        "subnet_last": last,
        "gateway": _text(plan.gateway),
        "ip_range": str(plan.ip_range),
        "subnet6": _text(plan6.subnet) if plan6 is not None else None,
        "subnet6_first": first6,
        "subnet6_last": last6,
        "gateway6": _text(plan6.gateway) if plan6 is not None else None,
        "ip_range6": _text(plan6.ip_range) if plan6 is not None else None,
        "mtu": network.mtu,
        "internal": network.internal,
        "isolated": network.isolated,
        "icc": network.icc,
        "masquerade": network.masquerade,
        "snat_address": _text(network.snat_address),
        "spoof_protection": network.spoof_protection,
        "labels": _json(network.labels),
        "created_at": to_text(network.created_at),
        "updated_at": to_text(network.updated_at),
    }


def endpoint_of(row: Row) -> Endpoint:
    return Endpoint(
        id=row.id,
        network_id=row.network_id,
        name=row.name,
        netns=NetnsRef(NetnsKind(row.netns_kind), row.netns_value, row.netns_start_time),
        namespace_key=row.namespace_key,
        create_namespace=bool(row.create_namespace),
        ephemeral=bool(row.ephemeral),
        addresses=tuple(_address_of(text) for text in (row.address, row.address6) if text is not None),
        mac=row.mac,
        ifname=row.ifname,
        host_ifname=row.host_ifname,
        default_route=None if row.default_route is None else bool(row.default_route),
        default_route_at=_moment_of(row.default_route_at) if row.default_route_at else None,
        labels=_labels_of(row.labels),
        uid=row.uid,
        created_at=_moment_of(row.created_at),
        updated_at=_moment_of(row.updated_at),
    )


def endpoint_values(endpoint: Endpoint) -> Values:
    return {
        "id": endpoint.id,
        "network_id": endpoint.network_id,
        "name": endpoint.name,
        "netns_kind": str(endpoint.netns.kind),
        "netns_value": endpoint.netns.value,
        "netns_start_time": endpoint.netns.start_time,
        "namespace_key": endpoint.namespace_key,
        "create_namespace": endpoint.create_namespace,
        "ephemeral": endpoint.ephemeral,
        "address": str(endpoint.address(4)),
        "address6": _text(endpoint.address(6)),
        "mac": endpoint.mac,
        "ifname": endpoint.ifname,
        "host_ifname": endpoint.host_ifname,
        "default_route": endpoint.default_route,
        "default_route_at": to_text(endpoint.default_route_at) if endpoint.default_route_at else None,
        "labels": _json(endpoint.labels),
        "uid": endpoint.uid,
        "created_at": to_text(endpoint.created_at),
        "updated_at": to_text(endpoint.updated_at),
    }


def portmap_of(row: Row) -> Portmap:
    return Portmap(
        id=row.id,
        endpoint_id=row.endpoint_id,
        protocol=_PROTOCOLS[row.protocol],
        host_ip=_address_of(row.host_ip),
        host_port=row.host_port,
        target_port=row.target_port,
        count=row.count,
        labels=_labels_of(row.labels),
        created_at=_moment_of(row.created_at),
        updated_at=_moment_of(row.updated_at),
    )


def portmap_values(portmap: Portmap) -> Values:
    return {
        "id": portmap.id,
        "endpoint_id": portmap.endpoint_id,
        "protocol": str(portmap.protocol),
        "host_ip": str(portmap.host_ip),
        "host_port": portmap.host_port,
        "target_port": portmap.target_port,
        "count": portmap.count,
        "labels": _json(portmap.labels),
        "created_at": to_text(portmap.created_at),
        "updated_at": to_text(portmap.updated_at),
    }


def allocation_of(row: Row) -> Allocation:
    return Allocation(
        id=row.id,
        network_id=row.network_id,
        address=_address_of(row.address),
        kind=AllocationKind(row.kind),
        endpoint_id=row.endpoint_id,
        note=row.note,
        created_at=_moment_of(row.created_at),
    )


def allocation_values(allocation: Allocation) -> Values:
    return {
        "id": allocation.id,
        "network_id": allocation.network_id,
        "address": str(allocation.address),
        "address_key": key_of(allocation.address),
        "kind": str(allocation.kind),
        "endpoint_id": allocation.endpoint_id,
        "note": allocation.note,
        "created_at": to_text(allocation.created_at),
    }
