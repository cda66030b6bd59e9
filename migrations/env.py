"""What alembic runs: take the migrators' lock, make the roles, bring the schema to the asked revision.

Every migration is a transaction of its own with a short lock_timeout, so that a migrator never
queues behind a long transaction with the whole service queueing behind it; the caller tries again.
"""

from __future__ import annotations

import os
import time

import psycopg
from alembic import context
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from migrations.roles import ensure_roles
from migrations.urls import driver_url

# One migrator at a time in one database. Two keys: a name for "Qflow" and one for "migrations".
_MUTEX = "SELECT pg_try_advisory_xact_lock(1902931319, 1)"
_MUTEX_PAUSE_S = 0.1
# Nothing may wait for a table longer than this: the running services queue behind the waiter.
_LOCK_TIMEOUT = os.environ.get("QFLOW_MIGRATE_LOCK_TIMEOUT", "1s")


def _connect(url: str) -> psycopg.Connection:
    connection = psycopg.connect(url, application_name="qflow_migrate")
    connection.execute(
        "SELECT set_config('lock_timeout', %s, false), set_config('statement_timeout', '0', false),"
        " set_config('idle_in_transaction_session_timeout', '0', false),"
        " set_config('client_min_messages', 'warning', false)",
        (_LOCK_TIMEOUT,),
    )
    connection.commit()
    return connection


def _enter(mutex: psycopg.Connection) -> None:
    """Take the lock, asked for again and again: a statement that waited would hold a snapshot.

    For its end an index that is built CONCURRENTLY by whoever has the lock would wait, and never
    see it.
    """
    while mutex.execute(_MUTEX).fetchone() != (True,):
        time.sleep(_MUTEX_PAUSE_S)


def run_migrations() -> None:
    """Run inside the migrators' lock; a killed migrator frees it with its connection."""
    if context.is_offline_mode():
        raise SystemExit("migrations are run against a server: `python -m migrations upgrade`")
    url = driver_url(context.config.attributes.get("url") or os.environ["QFLOW_DATABASE_URL"])
    with psycopg.connect(url, application_name="qflow_migrate_mutex") as mutex:
        mutex.execute("SET LOCAL lock_timeout = 0")
        mutex.execute("SET LOCAL statement_timeout = 0")
        mutex.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        _enter(mutex)
        with _connect(url) as roles:
            ensure_roles(roles)
        engine = create_engine(
            "postgresql+psycopg://", creator=lambda: _connect(url), poolclass=NullPool
        )
        with engine.connect() as connection:
            context.configure(connection=connection, transaction_per_migration=True)
            with context.begin_transaction():
                context.run_migrations()


run_migrations()
