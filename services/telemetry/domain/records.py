"""What telemetry keeps, as values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple, TypeAlias
from uuid import UUID

# Where a page begins: before this moment, and at the same moment before this id.
Position: TypeAlias = tuple[datetime, UUID]
# How far a tail is: behind this transaction, and within it behind this id.
TailPosition: TypeAlias = tuple[int, UUID]
LAST_ID: Final = UUID(int=2**128 - 1)
SEVERITIES: Final = ("info", "warning", "error", "critical")  # from the least
NEWEST: Final[Position] = (datetime(9999, 1, 1, tzinfo=UTC), LAST_ID)


class Metric(NamedTuple):
    """One measurement; about a run, or about the tenant where it names none.

    A tuple, in the order of its columns: thousands are made and written at a time.
    """

    id: UUID
    name: str
    value: float
    unit: str
    execution_id: UUID | None
    tenant_id: UUID
    recorded_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorRecord:
    """One failed attempt of a node, or another fault that was recorded."""

    id: UUID
    error_type: str
    message: str
    stack_trace: str
    severity: str
    execution_id: UUID | None
    node_execution_id: UUID | None
    created_at: datetime
    detail: str | None = None  # JSON text: what user code raised


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """How much of a machine was in use at one moment, 0 to 100."""

    node_name: str
    cpu_percent: float
    memory_percent: float
    disk_percent: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSample:
    """How a machine and its runs were at one moment."""

    id: UUID
    node_name: str
    cpu_percent: float
    memory_percent: float
    disk_percent: float
    active_containers: int
    active_workflows: int
    recorded_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedRun:
    """A run that is over, and since when."""

    id: UUID
    completed_at: datetime
