"""The condition of the database: what operators should see before it becomes a problem."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

# Tables whose rows are updated often or deleted in bulk.
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
    """The rows of a table; dead ones take space until a vacuum."""

    table: str
    live: int
    dead: int


@dataclass(slots=True)
class OpenSince:
    """How long transactions have been seen open, which is at most their age."""

    _first_seen_s: dict[str, float] = field(default_factory=dict)

    def oldest_s(self, names: Iterable[str], now_s: float) -> float:
        """Update with the transactions open now.

        Returns how long the oldest one has been seen, in seconds.
        """
        known = self._first_seen_s
        self._first_seen_s = {name: known.get(name, now_s) for name in names}
        return now_s - min(self._first_seen_s.values(), default=now_s)
