"""The tables, for migrations and their checks: who reads and writes rows needs their names only.

Times are ISO 8601 text in UTC; addresses sort by a fixed-width hexadecimal key."""

from __future__ import annotations

from sqlalchemy import JSON, Column, UniqueConstraint
from sqlmodel import Field, SQLModel


class NetworkRow(SQLModel, table=True):
    """A network. `..._first` and `..._last` find overlaps; `cursor...` is the last automatic address."""

    __tablename__ = "network"

    seq: int | None = Field(default=None, primary_key=True)
    id: str = Field(unique=True)
    name: str = Field(unique=True)
    bridge: str = Field(unique=True)
    subnet: str
    subnet_first: str = Field(index=True)
    subnet_last: str
    gateway: str | None
    ip_range: str
    cursor: str | None = None
    subnet6: str | None
    subnet6_first: str | None = Field(index=True)
    subnet6_last: str | None
    gateway6: str | None
    ip_range6: str | None
    cursor6: str | None = None
    mtu: int
    internal: bool
    isolated: bool
    icc: bool
    masquerade: bool
    snat_address: str | None
    spoof_protection: bool
    labels: dict[str, str] = Field(sa_column=Column(JSON, nullable=False))
    created_at: str
    updated_at: str


class EndpointRow(SQLModel, table=True):
    """An endpoint. `namespace_key` is the same for all endpoints of one namespace, whatever they call it."""

    __tablename__ = "endpoint"
    __table_args__ = (UniqueConstraint("namespace_key", "ifname", name="uq_endpoint_namespace_ifname"),)

    seq: int | None = Field(default=None, primary_key=True)
    id: str = Field(unique=True)
    network_id: str = Field(foreign_key="network.id", index=True)
    name: str = Field(unique=True)
    netns_kind: str
    netns_value: str
    netns_start_time: int
    namespace_key: str
    create_namespace: bool
    ephemeral: bool
    address: str
    address6: str | None
    mac: str
    ifname: str
    host_ifname: str = Field(unique=True)
    default_route: bool | None
    default_route_at: str | None
    labels: dict[str, str] = Field(sa_column=Column(JSON, nullable=False))
    uid: int | None
    created_at: str
    updated_at: str


class PortmapRow(SQLModel, table=True):
    """Published ports, `count` from `host_port` on."""

    __tablename__ = "portmap"
    __table_args__ = (UniqueConstraint("host_port", "protocol", "host_ip", name="uq_portmap_host"),)

    seq: int | None = Field(default=None, primary_key=True)
    id: str = Field(unique=True)
    endpoint_id: str = Field(foreign_key="endpoint.id", index=True)
    protocol: str
    host_ip: str
    host_port: int
    target_port: int
    count: int
    labels: dict[str, str] = Field(sa_column=Column(JSON, nullable=False))
    created_at: str
    updated_at: str


class AllocationRow(SQLModel, table=True):
    """A held address; the constraint is what makes two holders impossible. `id` is its holder's."""

    __tablename__ = "allocation"
    __table_args__ = (UniqueConstraint("network_id", "address_key", name="uq_allocation_address"),)

    seq: int | None = Field(default=None, primary_key=True)
    id: str
    network_id: str = Field(foreign_key="network.id")
    address: str
    address_key: str
    kind: str
    endpoint_id: str | None = Field(default=None, foreign_key="endpoint.id", index=True)
    note: str
    created_at: str


class KeptAnswerRow(SQLModel, table=True):
    """The answer to a POST with an Idempotency-Key; `scope` is whose key it is."""

    __tablename__ = "kept_answer"

    scope: str = Field(primary_key=True)
    key: str = Field(primary_key=True)
    fingerprint: str
    status: int
    body: str
    headers: dict[str, str] = Field(sa_column=Column(JSON, nullable=False))
    created_at: str = Field(index=True)
