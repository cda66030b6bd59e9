"""`python -m migrations upgrade|downgrade|current [revision]`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import psycopg
from alembic.util import CommandError
from sqlalchemy.exc import OperationalError

from migrations.apply import HEAD, complaint, current, downgrade, upgrade, upgrade_schema
from migrations.roles import RolesRefused


def main() -> int:
    """Do what is asked against QFLOW_DATABASE_URL; passwords go to QFLOW_HOME, never to a screen."""
    parser = argparse.ArgumentParser(prog="python -m migrations", description=__doc__)
    parser.add_argument("command", choices=["upgrade", "downgrade", "current"])
    parser.add_argument("revision", nargs="?", help="default: head for upgrade, base for downgrade")
    parser.add_argument(
        "--schema-only",
        action="store_true",
        help="upgrade: leave the logins' passwords as they are, and need no QFLOW_HOME",
    )
    arguments = parser.parse_args()
    url = os.environ.get("QFLOW_DATABASE_URL", "")
    if not url:
        return _refuse("set QFLOW_DATABASE_URL to the migrating owner's address")
    # A server that drops what is sent to it must not hold the command for minutes.
    os.environ.setdefault("PGCONNECT_TIMEOUT", "10")
    try:
        if arguments.command == "upgrade" and arguments.schema_only:
            upgrade_schema(url, revision=arguments.revision or HEAD)
        elif arguments.command == "upgrade":
            home = os.environ.get("QFLOW_HOME", "")
            if not home:
                return _refuse("set QFLOW_HOME to the folder that keeps the logins' passwords")
            upgrade(url, Path(home), revision=arguments.revision or HEAD)
        elif arguments.command == "downgrade":
            downgrade(url, revision=arguments.revision or "base")
        sys.stdout.write(f"{current(url) or 'empty'}\n")
    except (psycopg.OperationalError, OperationalError, UnicodeError) as error:
        return _refuse(complaint(error))
    except (RolesRefused, CommandError, ValueError) as error:
        return _refuse(str(error))
    return 0


def _refuse(message: str) -> int:
    sys.stderr.write(f"migrations: {message}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
