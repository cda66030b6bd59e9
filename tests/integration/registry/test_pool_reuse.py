"""One connection, two tenants in turns: whatever ends a transaction, no identity outlives it."""

from __future__ import annotations

import asyncio
import os
import random
from datetime import UTC, datetime
from uuid import UUID

import asyncpg
import psycopg

from services.kit.caller import Caller
from services.kit.errors import Unavailable
from services.kit.pg import Db, Pool, as_caller, open_pool
from tests import factories
from tests.support.database import Database

_TURNS = 10_000 if os.environ.get("QFLOW_TEST_FULL") else 2_000
_AT_ONCE = 8
_NODES = "SELECT DISTINCT tenant_id FROM python_nodes WHERE NOT is_public"


def caller_of(user: factories.User) -> Caller:
    return Caller(
        user_id=user.id,
        tenant_id=user.id,
        role="user",
        is_owner=False,
        scopes="all",
        kind="user",
        name="",
        session_id=user.id,
        expires_at=datetime.max.replace(tzinfo=UTC),
    )


class _GivenUpError(Exception):
    pass


async def _fails(db: Db) -> None:
    await db.execute("SELECT 1/0")


async def _is_refused(db: Db) -> None:
    await db.execute("DELETE FROM users")


async def _takes_too_long(db: Db) -> None:
    async with asyncio.timeout(0.005):
        await db.execute("SELECT pg_sleep(5)")


async def _gives_up(_db: Db) -> None:
    raise _GivenUpError


async def _is_cancelled(db: Db) -> None:
    current = asyncio.current_task()
    assert current is not None
    asyncio.get_running_loop().call_later(0.001, current.cancel)
    await db.execute("SELECT pg_sleep(5)")


_ENDS = (_fails, _is_refused, _takes_too_long, _gives_up, _is_cancelled)
# The last one is for the machine: seven wait for the one connection, five seconds at most.
_ENDINGS = (
    *(asyncpg.PostgresError, TimeoutError, _GivenUpError, asyncio.CancelledError),
    Unavailable,
)


async def _turn(pool: Pool, caller: Caller, chance: random.Random, seen: set[UUID]) -> None:
    """One transaction of a caller, which may come to a bad end."""
    async with as_caller(pool, caller) as db:
        seen |= {row["tenant_id"] for row in await db.fetch(_NODES)}
        if chance.random() < 0.1:
            await chance.choice(_ENDS)(db)


async def test_a_connection_that_two_tenants_share_shows_each_only_their_own(
    database: Database, sql: psycopg.Connection
) -> None:
    """X12."""
    users = [factories.user(sql) for _ in range(2)]
    for user in users:
        factories.node(sql, user)
    pool = await open_pool(
        database.url("qflow_registry"), application_name="reuse-test", size_min=1, size_max=1
    )
    chance = random.Random(12)
    seen: dict[UUID, set[UUID]] = {user.id: set() for user in users}
    ended = 0

    async def take_turns(user: factories.User) -> None:
        nonlocal ended
        for _ in range(_TURNS // _AT_ONCE):
            try:
                await asyncio.create_task(_turn(pool, caller_of(user), chance, seen[user.id]))
            except _ENDINGS:
                ended += 1

    await asyncio.gather(*(take_turns(users[at % 2]) for at in range(_AT_ONCE)))
    async with pool.acquire() as db:
        assert [] == await db.fetch(_NODES)  # without a context: nothing
    await pool.close()
    assert {user.id: {user.id} for user in users} == seen
    assert ended > _TURNS // 20
