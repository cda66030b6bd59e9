"""What the row of a sandbox says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from uuid import UUID, uuid4

import psycopg
import pytest

from services.kit.ids import uuid7
from services.kit.pg import Pool, open_pool, transaction
from services.runner.storage import containers
from services.runner.storage.containers import ContainerChange
from services.runner.usecases.container_rows import ContainerRow, ContainerRows
from tests import factories
from tests.support.database import Database

USAGE_EVERY_S = 0.05


@pytest.fixture
async def pool(database: Database) -> AsyncIterator[Pool]:
    pool = await open_pool(database.url("qflow_runner_engine"), application_name="test")
    yield pool
    await pool.close()


@pytest.fixture
async def rows(pool: Pool) -> AsyncIterator[ContainerRows]:
    """Rows that are written as they change, by an incarnation that stays."""
    incarnation = uuid4()
    rows = ContainerRows(pool, lambda: incarnation, usage_every_s=USAGE_EVERY_S)
    stop = asyncio.Event()
    writing = asyncio.create_task(rows.write_until(stop))
    yield rows
    stop.set()
    await writing


def row_of(rows: ContainerRows, owner: factories.User, node_version_id: UUID) -> ContainerRow:
    row = ContainerRow(
        rows,
        tenant_id=owner.id,
        node_version_id=node_version_id,
        python_version="3.11",
        limits={"isolation": "T2"},
    )
    row.running(f"bubblewrap:{row.id}")
    return row


async def until_used(sql: psycopg.Connection, row: ContainerRow, attempts: int) -> None:
    async with asyncio.timeout(30):
        while not sql.execute(  # noqa: ASYNC110 - the database tells
            "SELECT 1 FROM containers WHERE id = %s AND (resource_usage->>'attempts')::int = %s",
            (row.id, attempts),
        ).fetchone():
            await asyncio.sleep(0.01)


async def test_a_sandbox_that_runs_has_not_stopped(database: Database, pool: Pool) -> None:
    with database.connect() as sql:
        owner = factories.user(sql)
    change = ContainerChange(
        id=uuid7(),
        tenant_id=owner.id,
        node_version_id=None,
        python_version="3.11",
        container_id=f"proc:{uuid4()}",
        status="running",
        created_at=datetime.now(UTC),
        started_at=datetime.now(UTC),
        resource_limits={"isolation": "T2"},
    )
    async with transaction(pool) as db:
        await containers.save(db, uuid7(), [change])
    with database.connect() as sql:
        row = sql.execute("SELECT started_at IS NULL, stopped_at FROM containers").fetchone()
    assert row == (False, None)


def usage(*, attempts: int, cpu_us: int) -> dict[str, int]:
    return {
        "attempts": attempts,
        "cpu_us": cpu_us,
        "memory_peak_bytes": 1 << 20,
        "io_read_bytes": 0,
        "io_write_bytes": 0,
    }


async def test_what_sandboxes_use_is_told_while_they_live_and_in_one_write_for_all(
    database: Database, rows: ContainerRows
) -> None:
    with database.connect() as sql:
        owner = factories.user(sql)
        version_id = factories.node(sql, owner).version_id
        first, second = (row_of(rows, owner, version_id) for _ in range(2))
        for attempts in range(1, 8):
            first.used(partial(usage, attempts=attempts, cpu_us=attempts * 10))
        second.used(partial(usage, attempts=1, cpu_us=5))
        await until_used(sql, first, 7)
        found = sql.execute(
            "SELECT status, stopped_at, resource_usage, xmin::text FROM containers ORDER BY id"
        ).fetchall()
        assert [("running", None), ("running", None)] == [each[:2] for each in found]
        assert usage(attempts=7, cpu_us=70) == found[0][2]
        assert 1 == found[1][2]["attempts"]
        assert found[0][3] == found[1][3]


async def test_a_sandbox_that_has_ended_stays_so_whatever_it_used_last(
    database: Database, rows: ContainerRows
) -> None:
    with database.connect() as sql:
        owner = factories.user(sql)
        version_id = factories.node(sql, owner).version_id
        ended, lives = (row_of(rows, owner, version_id) for _ in range(2))
        for row in (ended, lives):
            row.used(partial(usage, attempts=1, cpu_us=10))
        ended.ended("stopped", {"attempts": 1, "cpu_us": 10, "memory_peak_bytes": 2 << 20})
        await until_used(sql, lives, 1)  # both were due at once
        found = sql.execute(
            "SELECT status, (resource_usage->>'memory_peak_bytes')::int FROM containers"
            " WHERE id = %s",
            (ended.id,),
        ).fetchone()
        assert ("stopped", 2 << 20) == found
