"""The condition of the database: what an operator should know before it hurts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

# Rows of these are written over and over, or removed by the thousand.
HOT_TABLES: Final = (
    "containers",
    "engine_members",
    "error_logs",
    "limit_slots",
    "metric_rollups",
    "node_executions",
    "outbox_events",
    "performance_metrics",
    "runner_members",
    "workflow_executions",
    "workflow_rollups",
)


@dataclass(frozen=True, slots=True)
class TableRows:
    """What lies in a table; the dead take room until somebody vacuums."""

    table: str
    live: int
    dead: int


@dataclass(slots=True)
class OpenSince:
    """Since when transactions have been seen open: no longer than they are, and often shorter."""

    _first_seen_s: dict[str, float] = field(default_factory=dict)

    def oldest_s(self, names: Iterable[str], now_s: float) -> float:
        """Take those that are open now; gives for how long the oldest has been seen."""
        known = self._first_seen_s
        self._first_seen_s = {name: known.get(name, now_s) for name in names}
        return now_s - min(self._first_seen_s.values(), default=now_s)
