"""Databases cloned from a migrated template."""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from services.standalone.postgres import Postgres

_TEMPLATE = "qflow_template"


# What CREATE DATABASE leaves out: grants on the database itself, and its settings.
_COPY_GRANTS_AND_SETTINGS = """
    WITH source AS (SELECT oid, datacl FROM pg_database WHERE datname = %(source)s),
         target AS (UPDATE pg_database SET datacl = source.datacl FROM source
                     WHERE datname = %(target)s RETURNING pg_database.oid)
    INSERT INTO pg_db_role_setting (setdatabase, setrole, setconfig)
    SELECT target.oid, setrole, setconfig
      FROM target, source JOIN pg_db_role_setting ON setdatabase = source.oid
"""

_DROP_SLOTS = """
    DO $$ BEGIN
        WHILE EXISTS (SELECT FROM pg_replication_slots WHERE active) LOOP
            PERFORM pg_sleep(0.01);
        END LOOP;
        PERFORM pg_drop_replication_slot(slot_name) FROM pg_replication_slots;
    END $$
"""


@dataclass(frozen=True, slots=True)
class Database:
    """One database of a test; connect with any driver by its URLs."""

    name: str
    home: Path
    _owner_url: str
    _login_urls: Mapping[str, str]

    def url(self, login: str | None = None) -> str:
        """Give the URL of a login (`qflow_registry`, …), or of the migrating owner."""
        if login is None:
            return self._owner_url
        return _with_database(self._login_urls[login], self.name)

    def connect(self, login: str | None = None) -> psycopg.Connection:
        """Open a blocking autocommit connection, for arranging and asserting; close it."""
        return psycopg.connect(self.url(login), autocommit=True)

    def drop_slots(self) -> None:
        """Drop what holds WAL back, once the server knows that who read from it has gone."""
        with self.connect() as db:
            db.execute(_DROP_SLOTS)

    @property
    def env(self) -> dict[str, str]:
        """Give every QFLOW_*_DATABASE_URL, as a service would read them."""
        urls = {f"{login.upper()}_DATABASE_URL": self.url(login) for login in self._login_urls}
        return {**urls, "QFLOW_HOME": str(self.home)}


@dataclass(frozen=True, slots=True)
class Template:
    """A database that is copied for each test."""

    server: Postgres
    name: str
    home: Path
    login_urls: Mapping[str, str]

    @contextmanager
    def clone(self) -> Iterator[Database]:
        """Give a copy and drop it afterwards, whoever is still connected."""
        name = f"test_{uuid.uuid4().hex[:16]}"
        with psycopg.connect(self.server.url("postgres"), autocommit=True) as admin:
            admin.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {} {}").format(
                    sql.Identifier(name), sql.Identifier(self.name), _as_files(admin)
                )
            )
            admin.execute(_COPY_GRANTS_AND_SETTINGS, {"source": self.name, "target": name})
            try:
                yield Database(name, self.home, self.server.url(name), self.login_urls)
            finally:
                admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def make_template(server: Postgres, home: Path) -> Template:
    """Migrate a database once; every test's is a copy of it."""
    from migrations import upgrade  # late: most unit tests need no database

    with psycopg.connect(server.url("postgres"), autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(_TEMPLATE)))
    login_urls = upgrade(server.url(_TEMPLATE), home)
    assert not inspect.isawaitable(login_urls)
    return Template(server, _TEMPLATE, home, dict(login_urls))


def _as_files(admin: psycopg.Connection) -> sql.SQL:
    """Copy files where one may say so: without fsync that is quicker than through the WAL."""
    return sql.SQL("STRATEGY file_copy" if admin.info.server_version >= 150_000 else "")


def _with_database(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
