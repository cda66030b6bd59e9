"""What is kept how long."""

from __future__ import annotations

from datetime import timedelta

import pytest

from services.kit.env import EnvError
from services.telemetry.domain.retention import BATCH_MIN, RULES, smaller
from services.telemetry.settings import Settings

ENV = {
    "QFLOW_TELEMETRY_DATABASE_URL": "postgresql://canary",
    "QFLOW_TELEMETRY_MAINT_DATABASE_URL": "postgresql://canary",
    "QFLOW_TELEMETRY_DOCTOR_DATABASE_URL": "postgresql://canary",
    "QFLOW_HOME": "/tmp",
}


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
