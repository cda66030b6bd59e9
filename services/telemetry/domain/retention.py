"""The kinds of records that retention deletes, and how long they are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One kind of record; without `keep_days` its rows have their own expiry."""

    subject: str
    batch: int
    keep_days: int | None = None
    keep_days_min: int = 1
    # Whether tenants may set a shorter retention for their own records.
    by_tenant: bool = False
    # Whether files are deleted with the rows, which a crash of the database cannot restore.
    frees_bytes: bool = False

    @property
    def setting(self) -> str:
        """The environment variable with the number of days."""
        return f"QFLOW_KEEP_{self.subject.upper()}_DAYS"


# In this order: what belongs to executions is deleted with them.
RULES: Final = (
    Rule(subject="executions", keep_days=30, batch=1000, by_tenant=True),
    Rule(subject="node_logs", keep_days=30, batch=5000),
    Rule(subject="temporary_files", batch=1000, frees_bytes=True),
    Rule(subject="containers", keep_days=30, batch=5000),
    Rule(subject="metrics", keep_days=90, batch=5000, by_tenant=True),
    Rule(subject="metric_minutes", keep_days=90, batch=5000),
    Rule(subject="metric_hours", keep_days=730, batch=5000),
    Rule(subject="workflow_hours", keep_days=14, batch=1000),
    Rule(subject="workflow_days", keep_days=730, batch=5000),
    Rule(subject="error_logs", keep_days=90, batch=5000, by_tenant=True),
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
    Rule(subject="environments", keep_days=90, batch=1000),
    Rule(subject="retention_runs", keep_days=90, batch=1000),
    Rule(subject="engine_members", keep_days=7, batch=5000),
    Rule(subject="runner_members", keep_days=7, batch=5000),
)

BATCH_MIN: Final = 100


def smaller(batch: int) -> int:
    """Return the batch size to try after a timeout."""
    return max(BATCH_MIN, batch // 4)


def rule_of(subject: str) -> Rule | None:
    """Return the rule for a kind of record; None if there is none."""
    return next((rule for rule in RULES if rule.subject == subject), None)


@dataclass(slots=True)
class Removed:
    """The result of a pass for one kind of record."""

    subject: str
    rows: int = 0
    is_incomplete: bool = False
    fault: str = ""
    batches: int = 0
    longest_ms: int = 0

    def counted(self, rows: int, took_s: float) -> None:
        """Add a batch."""
        self.rows += rows
        self.batches += 1
        self.longest_ms = max(self.longest_ms, round(took_s * 1000))

    def as_json(self) -> dict[str, Any]:
        """Return the stored form."""
        return {
            "subject": self.subject,
            "rows": self.rows,
            "incomplete": self.is_incomplete,
            "fault": self.fault,
            "batches": self.batches,
            "longest_ms": self.longest_ms,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionRun:
    """A pass of retention, requested or scheduled."""

    id: UUID
    state: str
    requested_by: UUID | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    removed: Sequence[Removed]


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantRule:
    """A tenant's own retention for one kind of record."""

    subject: str
    keep_days: int
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """The number of expired rows of one kind; None if counting timed out."""

    subject: str
    count: int | None
    has_more: bool = False
