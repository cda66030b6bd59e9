"""What is measured of a finished run, and what is kept how long."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from services.kit.env import EnvError
from services.telemetry.domain.metrics import MARKER, metrics_of
from services.telemetry.domain.records import FinishedExecution
from services.telemetry.domain.retention import BATCH_MIN, RULES, smaller
from services.telemetry.settings import Settings

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
RUN = FinishedExecution(
    id=uuid.UUID(int=1),
    tenant_id=uuid.UUID(int=2),
    queued_at=NOON,
    started_at=NOON + timedelta(milliseconds=20),
    completed_at=NOON + timedelta(milliseconds=1520.5),
    cpu_us=2_500_000,
    memory_peak_bytes=2**40,  # B76
    node_count=7,
    retry_count=2,
)
ENV = {
    "QFLOW_TELEMETRY_DATABASE_URL": "postgresql://canary",
    "QFLOW_TELEMETRY_MAINT_DATABASE_URL": "postgresql://canary",
    "QFLOW_TELEMETRY_DOCTOR_DATABASE_URL": "postgresql://canary",
    "QFLOW_HOME": "/tmp",
}


def values(execution: FinishedExecution) -> dict[str, tuple[float, str]]:
    metrics = metrics_of(execution, new_id=uuid.uuid4, at=NOON)
    assert {execution.id} == {metric.execution_id for metric in metrics}
    assert {execution.tenant_id} == {metric.tenant_id for metric in metrics}
    return {metric.name: (metric.value, metric.unit) for metric in metrics}


def test_a_finished_run_is_measured() -> None:
    assert {
        "execution_node_count": (7, "count"),
        "execution_retry_count": (2, "count"),
        "execution_queue_ms": (20.0, "ms"),
        "execution_duration_ms": (1500.5, "ms"),
        "execution_cpu_seconds": (2.5, "s"),
        "execution_memory_peak_bytes": (2**40, "bytes"),
    } == values(RUN)


def test_what_is_not_known_is_left_out() -> None:
    never_begun = replace(RUN, started_at=None, cpu_us=None, memory_peak_bytes=None)
    measured = values(never_begun)
    assert {MARKER, "execution_retry_count", "execution_queue_ms"} == set(measured)
    assert (1520.5, "ms") == measured["execution_queue_ms"]


def test_a_clock_that_was_set_back_gives_no_negative_span() -> None:
    """I6, F33."""
    assert (0.0, "ms") == values(replace(RUN, queued_at=NOON + timedelta(hours=1)))[
        "execution_queue_ms"
    ]


def test_batches_shrink_to_a_floor() -> None:
    assert [250, BATCH_MIN] == [smaller(1000), smaller(250)]


def test_how_long_to_keep_is_a_setting_of_each_kind() -> None:
    settings = Settings.from_env({**ENV, "QFLOW_KEEP_METRICS_DAYS": "7"})
    assert timedelta(days=7) == settings.keep["metrics"]
    assert timedelta(days=30) == settings.keep["executions"]
    assert {rule.subject for rule in RULES if rule.keep_days} == set(settings.keep)
    assert "canary" not in repr(settings)
    with pytest.raises(EnvError, match="QFLOW_KEEP_METRICS_DAYS"):
        Settings.from_env({**ENV, "QFLOW_KEEP_METRICS_DAYS": "0"})
