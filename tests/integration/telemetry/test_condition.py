"""What telemetry tells of the database itself, and which alerts would sound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import yaml

from services.kit.pg import Pool, connection
from services.telemetry.usecases.condition import Condition
from tests.integration.telemetry.conftest import Runs

_ALERTS = Path(__file__).resolve().parents[3] / "deploy" / "prometheus" / "alerts.yaml"


def _told(condition: Condition) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for figure in condition.figures():
        for labels, value in figure.values:
            found[".".join((figure.name.removeprefix("qflow_telemetry_"), *labels))] = value
    return found


def _alert(name: str) -> str:
    [group] = yaml.safe_load(_ALERTS.read_text("utf-8"))["groups"]
    [expression] = [rule["expr"] for rule in group["rules"] if rule["alert"] == name]
    return str(expression)


async def _look(condition: Condition, maint: Pool, now_s: float) -> None:
    async with connection(maint) as db:
        await condition.look(db, now_s)


async def test_a_transaction_that_stays_open_is_told_of_while_it_does(
    maint: Pool, sql: psycopg.Connection
) -> None:
    """F17, I30: whoever holds it, and though telemetry may not know who."""
    assert "oldest_transaction_seconds) > 600" in _alert("QflowTransactionOld")
    condition = Condition()
    with sql.transaction():
        sql.execute("SELECT count(*) FROM workflow_executions")
        await _look(condition, maint, 1_000.0)
        assert 0.0 == _told(condition)["database_oldest_transaction_seconds"]
        await _look(condition, maint, 2_800.0)
        assert 1_800.0 == _told(condition)["database_oldest_transaction_seconds"]
    await _look(condition, maint, 2_860.0)
    assert _told(condition)["database_oldest_transaction_seconds"] < 600


async def test_rows_that_nobody_vacuums_are_counted_until_somebody_does(
    maint: Pool, sql: psycopg.Connection, runs: Runs
) -> None:
    """F18, I30."""
    assert "> 10000" in _alert("QflowDeadRows")
    sql.execute("ALTER TABLE error_logs SET (autovacuum_enabled = off)")
    sql.execute(
        "INSERT INTO error_logs (tenant_id, error_type, error_message)"
        " SELECT %s, 'X', 'x' FROM generate_series(1, 10500)",
        (runs.owner.id,),
    )
    sql.execute("DELETE FROM error_logs")
    sql.execute("SELECT pg_stat_force_next_flush()")
    condition = Condition()
    await _look(condition, maint, 0.0)
    before = _told(condition)
    assert before["table_rows.error_logs.dead"] > 10_000
    assert before["table_rows.error_logs.dead"] > 0.5 * before["table_rows.error_logs.live"]
    sql.execute("VACUUM error_logs")
    await _look(condition, maint, 60.0)
    after = _told(condition)
    assert after["table_rows.error_logs.dead"] < 10_000
    assert 0 < after["database_size_bytes"] < before["database_size_bytes"] + 1
