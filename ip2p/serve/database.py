"""The database of edits and votes: opened, brought up to date by Alembic, and never waited for without end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event

from ip2p.errors import DataError
from ip2p.params import ServeParams

_SILENT = 10
"""Seconds that Postgres may say nothing, in a statement or at all, before whoever asked is told so."""
_ALIVE = {"connect_timeout": 5, "tcp_user_timeout": 1000 * _SILENT, "keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3}
_LIMITS = f"-c statement_timeout={1000 * _SILENT} -c lock_timeout={500 * _SILENT}"
_POSTGRES: dict[str, Any] = {"pool_timeout": _SILENT, "connect_args": {**_ALIVE, "options": _LIMITS}}


def open_database(section: ServeParams) -> Engine:
    """Open the database, bringing its schema up to date. Raises `DataError` if it cannot be reached."""
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError
    from sqlalchemy.exc import SQLAlchemyError

    url = os.environ.get("IP2P_DATABASE_URL", section.database)
    if url.startswith("sqlite:///"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    try:
        engine = create_engine(url, pool_pre_ping=True, hide_parameters=True, **(_POSTGRES if url.startswith("postgresql") else {}))
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _durable)
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except (SQLAlchemyError, CommandError, ImportError) as error:
        raise DataError(f"serve.database: cannot be opened ({type(error).__name__}); check its URL and that it is up") from error
    return engine


def _durable(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
