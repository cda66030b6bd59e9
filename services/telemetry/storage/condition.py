"""The condition of the database: open transactions, dead rows, size.

Uses only views that every login may read: details of others' transactions, such as their start, are
visible to server administrators only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, LiteralString

from services.kit.pg import Db
from services.telemetry.domain.condition import TableRows

# Every transaction holds a lock on its virtual id, which is unique while the server runs.
_OPEN: Final[LiteralString] = """
    SELECT held.virtualtransaction
      FROM pg_locks AS held
      JOIN pg_stat_activity AS session ON session.pid = held.pid
     WHERE held.locktype = 'virtualxid' AND held.virtualxid = held.virtualtransaction
       AND held.granted AND held.pid <> pg_backend_pid()
       AND session.datid = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


async def open_transactions(db: Db) -> list[str]:
    """Return the virtual ids of other sessions' open transactions in this database."""
    return [row["virtualtransaction"] for row in await db.fetch(_OPEN)]


_ROWS: Final[LiteralString] = """
    SELECT relname::text AS table_name, n_live_tup AS live, n_dead_tup AS dead
      FROM pg_stat_user_tables
     WHERE schemaname = 'public' AND relname = ANY($1::text[])
     ORDER BY relname
"""


async def rows_of(db: Db, tables: Sequence[str]) -> list[TableRows]:
    """Return live and dead rows of tables, as of the server's last count."""
    return [
        TableRows(row["table_name"], live=row["live"], dead=row["dead"])
        for row in await db.fetch(_ROWS, tables)
    ]


_SIZE: Final[LiteralString] = "SELECT pg_database_size(current_database())"


async def size_bytes(db: Db) -> int:
    """Return the size of the database on disk."""
    return int(await db.fetchval(_SIZE))
