"""Telemetry that dies in the middle of a batch: the next one goes on, and nothing is half done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from services.standalone.process import wait_until
from tests import factories
from tests.integration.telemetry.conftest import Runs
from tests.support.database import Database
from tests.support.invariants import broken

pytestmark = pytest.mark.slow

_OLD, _NEW = 40, 5


@pytest.fixture
def sql(database: Database) -> Iterator[psycopg.Connection]:
    with database.connect() as connection:
        yield connection


@pytest.fixture
def runs(sql: psycopg.Connection) -> Runs:
    owner = factories.user(sql)
    node = factories.node(sql, owner)
    edges = [("", "x", "n0", "x")]
    workflow = factories.workflow(
        sql, owner, nodes={"n0": node}, edges=edges, outputs=[("y", "n0")]
    )
    return Runs(sql, owner, workflow)


@contextmanager
def telemetry(database: Database, home: Path, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m services.telemetry` on the database, as it runs by itself."""
    inherited = {name: v for name, v in os.environ.items() if not name.startswith("QFLOW_")}
    settings = {
        "QFLOW_HOME": str(home),
        "QFLOW_TELEMETRY_LISTEN": f"unix:{home}/telemetry.sock",
        "QFLOW_RETENTION_INTERVAL_S": "1",
        "QFLOW_TESTING": "1",
    }
    with (home / "log").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "services.telemetry"],
            env={**inherited, **database.env, **settings, **env},
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
    try:
        yield child
    finally:
        child.terminate()
        child.wait(40)


def _count(sql: psycopg.Connection, query: str) -> int:
    row = sql.execute(query.encode()).fetchone()
    assert row is not None
    return int(row[0])


def test_retention_that_was_killed_in_a_batch_goes_on_with_it(
    database: Database, runs: Runs, sql: psycopg.Connection, tmp_path: Path
) -> None:
    """CP21, F35, I21, I22: what is old and over goes, all of it, and nothing else does."""
    old = {runs.finished(ago="40 days", nodes=10) for _ in range(_OLD)}
    new = {runs.finished(ago="1 day", nodes=10) for _ in range(_NEW)}
    with telemetry(database, tmp_path, QFLOW_CRASH_AT="retention_batch:1") as child:
        assert wait_until(lambda: child.poll() is not None, timeout_s=60)
        assert -signal.SIGKILL == child.returncode
    assert _OLD + _NEW == _count(sql, "SELECT count(*) FROM workflow_executions")
    with telemetry(database, tmp_path):
        assert wait_until(
            lambda: _NEW == _count(sql, "SELECT count(*) FROM workflow_executions"), timeout_s=60
        )
    left = {key for (key,) in sql.execute("SELECT id FROM workflow_executions")}
    assert new == left
    assert not old & left
    assert _NEW * 10 == _count(sql, "SELECT count(*) FROM node_executions")
    assert {} == broken(sql, of=("I21",))


def test_metrics_of_a_batch_that_was_killed_are_derived_once(
    database: Database, runs: Runs, sql: psycopg.Connection, tmp_path: Path
) -> None:
    """CP26, F4: runs and sums alike, and the sums are those of the rows."""
    for _ in range(7):
        runs.finished()
    with telemetry(database, tmp_path, QFLOW_CRASH_AT="metrics_derived:1") as child:
        assert wait_until(lambda: child.poll() is not None, timeout_s=60)
        assert -signal.SIGKILL == child.returncode
    assert 0 == _count(sql, "SELECT count(*) FROM performance_metrics")
    with telemetry(database, tmp_path):
        assert wait_until(
            lambda: 35 <= _count(sql, "SELECT count(*) FROM performance_metrics"), timeout_s=60
        )
    assert 35 == _count(sql, "SELECT count(*) FROM performance_metrics")
    summed = "SELECT sum(value_count) FROM metric_rollups WHERE span_s = 60 AND workflow_id = "
    assert 35 == _count(sql, f"{summed} '00000000-0000-0000-0000-000000000000'")
    assert {} == broken(sql, of=("I24",))


def test_sums_of_a_batch_that_was_killed_count_each_run_once(
    database: Database, runs: Runs, sql: psycopg.Connection, tmp_path: Path
) -> None:
    """CP26, CP21, F4: killed as it sums up, and as it forgets what was never summed up."""
    for ago in ("40 days", "35 days", "1 day", "0 s"):
        for _ in range(5):
            runs.finished(ago=ago, nodes=2)
    for point in ("runs_rolled_up:1", "retention_batch:1"):
        with telemetry(database, tmp_path, QFLOW_CRASH_AT=point) as child:
            assert wait_until(lambda: child.poll() is not None, timeout_s=60)
            assert -signal.SIGKILL == child.returncode
    summed = "SELECT COALESCE(sum(ended_count), 0) FROM workflow_rollups WHERE kind = '{}'"
    with telemetry(database, tmp_path):
        assert wait_until(
            lambda: (
                10 == _count(sql, "SELECT count(*) FROM workflow_executions")
                and 20 == _count(sql, summed.format("run"))
            ),
            timeout_s=60,
        )
    assert 20 == _count(sql, summed.format("run"))
    assert 40 == _count(sql, summed.format("node"))
    assert 10 == _count(sql, "SELECT count(*) FROM rolled_up_executions")
    assert {} == broken(sql, of=("I21",))
