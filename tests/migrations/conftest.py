"""The servers to test the schema on (QFLOW_TEST_POSTGRES_VERSIONS=14,15,18), seed and migrated."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from migrations.urls import with_login
from services.standalone.postgres import Binaries, Postgres
from tests.migrations.seed.parse import statements
from tests.migrations.subject import Subject
from tests.support.database import Database, Template, make_template
from tests.support.servers import data_folder

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = os.environ.get("QFLOW_TEST_POSTGRES_VERSIONS", "18").split(",")
_OWN = "18"
# Nothing here outlives a power cut, or needs to.
_FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


@pytest.fixture(scope="session", params=VERSIONS)
def server(request: pytest.FixtureRequest) -> Iterator[Postgres]:
    """One PostgreSQL of the asked version."""
    version: str = request.param
    if version == _OWN and not os.environ.get("QFLOW_POSTGRES_BIN"):
        yield request.getfixturevalue("postgres_server")
        return
    with _started(_binaries(version)) as other:
        yield other


def _binaries(version: str) -> Binaries:
    if version == _OWN:
        return Binaries.find(os.environ)
    found = subprocess.run(
        [ROOT / ".ci" / "postgres", version], check=True, capture_output=True, text=True
    ).stdout.strip()
    return Binaries.find({"QFLOW_POSTGRES_BIN": found})


@contextmanager
def _started(binaries: Binaries) -> Iterator[Postgres]:
    with (
        tempfile.TemporaryDirectory(prefix="qfm-", dir="/tmp") as name,
        data_folder(Path(name)) as data,
    ):
        folder = Path(name)
        server = Postgres(
            data / "postgres",
            binaries=binaries,
            sockets=folder,
            password="only-for-tests",
            log=folder / "postgres.log",
            settings=_FAST,
        )
        server.start()
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(params=VERSIONS)
def plain_owner_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A database on a server of its own, whose owner may make roles and is no superuser."""
    with _started(_binaries(request.param)) as server:
        with psycopg.connect(server.url("postgres"), autocommit=True) as admin:
            admin.execute("CREATE ROLE plain LOGIN CREATEROLE PASSWORD 'plain'")
            admin.execute("CREATE DATABASE plain OWNER plain")
        yield with_login(server.url("plain"), login="plain", password="plain")


@pytest.fixture(params=VERSIONS)
def powerless_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The same, but the owner may not make roles."""
    with _started(_binaries(request.param)) as server:
        with psycopg.connect(server.url("postgres"), autocommit=True) as admin:
            admin.execute("CREATE ROLE plain LOGIN PASSWORD 'plain'")
            admin.execute("CREATE DATABASE plain OWNER plain")
        yield with_login(server.url("plain"), login="plain", password="plain")


@pytest.fixture(scope="session")
def template(server: Postgres, request: pytest.FixtureRequest) -> Template:
    """A migrated database of that server, to be copied."""
    if server is request.getfixturevalue("postgres_server"):
        shared: Template = request.getfixturevalue("migrated_template")
        return shared
    home = server.folder.parent / "home"
    home.mkdir()
    return make_template(server, home)


@pytest.fixture
def migrated(template: Template) -> Iterator[Database]:
    """A migrated database of the test's own."""
    with template.clone() as fresh:
        yield fresh


@pytest.fixture
def blank(server: Postgres, template: Template) -> Iterator[Database]:
    """An empty database of the test's own.

    Its home is the server's one home: passwords are the server's, and another home's would lock
    out every other test.
    """
    empty = Template(server=server, name="template1", home=template.home, login_urls={})
    with empty.clone() as fresh:
        yield fresh


@pytest.fixture(scope="session")
def _mended_database(template: Template) -> Iterator[Database]:
    with template.clone() as fresh:
        yield fresh


@pytest.fixture(scope="session")
def _seed_database(server: Postgres) -> Iterator[Database]:
    """The seed's own statements, as far as they load, and a role that may touch everything."""
    empty = Template(server=server, name="template1", home=server.folder, login_urls={})
    with empty.clone() as fresh, fresh.connect() as owner:
        for statement in statements():
            try:
                owner.execute(statement)
            except psycopg.errors.UndefinedFunction:
                assert statement.startswith("CREATE POLICY")
        if not owner.execute("SELECT 1 FROM pg_roles WHERE rolname = 'seed_app'").fetchone():
            owner.execute("CREATE ROLE seed_app")
        owner.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO seed_app")
        yield fresh


@pytest.fixture
def mended(_mended_database: Database) -> Iterator[Subject]:
    """The migrated schema inside a transaction that is rolled back."""
    with _mended_database.connect() as owner, owner.transaction(force_rollback=True):
        yield Subject(owner, mended=True)


@pytest.fixture
def literal_seed(_seed_database: Database) -> Iterator[Subject]:
    """What the seed's statements give when run as they stand."""
    with _seed_database.connect() as owner, owner.transaction(force_rollback=True):
        yield Subject(owner, mended=False)


@pytest.fixture
def seed(literal_seed: Subject) -> Subject:
    """The seed with the function that its policies lack, so that they load."""
    literal_seed.db.execute(
        "CREATE FUNCTION current_user_id() RETURNS uuid LANGUAGE sql STABLE AS"
        " $$ SELECT NULLIF(current_setting('qflow.user_id', true), '')::uuid $$"
    )
    for statement in statements():
        if statement.startswith("CREATE POLICY"):
            literal_seed.db.execute(statement)
    return literal_seed
