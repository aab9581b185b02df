"""The desired state as one document: what `export` writes and `import` reads.

A version of it only ever gains fields that have defaults; anything else is a new version, and then the one before
is translated here, so that every document ever written can be read.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, ConfigDict, Field, field_validator

from app.services.requests import (
    Address,
    Cidr,
    Ifname,
    Labels,
    Mac,
    Mtu,
    Name,
    Ports,
    ProtocolName,
    Request,
    TargetPort,
)

VERSION = 1

Id = Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
Moment = Annotated[AwareDatetime, Field(strict=False)]
NamespaceKey = Annotated[
    str,
    Field(
        pattern=r"^(name:([^./]|\.\.?[^./])[^/]{0,254}|pid:[0-9]{1,10}@[0-9]{1,20}|path:/.{1,4095})$",
        description="By what the daemon knows the namespace; the same for all endpoints in it.",
    ),
]


class SavedNetwork(Request):
    """A network."""

    id: Id
    name: Name
    bridge: Ifname
    subnet: Cidr
    gateway: Address | None = None
    ip_range: Cidr
    subnet6: Cidr | None = None
    gateway6: Address | None = None
    ip_range6: Cidr | None = None
    mtu: Mtu
    internal: bool = False
    isolated: bool = True
    icc: bool = True
    masquerade: bool = True
    snat_address: Address | None = None
    spoof_protection: bool = False
    labels: Labels = Field(default_factory=dict)
    created_at: Moment
    updated_at: Moment


class SavedEndpoint(Request):
    """An endpoint."""

    id: Id
    name: Annotated[str, Field(min_length=1, max_length=256)]
    network: Id
    netns_kind: Literal["name", "pid", "path"]
    netns: Annotated[str, Field(min_length=1, max_length=4096)]
    pid_start_time: Annotated[int, Field(ge=0, le=1 << 62)] = 0
    namespace_key: NamespaceKey
    create_namespace: bool
    ephemeral: bool = False
    address: Address
    address6: Address | None = None
    mac: Mac
    ifname: Ifname
    host_ifname: Ifname
    default_route: bool | None = None
    default_route_at: Moment | None = None
    uid: Annotated[
        int | None, Field(ge=0, lt=(1 << 32) - 1, description="The user who made it on the unix socket.")
    ] = None
    labels: Labels = Field(default_factory=dict)
    created_at: Moment
    updated_at: Moment


class SavedPortmap(Request):
    """A port mapping."""

    id: Id
    endpoint: Id
    protocol: ProtocolName
    host_ip: Address
    host_port: Ports
    target_port: TargetPort
    labels: Labels = Field(default_factory=dict)
    created_at: Moment
    updated_at: Moment


class SavedReservation(Request):
    """A reserved address."""

    id: Id
    network: Id
    address: Address
    note: Annotated[str, Field(max_length=4096)] = ""
    created_at: Moment


class Document(Request):
    """Everything that was asked for."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "version": VERSION,
                    "written_by": "0.1.0",
                    "written_at": "2026-01-02T03:04:05Z",
                    "networks": [],
                    "endpoints": [],
                    "portmaps": [],
                    "reservations": [],
                }
            ]
        }
    )

    version: Annotated[int, Field(ge=1, description="Of this format; newer daemons read all older ones.")]
    written_by: Annotated[str, Field(max_length=256)] = ""
    written_at: Moment | None = None
    networks: list[SavedNetwork]
    endpoints: list[SavedEndpoint]
    portmaps: list[SavedPortmap]
    reservations: list[SavedReservation]

    @field_validator("version", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if isinstance(value, int) and value > VERSION:
            raise ValueError(f"version {value} is of a newer Bridgehead, this one reads up to {VERSION}: upgrade first")
        return value
