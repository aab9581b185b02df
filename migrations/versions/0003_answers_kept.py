"""Answers kept by Idempotency-Key; ephemeral endpoints."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("endpoint", sa.Column("ephemeral", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_table(
        "kept_answer",
        sa.Column("scope", sa.String(), primary_key=True),
        sa.Column("key", sa.String(), primary_key=True),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("body", sa.String(), nullable=False),
        sa.Column("headers", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
    )
    op.create_index("ix_kept_answer_created_at", "kept_answer", ["created_at"])


def downgrade() -> None:
    op.drop_table("kept_answer")
    op.drop_column("endpoint", "ephemeral")
