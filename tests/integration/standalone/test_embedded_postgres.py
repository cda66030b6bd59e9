from __future__ import annotations

import asyncpg
import psycopg
import pytest

from services.standalone.postgres import Postgres
from services.standalone.redis import Redis
from tests.support.database import Database, Template


async def test_both_drivers_reach_a_database_of_the_tests_own(empty_database: Database) -> None:
    with empty_database.connect() as blocking:
        blocking.execute("CREATE TABLE t AS SELECT 42 AS answer")
    connection = await asyncpg.connect(empty_database.url())
    try:
        assert await connection.fetchval("SELECT answer FROM t") == 42
        assert await connection.fetchval("SELECT current_database()") == empty_database.name
    finally:
        await connection.close()


def test_nobody_enters_without_the_password(postgres_server: Postgres) -> None:
    url = postgres_server.url("postgres").replace("only-for-tests", "wrong")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(url)


def test_the_cache_starts_empty_and_keeps_no_file(redis_server: Redis) -> None:
    assert redis_server.command("DBSIZE") == ":0"
    assert redis_server.command("SET a 1") == "+OK"
    assert redis_server.command("BGREWRITEAOF").startswith(("+", "-"))


async def test_a_test_gets_a_migrated_database_with_a_login_for_each_service(
    database: Database,
) -> None:
    connection = await asyncpg.connect(database.url("qflow_registry"))
    try:
        row = await connection.fetchrow("SELECT current_user::text, current_database()::text")
        assert row is not None
        assert tuple(row) == ("qflow_registry", database.name)
    finally:
        await connection.close()


def test_two_tests_do_not_see_each_others_rows(
    migrated_template: Template, database: Database
) -> None:
    with migrated_template.clone() as other:
        with database.connect() as mine, other.connect() as theirs:
            mine.execute(
                "INSERT INTO tenants (id, kind, name) VALUES (gen_random_uuid(), 'team', 'mine')"
            )
            count = theirs.execute("SELECT count(*) FROM tenants WHERE name = 'mine'").fetchone()
        assert count == (0,)
