"""The answers' shapes."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from app.model.ports import ports_value
from app.model.spec import AllocationKind, Endpoint, NetnsKind, Network, Portmap, Protocol
from app.model.status import State, Status


class Answer(BaseModel):
    """Built by us from checked values."""

    model_config = ConfigDict(from_attributes=True, defer_build=True)  # see app.services.requests.Request


class StatusOut(Answer):
    """How the object fares in the kernel."""

    state: State
    message: str = Field(description="What differs, where something does; else empty.")
    since: datetime


class NetworkOut(Answer):
    """A network."""

    id: str
    name: str
    bridge: str
    subnet: str
    gateway: str | None
    ip_range: str
    subnet6: str | None
    gateway6: str | None
    ip_range6: str | None
    mtu: int
    internal: bool
    isolated: bool
    icc: bool
    masquerade: bool
    snat_address: str | None
    spoof_protection: bool
    labels: dict[str, str]
    created_at: datetime
    updated_at: datetime
    status: StatusOut


class EndpointOut(Answer):
    """An endpoint. Of `namespace`, `pid` and `netns` one is set."""

    id: str
    name: str
    network: str = Field(description="The network's id.")
    network_name: str
    namespace: str | None
    pid: int | None
    netns: str | None
    create_namespace: bool
    address: str
    prefix_len: int
    gateway: str | None
    address6: str | None
    prefix_len6: int | None
    gateway6: str | None
    mac: str
    ifname: str
    host_ifname: str
    default_route: bool | None
    ephemeral: bool
    labels: dict[str, str]
    created_at: datetime
    updated_at: datetime
    status: StatusOut


class PortmapOut(Answer):
    """A published port, or a range of them."""

    id: str
    endpoint: str = Field(description="The endpoint's id.")
    endpoint_name: str
    protocol: Protocol
    host_ip: str
    host_port: int | str = Field(description='An integer for one, `"8000-8010"` for a range.')
    target_port: int
    labels: dict[str, str]
    created_at: datetime
    updated_at: datetime
    status: StatusOut


class HolderOut(Answer):
    """Who holds an address: an endpoint or gateway by its id and name, a reservation by its note."""

    kind: AllocationKind
    id: str
    name: str


class AllocationOut(Answer):
    """A held address."""

    id: str
    address: str
    network: str
    network_name: str
    holder: HolderOut
    note: str
    created_at: datetime


class PoolOut(Answer):
    """A network's addresses of one IP version, counted."""

    network: str
    network_name: str
    subnet: str
    ip_range: str
    size: int = Field(description="Addresses that an interface may carry.")
    used: int = Field(description="Held by endpoints.")
    reserved: int = Field(description="The gateway's and the reservations.")
    free: int


class VersionOut(Answer):
    """This daemon."""

    version: str
    firewall: str = Field(description="The backend in use.")


class ReadyOut(Answer):
    """What readiness hangs on."""

    ready: bool
    reconciled: bool
    worker: bool
    database: bool


class ImportOut(Answer):
    """How many objects were made."""

    networks: int
    endpoints: int
    portmaps: int
    reservations: int


class HealthOut(Answer):
    """The process is up."""

    status: str


class Problem(BaseModel):
    """What went wrong (RFC 9457). `code` is stable; `detail` says with which value, and what would work."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    code: str


def network_out(network: Network, status: Status) -> NetworkOut:
    plan, plan6 = network.ipv4, network.plan(6)
    return NetworkOut(
        id=network.id,
        name=network.name,
        bridge=network.bridge,
        subnet=str(plan.subnet),
        gateway=_text(plan.gateway),
        ip_range=str(plan.ip_range),
        subnet6=_text(plan6 and plan6.subnet),
        gateway6=_text(plan6 and plan6.gateway),
        ip_range6=_text(plan6 and plan6.ip_range),
        mtu=network.mtu,
        internal=network.internal,
        isolated=network.isolated,
        icc=network.icc,
        masquerade=network.masquerade,
        snat_address=_text(network.snat_address),
        spoof_protection=network.spoof_protection,
        labels=dict(network.labels),
        created_at=network.created_at,
        updated_at=network.updated_at,
        status=StatusOut.model_validate(status),
    )


def endpoint_out(endpoint: Endpoint, network: Network, status: Status) -> EndpointOut:
    ref, plan6 = endpoint.netns, network.plan(6)
    return EndpointOut(
        id=endpoint.id,
        name=endpoint.name,
        network=network.id,
        network_name=network.name,
        namespace=ref.value if ref.kind is NetnsKind.NAME else None,
        pid=int(ref.value) if ref.kind is NetnsKind.PID else None,
        netns=ref.value if ref.kind is NetnsKind.PATH else None,
        create_namespace=endpoint.create_namespace,
        address=str(endpoint.address(4)),
        prefix_len=network.ipv4.subnet.prefixlen,
        gateway=_text(network.gateway_for(4)),
        address6=_text(endpoint.address(6)),
        prefix_len6=plan6.subnet.prefixlen if plan6 is not None else None,
        gateway6=_text(network.gateway_for(6)),
        mac=endpoint.mac,
        ifname=endpoint.ifname,
        host_ifname=endpoint.host_ifname,
        default_route=endpoint.default_route,
        ephemeral=endpoint.ephemeral,
        labels=dict(endpoint.labels),
        created_at=endpoint.created_at,
        updated_at=endpoint.updated_at,
        status=StatusOut.model_validate(status),
    )


def portmap_out(portmap: Portmap, endpoint: Endpoint, status: Status) -> PortmapOut:
    return PortmapOut(
        id=portmap.id,
        endpoint=endpoint.id,
        endpoint_name=endpoint.name,
        protocol=portmap.protocol,
        host_ip=str(portmap.host_ip),
        host_port=ports_value(portmap.host_port, portmap.count),
        target_port=portmap.target_port,
        labels=dict(portmap.labels),
        created_at=portmap.created_at,
        updated_at=portmap.updated_at,
        status=StatusOut.model_validate(status),
    )


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
