"""The pool: identity per transaction, exact values, and what a cancelled caller leaves behind."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import psycopg
import pytest

from services.kit.caller import Caller
from services.kit.errors import Unavailable
from services.kit.pg import Pool, as_caller, open_pool, transaction, translate
from tests.support.database import Database

CALLER = Caller(
    user_id=uuid.uuid4(),
    tenant_id=uuid.uuid4(),
    role="viewer",
    is_owner=False,
    scopes=frozenset(),
    kind="user",
    name="v",
    session_id=uuid.uuid4(),
    expires_at=datetime.max.replace(tzinfo=UTC),
)
_WHO = """
    SELECT current_setting('qflow.user_id', true), current_setting('qflow.tenant_id', true),
           current_setting('qflow.role', true)
"""


async def test_the_caller_is_known_within_its_transaction_and_not_after(pool: Pool) -> None:
    async with as_caller(pool, CALLER) as db:
        pid = await db.fetchval("SELECT pg_backend_pid()")
        expected = (str(CALLER.user_id), str(CALLER.tenant_id), "viewer")
        assert expected == tuple(await db.fetchrow(_WHO) or ())
    async with transaction(pool) as db:
        assert pid == await db.fetchval("SELECT pg_backend_pid()")
        assert tuple(await db.fetchrow(_WHO) or ()) == ("", "", "")


async def test_a_transaction_commits_at_its_end_and_rolls_back_on_an_exception(pool: Pool) -> None:
    await pool.execute("CREATE TABLE t (n int)")
    async with transaction(pool) as db:
        await db.execute("INSERT INTO t VALUES (1)")
    with pytest.raises(ZeroDivisionError):  # noqa: PT012  # the block is what is tried
        async with as_caller(pool, CALLER) as db:
            await db.execute("INSERT INTO t VALUES (2)")
            raise ZeroDivisionError
    assert [tuple(row) for row in await pool.fetch("SELECT n FROM t")] == [(1,)]


async def test_a_swallowed_error_cannot_pass_for_a_commit(pool: Pool) -> None:
    with pytest.raises(RuntimeError, match="ended in ROLLBACK"):  # noqa: PT012  # the block is what is tried
        async with transaction(pool) as db:
            with pytest.raises(asyncpg.DivisionByZeroError):
                await db.execute("SELECT 1/0")


async def test_a_cancelled_caller_leaves_nothing_open(pool: Pool) -> None:
    """I30: neither a transaction nor a connection that the pool has lost."""
    for _ in range(8):  # twice the pool
        asleep = asyncio.create_task(_sleep_in_transaction(pool))
        async with asyncio.timeout(30):
            while not await _sleepers(pool):
                pass
        asleep.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asleep
    assert await _sleepers(pool) == 0
    assert (
        await pool.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
        )
        == 0
    )


async def _sleep_in_transaction(pool: Pool) -> None:
    async with as_caller(pool, CALLER) as db:
        await db.execute("SELECT pg_sleep(60)")


async def _sleepers(pool: Pool) -> int:
    count = await pool.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)'"
        " AND state = 'active'"
    )
    assert isinstance(count, int)
    return count


async def test_a_connection_keeps_no_state_but_needs_no_reset_query(pool: Pool) -> None:
    async with pool.acquire() as db:
        before = await db.fetchval("SELECT pg_backend_pid()")
    async with pool.acquire() as db:
        assert before == await db.fetchval("SELECT pg_backend_pid()")
        last = await db.fetchval("SELECT query FROM pg_stat_activity WHERE pid = pg_backend_pid()")
    assert "RESET" not in str(last)


async def test_json_is_exact_text_and_jsonb_is_objects(pool: Pool) -> None:
    text = '{"zz":1,"b":1e+16,"a":-0.0,"n":9007199254740993}'
    row = await pool.fetchrow("SELECT $1::json, $2::jsonb", text, {"list": [1, None, "ä"]})
    assert row is not None
    assert (text, {"list": [1, None, "ä"]}) == tuple(row)


async def test_what_arrays_are_is_asked_once_in_a_process(pool: Pool) -> None:
    """And each connection takes and gives them, whether it asked or not."""
    values = ([uuid.uuid4()], [1, None], [True], [2.5])
    asked = "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE $1"
    async with pool.acquire() as first, pool.acquire() as second:
        for db in (first, second):
            row = await db.fetchrow(
                "SELECT $1::uuid[], $2::int[], $3::bool[], $4::float8[]", *values
            )
            assert row is not None
            assert values == tuple(row)
        assert 0 == await second.fetchval(asked, "%typeinfo_tree%")


async def test_what_is_a_databases_own_is_asked_over_each_connection(pool: Pool) -> None:
    await pool.execute("CREATE TYPE mood AS ENUM ('good')")
    async with pool.acquire() as first, pool.acquire() as second:
        for db in (first, second):
            assert ["good"] == await db.fetchval("SELECT $1::mood[]", ["good"])
        await first.execute("DROP TYPE mood")
        await first.execute("CREATE TYPE mood AS ENUM ('bad')")
        assert ["bad"] == await first.fetchval("SELECT $1::mood[] AS anew", ["bad"])


async def test_a_slow_statement_is_ended_by_the_server(empty_database: Database) -> None:
    pool = await open_pool(
        empty_database.url(), application_name="slow", size_max=1, statement_timeout_s=0.05
    )
    with pytest.raises(asyncpg.QueryCanceledError) as caught:
        await pool.execute("SELECT pg_sleep(10)")
    error = translate(caught.value)
    assert error is not None
    assert error.reason == "DATABASE_SLOW"
    await pool.close()


async def test_a_killed_connection_is_unavailable_once_and_then_replaced(pool: Pool) -> None:
    """F11, F13."""
    with pytest.raises(Unavailable):
        async with transaction(pool) as db:
            await db.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    async with transaction(pool) as db:
        assert await db.fetchval("SELECT 1") == 1


async def test_a_server_that_is_gone_is_unavailable(tmp_path: Path) -> None:
    """F11, F12."""
    url = f"postgresql://nobody@/none?host={tmp_path}"
    pool = await open_pool(url, application_name="gone", size_min=0)
    with pytest.raises(Unavailable):
        async with transaction(pool):
            pass
    await pool.close()


async def test_a_database_that_lets_nobody_in_is_unavailable_until_it_does(
    empty_database: Database,
) -> None:
    """F11: as while it is moved or restored; it ended what ran beside."""
    url = empty_database.url()
    pool = await open_pool(url, application_name="shut", size_min=0)
    beside = urlunsplit(urlsplit(url)._replace(path="/postgres"))
    with psycopg.connect(beside, autocommit=True) as admin:
        admin.execute(f'ALTER DATABASE "{empty_database.name}" ALLOW_CONNECTIONS false')
        with pytest.raises(Unavailable):
            async with transaction(pool):
                pass
        admin.execute(f'ALTER DATABASE "{empty_database.name}" ALLOW_CONNECTIONS true')
    async with transaction(pool) as db:
        assert await db.fetchval("SELECT 1") == 1
    await pool.close()
