"""The records of telemetry."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple, TypeAlias
from uuid import UUID

# A page's cursor: before this time, or at the same time before this id.
Position: TypeAlias = tuple[datetime, UUID]
# A stream's cursor: after this transaction, or within it after this id.
TailPosition: TypeAlias = tuple[int, UUID]
LAST_ID: Final = UUID(int=2**128 - 1)
SEVERITIES: Final = ("info", "warning", "error", "critical")  # in ascending order
NEWEST: Final[Position] = (datetime(9999, 1, 1, tzinfo=UTC), LAST_ID)


class Metric(NamedTuple):
    """A measurement of a run, or of the tenant if `execution_id` is None.

    A tuple in column order, since thousands are created and written at a time.
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
    """An error log: a failed attempt of a node, or another error."""

    id: UUID
    error_type: str
    message: str
    stack_trace: str
    severity: str
    execution_id: UUID | None
    node_execution_id: UUID | None
    created_at: datetime
    detail: str | None = None  # JSON text: the exception of user code


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """The usage of a machine at one moment, in percent."""

    node_name: str
    cpu_percent: float
    memory_percent: float
    disk_percent: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSample:
    """The state of a machine and its runs at one moment."""

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
    """A finished run and its end."""

    id: UUID
    completed_at: datetime
