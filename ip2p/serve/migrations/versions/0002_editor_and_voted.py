"""The digest of the editor that made an edit, whether it has a vote, and indexes for what is asked at each new edit."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
_PICTURES = ("source", "mask", "picture")


def upgrade() -> None:
    """Edits of before have no editor's digest."""
    op.add_column("edits", sa.Column("editor", sa.String(), nullable=True))
    op.add_column("edits", sa.Column("voted", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.execute("UPDATE edits SET voted = TRUE WHERE id IN (SELECT edit FROM votes UNION SELECT other FROM votes WHERE other IS NOT NULL)")
    op.create_index("ix_edits_unvoted", "edits", ["created"], sqlite_where=sa.text("voted = 0"), postgresql_where=sa.text("NOT voted"))
    for name in _PICTURES:
        op.create_index(f"ix_edits_{name}", "edits", [name])


def downgrade() -> None:
    """Drop them."""
    for name in ("unvoted", *_PICTURES):
        op.drop_index(f"ix_edits_{name}", "edits")
    op.drop_column("edits", "voted")
    op.drop_column("edits", "editor")
