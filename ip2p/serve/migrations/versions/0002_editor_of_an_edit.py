"""The digest of the editor that made an edit."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Edits of before have none."""
    op.add_column("edits", sa.Column("editor", sa.String(), nullable=True))


def downgrade() -> None:
    """Drop it."""
    op.drop_column("edits", "editor")
