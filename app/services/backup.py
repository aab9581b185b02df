"""The desired state out of the store, and into an empty one."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any

import app
from app.model import ipam
from app.model.errors import Invalid, NamespaceMissing, NameTaken, NotEmpty
from app.model.ports import parse_ports, ports_value
from app.model.spec import (
    AddressPlan,
    Allocation,
    AllocationKind,
    Endpoint,
    NetnsKind,
    NetnsRef,
    Network,
    Portmap,
    Protocol,
    Version,
)
from app.services import addresses, endpoints, foreign, hostports, networks, portmaps
from app.services.context import HOST, Change, Context, Key, unique
from app.services.document import (
    VERSION,
    Document,
    SavedEndpoint,
    SavedNetwork,
    SavedPortmap,
    SavedReservation,
)
from app.store.repository import Repository

_OF_NETWORK = ("mtu", "internal", "isolated", "icc", "masquerade", "spoof_protection")
_OF_ENDPOINT = (
    "create_namespace",
    "ephemeral",
    "mac",
    "ifname",
    "host_ifname",
    "default_route",
    "default_route_at",
    "uid",
)
_OF_ALL = ("id", "labels", "created_at", "updated_at")


def _same(source: Any, *names: str) -> dict[str, Any]:
    return {name: _in_utc(getattr(source, name)) for name in names}


def _in_utc(value: Any) -> Any:
    """A moment as the store gives it back: an object's tag is of what it looks like."""
    return value.astimezone(UTC) if isinstance(value, datetime) else value


def _text(value: object) -> str | None:
    return None if value is None else str(value)


# --- out


def save(store: Repository) -> Document:
    """The document of all that is stored, as one transaction sees it; what is stored is not checked again."""
    held = store.allocations()
    return Document.model_construct(
        version=VERSION,
        written_by=app.__version__,
        written_at=datetime.now(UTC),
        networks=[_saved_network(one) for one in store.networks()],
        endpoints=[_saved_endpoint(one) for one in store.endpoints()],
        portmaps=[_saved_portmap(one) for one in store.portmaps()],
        reservations=[_saved_reservation(one) for one in held if one.kind is AllocationKind.RESERVATION],
    )


def _saved_network(one: Network) -> SavedNetwork:
    plan, plan6 = one.ipv4, one.plan(6)
    return SavedNetwork.model_construct(
        subnet=str(plan.subnet),
        gateway=_text(plan.gateway),
        ip_range=str(plan.ip_range),
        subnet6=_text(plan6 and plan6.subnet),
        gateway6=_text(plan6 and plan6.gateway),
        ip_range6=_text(plan6 and plan6.ip_range),
        snat_address=_text(one.snat_address),
        **_same(one, "name", "bridge", *_OF_NETWORK, *_OF_ALL),
    )


def _saved_endpoint(one: Endpoint) -> SavedEndpoint:
    return SavedEndpoint.model_construct(
        network=one.network_id,
        netns_kind=one.netns.kind.value,
        netns=one.netns.value,
        pid_start_time=one.netns.start_time,
        address=str(one.address(4)),
        address6=_text(one.address(6)),
        **_same(one, "name", "namespace_key", *_OF_ENDPOINT, *_OF_ALL),
    )


def _saved_portmap(one: Portmap) -> SavedPortmap:
    return SavedPortmap.model_construct(
        endpoint=one.endpoint_id,
        protocol=str(one.protocol),
        host_ip=str(one.host_ip),
        host_port=ports_value(one.host_port, one.count),
        **_same(one, "target_port", *_OF_ALL),
    )


def _saved_reservation(one: Allocation) -> SavedReservation:
    return SavedReservation.model_construct(
        network=one.network_id, address=str(one.address), **_same(one, "id", "note", "created_at")
    )


# --- in


def restore(context: Context, document: Document) -> Change:
    """All of it, or nothing. Raises Forbidden, NotEmpty, and what making each object by itself would raise.

    A namespace that is not there is no obstacle: its endpoints wait for it, as after a reboot.
    """
    context.require_every_network("import a document")
    foreign.require_any(context, "import a document")
    there = context.store.networks()
    if there:
        raise NotEmpty(
            f"there are {len(there)} networks already, such as '{there[0].name}', and an import is for a daemon "
            "that has none; delete them first (?force=true takes all that is on them)"
        )
    _require_own_ids(document)
    keys: list[Key] = [HOST]
    for network in document.networks:
        keys.append(("network", _network(context, network)))
        context.progress()
    for endpoint in document.endpoints:
        keys += [("endpoint", _endpoint(context, endpoint)), ("namespace", endpoint.namespace_key)]
        context.progress()
    for portmap in document.portmaps:
        keys.append(("portmap", _portmap(context, portmap)))
        context.progress()
    for reservation in document.reservations:
        keys.append(("allocation", _reservation(context, reservation)))
        context.progress()
    return Change("", unique(keys))


