from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import psycopg
import pytest

from services.kit.ids import uuid7
from services.kit.pg import Pool, open_pool
from services.registry.gateways.environments import Lock, LockFailedError
from services.registry.loops.locks import make_locks
from services.registry.storage.locks import PendingLock
from services.registry.usecases.locks import Locks
from tests import factories
from tests.support.database import Database


@dataclass
class FakeEnvironments:
    """Pins whatever it is asked for, or fails as told; may be held back."""

    failure: LockFailedError | None = None
    asked: list[tuple[str, ...]] = field(default_factory=list)
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)

    async def resolve(
        self,
        requirements: Sequence[str],
        *,
        python_version: str,  # noqa: ARG002
        tenant_id: UUID,  # noqa: ARG002
        timeout_s: float,  # noqa: ARG002
    ) -> Lock:
        self.asked.append(tuple(requirements))
        await self.may_answer.wait()
        if self.failure is not None:
            raise self.failure
        return Lock("numpy==1.0", "0" * 64)


@pytest.fixture
def environments() -> FakeEnvironments:
    fake = FakeEnvironments()
    fake.may_answer.set()
    return fake


@pytest.fixture
async def pool(database: Database) -> AsyncIterator[Pool]:
    pool = await open_pool(
        database.url("qflow_registry_engine"), application_name="test", size_max=3
    )
    yield pool
    await pool.close()


@pytest.fixture
async def pending(sql: psycopg.Connection, user: factories.User) -> PendingLock:
    """A version whose lock could not be made an hour ago."""
    node_id, version_id = uuid7(), uuid7()
    dependencies = '[{"requirement": "numpy", "source": "same_name", "import_name": "numpy"}]'
    sql.execute(
        "INSERT INTO python_nodes (id, name, code, main_function, python_version, input_types,"
        " output_types, tenant_id, created_by)"
        " VALUES (%s, 'n', '', 'f', '3.11', '[]', '[]', %s, %s)",
        (node_id, user.id, user.id),
    )
    sql.execute(
        "INSERT INTO python_node_versions (id, node_id, version, name, code, main_function,"
        " python_version, input_types, output_types, dependencies, created_by)"
        " VALUES (%s, %s, 1, 'n', '', 'f', '3.11', '[]', '[]', %s, %s)",
        (version_id, node_id, dependencies, user.id),
    )
    sql.execute(
        "INSERT INTO node_version_locks (node_version_id, tenant_id, state, updated_at)"
        " VALUES (%s, %s, 'pending', now() - interval '1 hour')",
        (version_id, user.id),
    )
    return PendingLock(version_id, user.id, "3.11", ("numpy",), 0)


def _lock(sql: psycopg.Connection) -> tuple[object, ...]:
    row = sql.execute("SELECT state, lock, error, attempts FROM node_version_locks").fetchone()
    assert row is not None
    return row


async def test_a_lock_that_is_due_is_made(
    pool: Pool, environments: FakeEnvironments, pending: PendingLock, sql: psycopg.Connection
) -> None:
    assert await Locks(pool, environments).resolve_due() is None
    assert environments.asked == [pending.requirements]
    assert _lock(sql) == ("locked", "numpy==1.0", None, 1)


async def test_a_lock_that_cannot_be_made_now_is_due_later(
    pool: Pool, environments: FakeEnvironments, pending: PendingLock, sql: psycopg.Connection
) -> None:
    environments.failure = LockFailedError("the index is away", final=False)
    wait_s = await Locks(pool, environments).resolve_due()
    assert wait_s is not None
    assert 8 < wait_s <= 16
    assert environments.asked == [pending.requirements]
    assert _lock(sql) == ("pending", None, "the index is away", 1)


async def test_requirements_that_cannot_be_met_fail_for_good(
    pool: Pool, environments: FakeEnvironments, pending: PendingLock, sql: psycopg.Connection
) -> None:
    environments.failure = LockFailedError("no such distribution", final=True)
    locks = Locks(pool, environments)
    assert await locks.resolve_due() is None
    assert await locks.resolve_due() is None
    assert environments.asked == [pending.requirements]
    assert _lock(sql) == ("failed", None, "no such distribution", 1)


async def test_who_waits_a_little_does_not_stop_the_work(
    pool: Pool, environments: FakeEnvironments, pending: PendingLock, sql: psycopg.Connection
) -> None:
    environments.may_answer.clear()
    locks = Locks(pool, environments)
    await locks.resolve_soon(pending, wait_s=0.01)
    assert _lock(sql)[0] == "pending"
    environments.may_answer.set()
    await locks.resolve_soon(pending, wait_s=10)
    assert _lock(sql)[0] == "locked"
    assert environments.asked == [pending.requirements]


async def test_two_replicas_make_a_lock_once(
    pool: Pool, environments: FakeEnvironments, pending: PendingLock, sql: psycopg.Connection
) -> None:
    replicas = [Locks(pool, environments), Locks(pool, environments)]
    await asyncio.gather(*[each.resolve_due() for each in replicas])
    assert environments.asked == [pending.requirements]
    assert _lock(sql)[0] == "locked"


async def test_the_loop_ends_when_told_to(pool: Pool, environments: FakeEnvironments) -> None:
    stop = asyncio.Event()
    loop = asyncio.create_task(make_locks(Locks(pool, environments), stop))
    stop.set()
    await loop
