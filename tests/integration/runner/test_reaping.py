"""Sandboxes and their rows compared, both ways."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest

from services.kit.pg import Pool, open_pool
from services.runner.usecases.container_rows import ContainerRow, ContainerRows
from services.runner.usecases.reaping import Reaper
from tests import factories
from tests.support.database import Database

INCARNATION = uuid.uuid4()


class Host:
    """A host with strays, which remembers what it was told to end."""

    tier: Any = "T2"
    networks: Any = ()

    def __init__(self, strays: set[UUID]) -> None:
        self.left = strays

    async def start(self, spec: Any) -> Any:
        raise AssertionError(f"nothing is started here: {spec}")

    async def living(self) -> set[UUID]:
        return set(self.left)

    async def strays(self) -> set[UUID]:
        return set(self.left)

    async def remove(self, sandbox_id: UUID) -> None:
        self.left.discard(sandbox_id)


@pytest.fixture
async def pool(database: Database) -> AsyncIterator[Pool]:
    pool = await open_pool(database.url("qflow_runner_engine"), application_name="test")
    yield pool
    await pool.close()


def row_of(rows: ContainerRows, database: Database) -> ContainerRow:
    with database.connect() as sql:
        owner = factories.user(sql)
        version_id = factories.node(sql, owner).version_id
    row = ContainerRow(
        rows,
        tenant_id=owner.id,
        node_version_id=version_id,
        python_version="3.11",
        limits={"isolation": "T3"},
    )
    row.running(f"docker:{row.id}")
    return row


async def test_a_sandbox_without_a_row_is_ended(pool: Pool) -> None:
    rows = ContainerRows(pool, lambda: INCARNATION)
    host = Host({uuid.uuid4(), uuid.uuid4()})
    reaper = Reaper(host, pool, incarnation=lambda: INCARNATION, kept=lambda: rows.open)
    assert (2, 0) == await reaper.look()
    assert set() == host.left
    assert (0, 0) == await reaper.look()


async def test_a_row_without_a_sandbox_is_closed_at_the_second_look(
    database: Database, pool: Pool
) -> None:
    lost, kept = ContainerRows(pool, lambda: INCARNATION), ContainerRows(pool, lambda: INCARNATION)
    gone, lives = row_of(lost, database), row_of(kept, database)
    assert await lost.flush()
    assert await kept.flush()
    reaper = Reaper(Host(set()), pool, incarnation=lambda: INCARNATION, kept=lambda: kept.open)
    assert [(0, 0), (0, 1), (0, 0)] == [await reaper.look() for _ in range(3)]
    with database.connect() as sql:
        found: dict[UUID, str] = dict(sql.execute("SELECT id, status FROM containers").fetchall())
    assert {gone.id: "error", lives.id: "running"} == found


async def test_another_incarnations_rows_are_its_own(database: Database, pool: Pool) -> None:
    other = ContainerRows(pool, uuid.uuid4)
    row_of(other, database)
    assert await other.flush()
    reaper = Reaper(Host(set()), pool, incarnation=lambda: INCARNATION, kept=set)
    assert [(0, 0), (0, 0)] == [await reaper.look() for _ in range(2)]
