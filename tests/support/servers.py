"""Real PostgreSQL and Redis for tests: one of each per test process, a fresh database per test."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from services.standalone.postgres import Binaries, Postgres
from services.standalone.redis import Redis, find_server
from tests.support.database import Database, Template, make_template

# Tests lose nothing in a power cut: only here may durability be off, for speed.
_FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
# Nor does anybody guess their passwords: whoever connects counts to one and not to four thousand.
_ANY_PASSWORD_WILL_DO = {"scram_iterations": "1"}
_SCRAM_ITERATIONS_SINCE = 16
_ROOM_BYTES = 4 << 30


@pytest.fixture(scope="session")
def server_folder() -> Iterator[Path]:
    """A short folder for sockets and data, gone after the run."""
    folder = Path(tempfile.mkdtemp(prefix="qft-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def data_folder(otherwise: Path) -> Iterator[Path]:
    """Where databases lie: in memory where there is room, a copy takes 30 ms there, not 250."""
    shared = Path("/dev/shm")
    if not shared.is_dir() or shutil.disk_usage(shared).free < _ROOM_BYTES:
        yield otherwise
        return
    folder = Path(tempfile.mkdtemp(prefix="qft-", dir=shared))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def _data_folder(server_folder: Path) -> Iterator[Path]:
    with data_folder(server_folder) as folder:
        yield folder


@pytest.fixture(scope="session")
def postgres_server(server_folder: Path, _data_folder: Path) -> Iterator[Postgres]:
    """One embedded PostgreSQL per test process (QFLOW_POSTGRES_BIN chooses another version)."""
    binaries = Binaries.find(os.environ)
    may_count_less = binaries.major >= _SCRAM_ITERATIONS_SINCE
    server = Postgres(
        _data_folder / "postgres",
        binaries=binaries,
        sockets=server_folder,
        password="only-for-tests",
        log=server_folder / "postgres.log",
        settings={**_FAST, **(_ANY_PASSWORD_WILL_DO if may_count_less else {})},
    )
    server.start()
    with psycopg.connect(server.url("postgres"), autocommit=True) as superuser:
        superuser.execute("ALTER ROLE CURRENT_USER PASSWORD 'only-for-tests'")  # by that count
    yield server
    server.stop()


@pytest.fixture(scope="session")
def empty_database_factory(postgres_server: Postgres) -> Template:
    """Makes databases without any migration: `with factory.clone() as database`."""
    home = postgres_server.folder.parent / "empty-home"
    home.mkdir()
    return Template(server=postgres_server, name="template1", home=home, login_urls={})


@pytest.fixture(scope="session")
def migrated_template(postgres_server: Postgres) -> Template:
    """The template database, migrated once per test process."""
    home = postgres_server.folder.parent / "home"
    home.mkdir()
    return make_template(postgres_server, home)


@pytest.fixture
def database(migrated_template: Template) -> Iterator[Database]:
    """A migrated database of the test's own; `.url("qflow_registry")` for a login."""
    with migrated_template.clone() as fresh:
        yield fresh


@pytest.fixture
def empty_database(empty_database_factory: Template) -> Iterator[Database]:
    """An empty database of the test's own, for migrations."""
    with empty_database_factory.clone() as fresh:
        yield fresh


@pytest.fixture(scope="session")
def _redis_server(server_folder: Path) -> Iterator[Redis]:
    program = find_server(os.environ)
    assert program is not None, "no redis-server on PATH and no wheel with one: run `make setup`"
    server = Redis(program, sockets=server_folder, log=server_folder / "redis.log")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_server(_redis_server: Redis) -> Redis:
    """A running, empty Redis; a test may stop it: the next test finds it running again."""
    if _redis_server.child is None or _redis_server.child.poll() is not None:
        _redis_server.stop()
        _redis_server.start()
    _redis_server.command("FLUSHALL")
    return _redis_server


@pytest.fixture
def redis_url(redis_server: Redis) -> str:
    """The URL of a running, empty Redis."""
    return redis_server.url
