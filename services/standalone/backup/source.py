"""The database to back up, and PostgreSQL's programs that read it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, LiteralString

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from services.standalone.postgres import Binaries
from services.standalone.process import StandaloneError

_ERROR_BYTES_MAX: Final = 4000
_FACTS: Final[LiteralString] = """
    SELECT current_setting('server_version_num')::int / 10000, current_database()::text,
           (SELECT rolname::text FROM pg_roles WHERE oid = 10),
           (SELECT version_num FROM alembic_version)
"""
_MAY: Final[LiteralString] = """
    SELECT rolreplication AND (rolbypassrls OR rolsuper) FROM pg_roles WHERE rolname = current_user
"""


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts about a database."""

    major: int
    database: str
    superuser: str
    schema_revision: str
    system_id: str


class Source:
    """A database, by the URL of a login that may replicate and read every row."""

    def __init__(self, url: str, binaries: Binaries) -> None:
        try:
            self._told = conninfo_to_dict(url)
        except psycopg.ProgrammingError:  # its message would quote the address with the password
            raise StandaloneError(
                "the URL of the database is invalid: postgresql://user:password@host:5432/database"
            ) from None
        self._url = url
        self.binaries = binaries

    @contextmanager
    def connected(self) -> Iterator[psycopg.Connection]:
        """Open a connection; raises StandaloneError for a login that could not read all rows."""
        try:
            connection = psycopg.connect(
                self._url, autocommit=True, application_name="qflow-backup"
            )
        except psycopg.OperationalError as error:
            raise StandaloneError(f"the database cannot be reached: {error}") from error
        with connection:
            may = connection.execute(_MAY).fetchone()
            if may != (True,):
                raise StandaloneError(
                    "QFLOW_BACKUP_DATABASE_URL: the login may not replicate or not read every row; "
                    "as a superuser run: ALTER ROLE qflow_backup LOGIN REPLICATION "
                    "BYPASSRLS; GRANT pg_read_all_data TO qflow_backup"
                )
            yield connection

    def facts(self) -> Facts:
        """Return facts about the database."""
        with self.connected() as db:
            row = db.execute(_FACTS).fetchone()
        assert row is not None
        major, database, superuser, revision = row
        return Facts(major, database, superuser, revision, self.history().split()[0])

    def history(self) -> str:
        """Return the server's system id and its current timeline."""
        with psycopg.connect(self._url, replication="database", autocommit=True) as walsender:
            identified = walsender.execute("IDENTIFY_SYSTEM").fetchone()
        assert identified is not None
        return f"{identified[0]} {int(identified[1]):08X}"

    def command(self, program: str, *arguments: str, name: str = "qflow-backup") -> list[str]:
        """Return a program's command line; the password is only passed in the environment."""
        told: dict[str, str | int | None] = {
            key: value
            for key, value in self._told.items()
            if key not in ("password", "passfile", "application_name")
        }
        told["application_name"] = name
        return [
            str(self.binaries.folder / program),
            *arguments,
            "-w",
            "-d",
            make_conninfo("", **told),
        ]

    @property
    def environment(self) -> Mapping[str, str]:
        """The environment for the programs."""
        password = self._told.get("password")
        told = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
        return {**told, "PGPASSWORD": str(password)} if password else told

    @contextmanager
    def output(self, command: Sequence[str]) -> Iterator[IO[bytes]]:
        """Run a program and yield its output.

        Raises StandaloneError with its message if it fails.
        """
        with subprocess.Popen(  # noqa: S603 - our own commands
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=(errors := _memory_file()),
            env=self.environment,
            cwd="/",
        ) as child:
            assert child.stdout is not None
            try:
                yield child.stdout
            except BaseException:
                child.kill()
                raise
            code = child.wait()
        if code != 0:
            os.lseek(errors, 0, os.SEEK_SET)
            said = os.read(errors, _ERROR_BYTES_MAX).decode("utf-8", "replace").strip()
            raise StandaloneError(f"{Path(command[0]).name} failed: {said}")


def _memory_file() -> int:
    return os.memfd_create("errors", os.MFD_CLOEXEC)
