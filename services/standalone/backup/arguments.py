"""Names and arguments of the backup commands; a light import, since every command loads it."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

NAMES: Final = (
    *("backup", "backups", "verify-backup", "restore", "recover"),
    *("replica", "promote", "upgrade-postgres"),
)


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to a parser."""
    taken = commands.add_parser("backup", help="take a backup into QFLOW_BACKUP_FOLDER")
    taken.add_argument("--dump", action="store_true", help="a dump of the database alone")
    commands.add_parser("backups", help="list the backups and what proving them found")
    proven = commands.add_parser("verify-backup", help="restore a backup aside and examine it")
    proven.add_argument("id", nargs="?", default="latest")
    back = commands.add_parser("restore", help="make this home's database that of a backup")
    back.add_argument("id", nargs="?", default="latest")
    back.add_argument("--replace", action="store_true", help="keep the database there is beside it")
    moment = commands.add_parser("recover", help="go back to a moment")
    moment.add_argument("--to", required=True, type=_moment, help="2026-11-27T10:00:00Z")
    moment.add_argument("--replace", action="store_true", help="as for restore")
    replica = commands.add_parser("replica", help="follow another server until it is stopped")
    replica.add_argument(
        "--of", required=True, metavar="FILE", help="a file with the address of its qflow_backup"
    )
    commands.add_parser("promote", help="make a replica this home's server")
    upgraded = commands.add_parser(
        "upgrade-postgres", help="take the database to this version of PostgreSQL"
    )
    upgraded.add_argument(
        "--from", dest="old", required=True, type=Path, help="the folder of the old `postgres`"
    )


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
