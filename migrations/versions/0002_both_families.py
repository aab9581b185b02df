"""IPv6 beside IPv4, port ranges, icc, snat_address, spoof_protection."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_SUBNET6 = ("subnet6", "subnet6_first", "subnet6_last", "gateway6", "ip_range6", "cursor6", "snat_address")
_ONE_NAME = {"uq": "uq_%(table_name)s_%(column_0_name)s"}
"""The name that a constraint without one goes by while its table is made anew."""


def upgrade() -> None:
    # added in place: tables that others refer to cannot be made anew while foreign keys are enforced
    for name in _SUBNET6:
        op.add_column("network", sa.Column(name, sa.String(), nullable=True))
    op.add_column("network", sa.Column("icc", sa.Boolean(), nullable=False, server_default=sa.true()))
    op.add_column("network", sa.Column("spoof_protection", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_index("ix_network_subnet6_first", "network", ["subnet6_first"])
    op.add_column("endpoint", sa.Column("address6", sa.String(), nullable=True))
    op.add_column("portmap", sa.Column("count", sa.Integer(), nullable=False, server_default="1"))
    op.create_index("ix_portmap_protocol_port", "portmap", ["protocol", "host_port"])
    op.create_index("ix_portmap_protocol_count", "portmap", ["protocol", "count"])
    op.create_table(
        "port_floor",
        sa.Column("protocol", sa.String(), primary_key=True),
        sa.Column("host_ip", sa.String(), primary_key=True),
        sa.Column("port", sa.Integer(), nullable=False),
    )
    # an endpoint and a gateway hold one address of each version, under one id
    with op.batch_alter_table("allocation", naming_convention=_ONE_NAME) as table:
        table.drop_constraint("uq_allocation_id", type_="unique")
        table.create_index("ix_allocation_id", ["id"])


def downgrade() -> None:
    """Leaves out what the former schema cannot say: IPv6 addresses, mappings of IPv6 or of a range."""
    op.execute("DELETE FROM allocation WHERE address LIKE '%:%'")
    op.execute("DELETE FROM portmap WHERE host_ip LIKE '%:%' OR count > 1")
    with op.batch_alter_table("allocation") as table:
        table.drop_index("ix_allocation_id")
        table.create_unique_constraint("uq_allocation_id", ["id"])
    op.drop_table("port_floor")
    op.drop_index("ix_portmap_protocol_count", "portmap")
    op.drop_index("ix_portmap_protocol_port", "portmap")
    op.drop_column("portmap", "count")
    op.drop_column("endpoint", "address6")
    op.drop_index("ix_network_subnet6_first", "network")
    for name in (*_SUBNET6, "icc", "spoof_protection"):
        op.drop_column("network", name)
