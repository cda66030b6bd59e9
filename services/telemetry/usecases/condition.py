"""Observe the condition of the database, and report it as metrics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from services.kit.figures import Figure, gauge
from services.kit.pg import Db
from services.telemetry.domain.condition import HOT_TABLES, OpenSince, TableRows
from services.telemetry.storage import condition


class Condition:
    """The last observation of the database."""

    def __init__(self) -> None:
        self._since = OpenSince()
        self._oldest_s = 0.0
        self._size_bytes = 0
        self._rows: Sequence[TableRows] = ()

    async def look(self, db: Db, now_s: float) -> None:
        """Observe the database; `now_s` is a monotonic time."""
        names = await condition.open_transactions(db)
        self._rows = await condition.rows_of(db, HOT_TABLES)
        self._size_bytes = await condition.size_bytes(db)
        self._oldest_s = self._since.oldest_s(names, now_s)

    def figures(self) -> Iterable[Figure]:
        """Yield metrics about the database."""
        text = "For how long the oldest open transaction has been seen; it keeps dead rows."
        yield gauge("qflow_telemetry_database_oldest_transaction_seconds", text, self._oldest_s)
        text = "Room that the database takes on its disk."
        yield gauge("qflow_telemetry_database_size_bytes", text, self._size_bytes)
        text = "Rows of the tables that change most, by whether they are live or dead."
        rows = [
            ((each.table, state), float(count))
            for each in self._rows
            for state, count in (("live", each.live), ("dead", each.dead))
        ]
        yield Figure("qflow_telemetry_table_rows", text, "gauge", ("table", "state"), rows)
