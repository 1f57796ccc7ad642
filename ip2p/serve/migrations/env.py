"""Alembic's entry: runs migrations on the connection that `open_history` hands over."""

from alembic import context

from ip2p.serve.history import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
