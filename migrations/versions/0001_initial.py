"""Networks, endpoints, port mappings, allocations."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TIMES = ("created_at", "updated_at")


def _text(name: str, *, nullable: bool = False) -> sa.Column:
    return sa.Column(name, sa.String(), nullable=nullable)


def upgrade() -> None:
    op.create_table(
        "network",
        sa.Column("seq", sa.Integer(), primary_key=True),
        *(_text(name) for name in ("id", "name", "bridge", "subnet", "subnet_first", "subnet_last")),
        _text("gateway", nullable=True),
        _text("ip_range"),
        _text("cursor", nullable=True),
        sa.Column("mtu", sa.Integer(), nullable=False),
        *(sa.Column(name, sa.Boolean(), nullable=False) for name in ("internal", "isolated", "masquerade")),
        sa.Column("labels", sa.JSON(), nullable=False),
        *(_text(name) for name in _TIMES),
        *(sa.UniqueConstraint(name) for name in ("id", "name", "bridge")),
    )
    op.create_index("ix_network_subnet_first", "network", ["subnet_first"])
    op.create_table(
        "endpoint",
        sa.Column("seq", sa.Integer(), primary_key=True),
        *(_text(name) for name in ("id", "network_id", "name", "netns_kind", "netns_value")),
        sa.Column("netns_start_time", sa.Integer(), nullable=False),
        _text("namespace_key"),
        sa.Column("create_namespace", sa.Boolean(), nullable=False),
        *(_text(name) for name in ("address", "mac", "ifname", "host_ifname")),
        sa.Column("default_route", sa.Boolean(), nullable=True),
        _text("default_route_at", nullable=True),
        sa.Column("labels", sa.JSON(), nullable=False),
        *(_text(name) for name in _TIMES),
        *(sa.UniqueConstraint(name) for name in ("id", "name", "host_ifname")),
        sa.UniqueConstraint("namespace_key", "ifname", name="uq_endpoint_namespace_ifname"),
        sa.ForeignKeyConstraint(["network_id"], ["network.id"]),
    )
    op.create_index("ix_endpoint_network_id", "endpoint", ["network_id"])
    op.create_table(
        "portmap",
        sa.Column("seq", sa.Integer(), primary_key=True),
        *(_text(name) for name in ("id", "endpoint_id", "protocol", "host_ip")),
        *(sa.Column(name, sa.Integer(), nullable=False) for name in ("host_port", "target_port")),
        sa.Column("labels", sa.JSON(), nullable=False),
        *(_text(name) for name in _TIMES),
        sa.UniqueConstraint("id"),
        sa.UniqueConstraint("host_port", "protocol", "host_ip", name="uq_portmap_host"),
        sa.ForeignKeyConstraint(["endpoint_id"], ["endpoint.id"]),
    )
    op.create_index("ix_portmap_endpoint_id", "portmap", ["endpoint_id"])
    op.create_table(
        "allocation",
        sa.Column("seq", sa.Integer(), primary_key=True),
        *(_text(name) for name in ("id", "network_id", "address", "address_key", "kind")),
        _text("endpoint_id", nullable=True),
        *(_text(name) for name in ("note", "created_at")),
        sa.UniqueConstraint("id"),
        sa.UniqueConstraint("network_id", "address_key", name="uq_allocation_address"),
        sa.ForeignKeyConstraint(["network_id"], ["network.id"]),
        sa.ForeignKeyConstraint(["endpoint_id"], ["endpoint.id"]),
    )
    op.create_index("ix_allocation_endpoint_id", "allocation", ["endpoint_id"])


def downgrade() -> None:
    for table in ("allocation", "portmap", "endpoint", "network"):
        op.drop_table(table)
