"""What may be forgotten, and how long it is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One kind of record; with no days to keep, its rows carry their own end."""

    subject: str
    batch: int
    keep_days: int | None = None
    keep_days_min: int = 1
    # Whether a tenant may keep its own for less long.
    by_tenant: bool = False
    # Whether bytes go with each row, which no crash of the database brings back.
    frees_bytes: bool = False

    @property
    def setting(self) -> str:
        """The environment variable that says how many days to keep it."""
        return f"QFLOW_KEEP_{self.subject.upper()}_DAYS"


# In this order: what hangs on executions goes with them.
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
    """Give the batch to try after one that took too long."""
    return max(BATCH_MIN, batch // 4)


def rule_of(subject: str) -> Rule | None:
    """Find a rule by what it is about."""
    return next((rule for rule in RULES if rule.subject == subject), None)


@dataclass(slots=True)
class Removed:
    """What a pass did with one kind of record."""

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
        """Give it as it is kept."""
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
    """One pass of retention, asked for or due."""

    id: UUID
    state: str
    requested_by: UUID | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    removed: Sequence[Removed]


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantRule:
    """For how long a tenant keeps one kind of its own records."""

    subject: str
    keep_days: int
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """How much of one kind is due; no count where the database took too long."""

    subject: str
    count: int | None
    has_more: bool = False
