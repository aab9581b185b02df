"""Which user made an endpoint."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("endpoint", sa.Column("uid", sa.Integer(), nullable=True))


def downgrade() -> None:
    op.drop_column("endpoint", "uid")
