"""What may be forgotten, and how long it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One kind of record; with no days to keep, its rows carry their own end."""

    subject: str
    batch: int
    keep_days: int | None = None
    keep_days_min: int = 1

    @property
    def setting(self) -> str:
        """The environment variable that says how many days to keep it."""
        return f"QFLOW_KEEP_{self.subject.upper()}_DAYS"


# In this order: what hangs on executions goes with them.
RULES: Final = (
    Rule(subject="executions", keep_days=30, batch=1000),
    Rule(subject="node_logs", keep_days=30, batch=5000),
    Rule(subject="temporary_files", batch=1000),
    Rule(subject="containers", keep_days=30, batch=5000),
    Rule(subject="metrics", keep_days=90, batch=5000),
    Rule(subject="error_logs", keep_days=90, batch=5000),
    Rule(subject="system_health", keep_days=30, batch=5000),
    Rule(subject="file_access_logs", keep_days=90, batch=5000),
    Rule(subject="audit_records", keep_days=365, keep_days_min=30, batch=5000),
    Rule(subject="sessions", batch=5000),
    Rule(subject="idempotency_keys", batch=5000),
    Rule(subject="outbox_events", keep_days=7, batch=5000),
    Rule(subject="schedule_ticks", keep_days=30, batch=5000),
    Rule(subject="schedule_backfills", keep_days=30, batch=5000),
    Rule(subject="event_deliveries", keep_days=30, batch=5000),
    Rule(subject="cached_results", batch=5000),
    Rule(subject="pins", keep_days=30, batch=1000),
    Rule(subject="deleted_workflows", keep_days=90, batch=100),
    Rule(subject="deleted_nodes", keep_days=90, batch=100),
    Rule(subject="engine_members", keep_days=7, batch=5000),
    Rule(subject="runner_members", keep_days=7, batch=5000),
)

BATCH_MIN: Final = 100


def smaller(batch: int) -> int:
    """Give the batch to try after one that took too long."""
    return max(BATCH_MIN, batch // 4)
