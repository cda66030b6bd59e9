"""F11: PostgreSQL is killed and starts again under a service's pool, or comes after it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from services.kit.env import EnvError
from services.kit.errors import Unavailable
from services.kit.pg import Pool, open_pool, transaction
from services.standalone.postgres import Binaries, Postgres
from services.standalone.process import StandaloneError, wait_until
from tests.support.replicated import Replicated

_CALLERS = 8


@pytest.fixture
def server() -> Iterator[Postgres]:
    folder = Path(tempfile.mkdtemp(prefix="qft-", dir="/tmp"))
    one = Postgres(
        folder / "postgres",
        binaries=Binaries.find(os.environ),
        sockets=folder,
        password="secret",
        log=folder / "postgres.log",
    )
    one.start()
    yield one
    one.stop()
    shutil.rmtree(folder, ignore_errors=True)


def _starts(server: Postgres) -> bool:
    try:
        server.start()
    except StandaloneError:
        return False
    return True


async def _ask_until(pool: Pool, enough: asyncio.Event) -> set[str]:
    """Use the pool all the time; give the reasons of what failed."""
    reasons: set[str] = set()
    while not enough.is_set():
        try:
            async with transaction(pool) as db:
                await db.fetchval("SELECT count(*) FROM generate_series(1, 100)")
        except Unavailable as error:
            reasons.add(error.reason)
            await asyncio.sleep(0.005)
    return reasons


async def test_callers_learn_nothing_but_that_the_server_is_away(server: Postgres) -> None:
    """F11: dying, gone, starting: one error, and then the very same pool works again."""
    pool = await open_pool(server.url("postgres"), application_name="away", size_max=_CALLERS)
    enough = asyncio.Event()
    callers = [asyncio.create_task(_ask_until(pool, enough)) for _ in range(_CALLERS)]
    loop = asyncio.get_running_loop()
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGQUIT) * 2:
        await asyncio.sleep(0.05)  # the callers are at work
        assert server.child is not None
        server.child.send_signal(number)
        await asyncio.to_thread(server.child.wait)
        server.prepare()
        server.spawn()
        started = await loop.run_in_executor(None, _ready, server)
        if not started:  # the last one's children had not all noticed
            assert wait_until(lambda: _starts(server), timeout_s=30.0)
    enough.set()
    assert set().union(*await asyncio.gather(*callers)) <= {"DATABASE_UNAVAILABLE", "DATABASE_BUSY"}
    async with transaction(pool) as db:
        assert await db.fetchval("SELECT 1") == 1
    await pool.close()


async def test_a_service_that_starts_before_its_server_waits_for_it(server: Postgres) -> None:
    """F11: killed together, they come back in any order."""
    assert server.child is not None
    server.child.kill()
    await asyncio.to_thread(server.child.wait)
    opening = asyncio.create_task(open_pool(server.url("postgres"), application_name="early"))
    server.prepare()
    server.spawn()
    pool = await opening
    async with transaction(pool) as db:
        assert await db.fetchval("SELECT 1") == 1
    await pool.close()


async def test_a_commit_that_is_given_up_while_it_waits_for_a_replica_is_not_seen() -> None:
    """G1: nobody who asks again is told of it before the replica has it."""
    seen = "SELECT count(*) FROM kept"
    async with Replicated.made() as both:
        with psycopg.connect(both.primary.url(), autocommit=True) as sql:
            sql.execute("CREATE TABLE kept (name text)")
            pool = await open_pool(both.primary.url(), application_name="waits")
            await both.synchronous()
            both.replication.hold("down")
            with pytest.raises((Unavailable, TimeoutError)):
                async with transaction(pool) as db:
                    await db.execute("INSERT INTO kept VALUES ('x')")
            assert sql.execute(seen).fetchone() == (0,)
            both.replication.heal()
            await both.caught_up("sync")
            assert sql.execute(seen).fetchone() == (1,)
            await pool.close()


async def test_a_login_that_is_refused_is_not_tried_again(server: Postgres) -> None:
    """F34: a start with a wrong setting fails at once, with its reason."""
    url = server.url("postgres").replace(":secret@", ":guessed@")
    nowhere = "postgresql://qflow:guessed@db.nowhere.invalid/qflow"
    for wrong, reason in (
        (url, "password authentication failed"),
        (server.url("nothing"), 'database "nothing" does not exist'),
        (nowhere, "the host name 'db.nowhere.invalid' cannot be resolved"),
        (nowhere.replace(":guessed@", ":gue/ssed@"), "it must look like postgresql://"),
    ):
        with pytest.raises(EnvError) as refused:
            await open_pool(wrong, application_name="wrong", setting="TINY_DATABASE_URL")
        assert str(refused.value).startswith(f"TINY_DATABASE_URL: {reason}")
        assert "gue" not in str(refused.value)


def _ready(server: Postgres) -> bool:
    try:
        server.wait_ready()
    except StandaloneError:
        return False
    return True
