"""Migrate the database and create the first owner and the services' tokens, then exit.

A separate process, started before PostgreSQL accepts connections: its imports are large, are loaded
while the server starts, and do not stay in memory. Reads one line of JSON from stdin
(`{"database_url", "home", "create"}`), and writes one to stdout (`{"urls", "tokens"}` or
`{"error"}`).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql
from sqlalchemy.exc import OperationalError

import migrations
from migrations.roles import RolesRefused
from services.standalone import bootstrap


def prepare(*, database_url: str, home: Path, create: bool) -> dict[str, Any]:
    """Migrate a database to this version; returns the logins' URLs and the services' tokens."""
    if create:
        _create_database(database_url)
    urls = dict(migrations.upgrade(database_url, home))
    urls |= {login: given for login in urls if (given := os.environ.get(variable(login)))}
    return {"urls": urls, "tokens": bootstrap.ensure(urls, home)}


def variable(login: str) -> str:
    """Return the name of the setting with a login's URL."""
    return f"{login.upper()}_DATABASE_URL"


def _create_database(database_url: str) -> None:
    parts = urlsplit(database_url)
    name = parts.path.lstrip("/")
    with psycopg.connect(urlunsplit(parts._replace(path="/postgres")), autocommit=True) as admin:
        if admin.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone():
            return
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))


def _main() -> int:
    # Only the result goes to stdout; all other output, also of libraries, goes to the log.
    answer_to = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # A server that drops packets must not block the start for minutes.
    os.environ.setdefault("PGCONNECT_TIMEOUT", "10")
    line = sys.stdin.readline()
    if not line:
        return 0  # the supervisor gave up before the database was ready
    asked = json.loads(line)
    try:
        answer = prepare(
            database_url=asked["database_url"], home=Path(asked["home"]), create=asked["create"]
        )
    except (psycopg.OperationalError, OperationalError, UnicodeError) as error:
        answer = {"error": migrations.complaint(error)}
    except RolesRefused as error:
        answer = {"error": f"QFLOW_DATABASE_URL: {error}"}
    except ValueError as error:  # names the setting: EnvError, or an invalid address
        answer = {"error": str(error)}
    answer_to.write(json.dumps(answer) + "\n")
    answer_to.close()
    return "error" in answer


if __name__ == "__main__":
    sys.exit(_main())