def _require_own_ids(document: Document) -> None:
    ids = [one.id for one in document.networks]
    ids += [one.id for one in document.endpoints]
    ids += [one.id for one in document.portmaps]
    ids += [one.id for one in document.reservations]
    double = [identity for identity, times in Counter(ids).items() if times > 1]
    if double:
        raise Invalid(f"two objects of the document have the id {double[0]}; each has its own")


def _network(context: Context, saved: SavedNetwork) -> str:
    networks.require_free_name(context, saved.name)
    networks.require_free_bridge(context, saved.bridge)
    plans = [_plan("subnet", saved.subnet, saved.gateway, saved.ip_range)]
    if saved.subnet6 is not None:
        plans.append(_plan("subnet6", saved.subnet6, saved.gateway6, saved.ip_range6))
    for plan, version in zip(plans, (4, 6), strict=False):
        if plan.version != version:
            raise Invalid(f"network '{saved.name}': {plan.subnet} is not IPv{version}")
    source = saved.snat_address
    network = Network(
        plans=tuple(plans),
        snat_address=ipam.parse_address(source, "snat_address") if source is not None else None,
        **_same(saved, "name", "bridge", *_OF_NETWORK, *_OF_ALL),
    )
    networks.add(context, network)
    return network.id


def _plan(field: str, subnet: str, gateway: str | None, ip_range: str | None) -> AddressPlan:
    return AddressPlan(
        ipam.parse_network(subnet, field),
        ipam.parse_address(gateway, "gateway") if gateway is not None else None,
        ipam.parse_network(ip_range or subnet, "ip_range"),
    )


def _endpoint(context: Context, saved: SavedEndpoint) -> str:
    network = context.network(saved.network)
    ref = NetnsRef(NetnsKind(saved.netns_kind), saved.netns, saved.pid_start_time)
    _check_place(context, saved, ref)
    if context.store.endpoint_named(saved.name) is not None:
        raise NameTaken(f"two endpoints of the document have the name '{saved.name}'")
    if any(one.ifname == saved.ifname for one in context.store.endpoints_in(saved.namespace_key)):
        raise Invalid(f"endpoint '{saved.name}': another one in its namespace has the ifname '{saved.ifname}'")
    endpoints.require_room(context, network)
    endpoints.require_free_host_ifname(context, saved.host_ifname)
    given: dict[Version, str | None] = {4: saved.address, 6: saved.address6}
    held = []
    for plan in network.plans:
        text = given.pop(plan.version)
        if text is None:
            raise Invalid(f"endpoint '{saved.name}' lacks an address of {plan.subnet}")
        address = ipam.parse_address(text, "address")
        addresses.require_free(context, network, plan, address, "address")
        held.append(address)
    if any(text is not None for text in given.values()):
        raise Invalid(f"endpoint '{saved.name}' has an address6, and network '{network.name}' no subnet6")
    endpoint = Endpoint(
        network_id=network.id,
        netns=ref,
        addresses=tuple(held),
        **_same(saved, "name", "namespace_key", *_OF_ENDPOINT, *_OF_ALL),
    )
    endpoints.add(context, network, endpoint)
    return endpoint.id


def _check_place(context: Context, saved: SavedEndpoint, ref: NetnsRef) -> None:
    """Raises Invalid for what is no namespace, or the host's own."""
    match ref.kind:
        case NetnsKind.NAME:
            fine = ref.value not in (".", "..") and not {"/", "\0"} & set(ref.value)
        case NetnsKind.PID:
            fine = ref.value.isascii() and ref.value.isdigit()
        case NetnsKind.PATH:
            fine = ref.value.startswith("/") and "\0" not in ref.value
    if not fine:
        raise Invalid(f"endpoint '{saved.name}': netns '{ref.value}' is not a {ref.kind}")
    try:
        context.host.resolve(ref)
    except NamespaceMissing:
        return


def _portmap(context: Context, saved: SavedPortmap) -> str:
    host_port, count = parse_ports(saved.host_port)
    portmap = Portmap(
        endpoint_id=context.endpoint(saved.endpoint).id,
        protocol=Protocol(saved.protocol),
        host_ip=hostports.host_ip(context, saved.host_ip),
        host_port=host_port,
        count=count,
        **_same(saved, "target_port", *_OF_ALL),
    )
    portmaps.add(context, portmap)
    return portmap.id


def _reservation(context: Context, saved: SavedReservation) -> str:
    network = context.network(saved.network)
    plan = addresses.plan_for(network, saved.address)
    address = ipam.parse_address(saved.address, "address")
    addresses.require_free(context, network, plan, address, "address")
    addresses.hold(
        context,
        network,
        address,
        AllocationKind.RESERVATION,
        holder_id=saved.id,
        note=saved.note,
        created_at=_in_utc(saved.created_at),
    )
    return saved.id
