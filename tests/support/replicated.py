"""A PostgreSQL that a replica follows, and the one address that leads to whichever serves."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import psycopg

from migrations import upgrade
from services.standalone.postgres import DATABASE, SUPERUSER, Binaries, Postgres
from services.standalone.process import wait_until
from tests.support.database import Database
from tests.support.link import Link
from tests.support.suite_fixtures import discard

_PASSWORD: Final = "only-for-tests"
_NAME: Final = "replica"
_PORT: Final = 5432  # names the socket
_CAUGHT_UP_S: Final = 30.0
_FOLLOWS: Final = """
    SELECT EXISTS (SELECT FROM pg_stat_replication
                    WHERE application_name = %s AND replay_lsn >= %s AND sync_state = %s)
"""


@dataclass(frozen=True, slots=True)
class Replicated:
    """Both servers; services know the `address` alone, and the database through it."""

    primary: Postgres
    replica: Postgres
    address: Link
    replication: Link
    database: Database

    @classmethod
    @asynccontextmanager
    async def made(cls) -> AsyncIterator[Replicated]:
        """Hold both servers inside the block."""
        folder = Path(tempfile.mkdtemp(prefix="qfp-", dir="/tmp"))
        primary = _server(folder / "a", {})
        primary.start()
        replica: Postgres | None = None
        try:
            with psycopg.connect(primary.url("postgres"), autocommit=True) as db:
                db.execute(f"CREATE DATABASE {DATABASE}")
            login_urls = upgrade(primary.url(), folder)
            assert isinstance(login_urls, Mapping)
            async with (
                Link.to(_socket(primary)) as address,
                Link.to(_socket(primary)) as replication,
            ):
                replica = await asyncio.to_thread(_copied, primary, folder / "b", replication)
                replica.start()  # by this thread: it is stopped when the one that starts it ends
                there = {name: _by_link(url, address) for name, url in login_urls.items()}
                database = Database(DATABASE, folder, primary.url(), there)
                yield cls(primary, replica, address, replication, database)
        finally:
            for each in (replica, primary):
                if each is not None:
                    each.stop()
            discard(folder)

    async def synchronous(self) -> None:
        """Have every commit wait for the replica from now on.

        The loop of the test passes on what follows it: what blocks the loop must commit nothing.
        """
        await asyncio.to_thread(self._make_synchronous)
        await self.caught_up("sync")

    async def caught_up(self, state: str = "async") -> None:
        """Wait until the replica has all that is committed by now."""
        await asyncio.to_thread(self._catch_up, state)

    def lose(self) -> None:
        """Kill the primary, as a machine does that is lost, and break what led there."""
        assert self.primary.child is not None
        self.primary.child.kill()
        self.primary.child.wait()
        self.address.reset()

    async def promote(self) -> psycopg.Connection:
        """Have the replica serve, and the address lead there; gives a connection to it."""
        sql = psycopg.connect(self.replica.url(), autocommit=True)
        await asyncio.to_thread(sql.execute, "SELECT pg_promote()")
        self.address.lead(_socket(self.replica))
        return sql

    def _make_synchronous(self) -> None:
        with psycopg.connect(self.primary.url(), autocommit=True) as db:
            db.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{_NAME}'")
            db.execute("SELECT pg_reload_conf()")

    def _catch_up(self, state: str) -> None:
        with psycopg.connect(self.primary.url(), autocommit=True) as db:
            row = db.execute("SELECT pg_current_wal_lsn()").fetchone()
            assert row is not None
            asked = (_NAME, row[0], state)
            assert wait_until(
                lambda: db.execute(_FOLLOWS, asked).fetchone() == (True,), timeout_s=_CAUGHT_UP_S
            )


def _server(folder: Path, settings: Mapping[str, str]) -> Postgres:
    folder.mkdir(exist_ok=True)
    return Postgres(
        folder / "postgres",
        binaries=Binaries.find(os.environ),
        sockets=folder,
        password=_PASSWORD,
        log=folder / "postgres.log",
        settings=settings,
    )


def _copied(primary: Postgres, folder: Path, replication: Link) -> Postgres:
    """Make what follows the primary, through a link of its own."""
    host, port = replication.address.split(":")
    told = f"host={host} port={port} user={SUPERUSER} password={_PASSWORD}"
    replica = _server(
        folder, {"primary_conninfo": f"{told} application_name={_NAME}", "hot_standby": "on"}
    )
    program = Binaries.find(os.environ).folder / "pg_basebackup"
    replica.folder.mkdir()
    copied = ["--dbname", primary.url(), "--pgdata", str(replica.data), "--checkpoint", "fast"]
    subprocess.run([program, *copied, "--no-sync"], check=True, capture_output=True)
    (replica.data / "standby.signal").touch()
    return replica


def _socket(server: Postgres) -> str:
    folder = server.url().partition("host=")[2].partition("&")[0]
    return f"unix:{folder}/.s.PGSQL.{_PORT}"


def _by_link(url: str, link: Link) -> str:
    login = urlsplit(url)
    netloc = f"{login.username}:{login.password}@{link.address}"
    return urlunsplit(login._replace(netloc=netloc, query=""))
