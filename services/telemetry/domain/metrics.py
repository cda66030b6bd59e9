"""What is measured of every run that is over."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from services.telemetry.domain.records import FinishedExecution, Metric

# Every finished run has this one, whatever became of it: it tells that the run was measured.
MARKER: Final = "execution_node_count"

_MILLISECOND: Final = timedelta(milliseconds=1)


def metrics_of(
    execution: FinishedExecution, *, new_id: Callable[[], UUID], at: datetime
) -> list[Metric]:
    """Give the metrics of one run; what its rows do not say is left out, never guessed."""
    begun_at = execution.started_at or execution.completed_at
    values: list[tuple[str, float | None, str]] = [
        (MARKER, execution.node_count, "count"),
        ("execution_retry_count", execution.retry_count, "count"),
        ("execution_queue_ms", (begun_at - execution.queued_at) / _MILLISECOND, "ms"),
        (
            "execution_duration_ms",
            (execution.completed_at - execution.started_at) / _MILLISECOND
            if execution.started_at
            else None,
            "ms",
        ),
        (
            "execution_cpu_seconds",
            None if execution.cpu_us is None else execution.cpu_us / 1_000_000,
            "s",
        ),
        ("execution_memory_peak_bytes", execution.memory_peak_bytes, "bytes"),
    ]
    run, tenant = execution.id, execution.tenant_id
    return [
        Metric(new_id(), name, max(0.0, value), unit, run, tenant, at)
        for name, value, unit in values
        if value is not None
    ]
