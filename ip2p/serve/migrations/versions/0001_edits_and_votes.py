"""Edits and votes."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create both tables."""
    op.create_table(
        "edits",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("created", sa.Float(), nullable=False, index=True),
        *(sa.Column(n, sa.String(), nullable=False) for n in ("door", "version", "instruction")),
        *(sa.Column(n, sa.Float(), nullable=False) for n in ("text_guidance", "image_guidance")),
        sa.Column("steps", sa.Integer(), nullable=False),
        sa.Column("solver", sa.String(), nullable=False),
        *(sa.Column(n, sa.Float(), nullable=False) for n in ("guidance_from", "guidance_until")),
        sa.Column("guidance_every", sa.Integer(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        *(sa.Column(n, sa.Integer(), nullable=False) for n in ("width", "height")),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("mask", sa.String(), nullable=True),
        sa.Column("picture", sa.String(), nullable=False),
    )
    op.create_table(
        "votes",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("created", sa.Float(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("edit", sa.String(), sa.ForeignKey("edits.id"), nullable=False, index=True),
        sa.Column("other", sa.String(), sa.ForeignKey("edits.id"), nullable=True, index=True),
        sa.Column("value", sa.Integer(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("comment", sa.String(), nullable=False),
        sa.Column("voter", sa.String(), nullable=False),
    )


def downgrade() -> None:
    """Drop both tables."""
    op.drop_table("votes")
    op.drop_table("edits")
