"""Alembic's entry: runs migrations on the connection that `open_history` hands over."""

from alembic import context

from ip2p.serve.history import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata)
with context.begin_transaction():
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")  # an index of many edits takes its time
    context.run_migrations()
