"""The servers to test the schema on (QFLOW_TEST_POSTGRES_VERSIONS=14,15,18), seed and migrated."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache, cached_property
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


class Stand:
    """A PostgreSQL of one version, and the databases on it that tests share, each made once."""

    def __init__(self, server: Postgres, template: Template, kept: ExitStack) -> None:
        self.server = server
        self.template = template
        self._kept = kept

    @cached_property
    def mended(self) -> Database:
        """The migrated schema; whoever uses it rolls back."""
        return self._kept.enter_context(self.template.clone())

    @cached_property
    def seed(self) -> Database:
        """The seed's own statements, as far as they load, and a role that may touch everything."""
        empty = replace(self.template, name="template1")
        fresh = self._kept.enter_context(empty.clone())
        with fresh.connect() as owner:
            for statement in statements():
                try:
                    owner.execute(statement)
                except psycopg.errors.UndefinedFunction:
                    assert statement.startswith("CREATE POLICY")
            if not owner.execute("SELECT 1 FROM pg_roles WHERE rolname = 'seed_app'").fetchone():
                owner.execute("CREATE ROLE seed_app")
            owner.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO seed_app")
        return fresh


@pytest.fixture(scope="session")
def _stands(
    postgres_server: Postgres, migrated_template: Template
) -> Iterator[Callable[[str], Stand]]:
    """Give the stand of a version. It stays: the next file begins with the first version again.

    A server with the versions as its parameters would be taken down for each of them in turn.
    """
    with ExitStack() as kept:

        @cache
        def stand_of(version: str) -> Stand:
            if version == _OWN and not os.environ.get("QFLOW_POSTGRES_BIN"):
                return Stand(postgres_server, migrated_template, kept)
            server = kept.enter_context(_started(_binaries(version)))
            home = server.folder.parent / "home"
            home.mkdir()
            return Stand(server, make_template(server, home), kept)

        yield stand_of


@pytest.fixture(scope="session", params=VERSIONS)
def stand(request: pytest.FixtureRequest, _stands: Callable[[str], Stand]) -> Stand:
    """What there is of the asked version."""
    return _stands(request.param)


@pytest.fixture(scope="session")
def server(stand: Stand) -> Postgres:
    """One PostgreSQL of the asked version."""
    return stand.server


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
def template(stand: Stand) -> Template:
    """A migrated database of that server, to be copied."""
    return stand.template


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


@pytest.fixture
def mended(stand: Stand) -> Iterator[Subject]:
    """The migrated schema inside a transaction that is rolled back."""
    with stand.mended.connect() as owner, owner.transaction(force_rollback=True):
        yield Subject(owner, mended=True)


@pytest.fixture
def literal_seed(stand: Stand) -> Iterator[Subject]:
    """What the seed's statements give when run as they stand."""
    with stand.seed.connect() as owner, owner.transaction(force_rollback=True):
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
