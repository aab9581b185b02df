"""What is looked up is looked up in memory: no table of its own, and no index, for that."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_table("port_floor")
    op.drop_index("ix_portmap_protocol_port", "portmap")
    op.drop_index("ix_portmap_protocol_count", "portmap")
    op.drop_index("ix_allocation_id", "allocation")


def downgrade() -> None:
    op.create_index("ix_allocation_id", "allocation", ["id"])
    op.create_index("ix_portmap_protocol_count", "portmap", ["protocol", "count"])
    op.create_index("ix_portmap_protocol_port", "portmap", ["protocol", "host_port"])
    op.create_table(
        "port_floor",
        sa.Column("protocol", sa.String(), nullable=False),
        sa.Column("host_ip", sa.String(), nullable=False),
        sa.Column("port", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("protocol", "host_ip"),
    )
