"""`python -m services.standalone.backup`: what telemetry runs; it answers in one line of JSON."""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog

from services.kit import env as read
from services.standalone.backup import keeping
from services.standalone.backup.ending import told_to_end
from services.standalone.backup.folder import GAP, SHIPPED, Entry
from services.standalone.backup.settings import BackupSettings
from services.standalone.home import Home
from services.standalone.postgres import Binaries
from services.standalone.process import StandaloneError

if TYPE_CHECKING:
    from services.standalone.backup.source import Source

_PR_SET_PDEATHSIG: Final = 1


def main(arguments: list[str] | None = None) -> int:
    """Run one operation; returns the exit code. Errors are reported in the JSON as well."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )
    asked = _parser().parse_args(arguments)
    if parent := os.environ.get("QFLOW_BACKUP_PARENT"):
        _end_with(int(parent))
    home = Home.from_env(os.environ)
    try:
        # Into the environment, since child programs take their settings from it.
        os.environ.update(read.with_secrets(os.environ))
        answer = _do(asked, BackupSettings.from_env(home, os.environ))
    except (StandaloneError, read.EnvError) as error:
        answer = {"error": str(error)}
    sys.stdout.write(json.dumps(answer) + "\n")
    return "error" in answer


def as_json(entry: Entry) -> dict[str, Any]:
    """Return the entry of a backup in a list."""
    return {
        "id": entry.id,
        "problem": entry.problem,
        "manifest": None if entry.manifest is None else entry.manifest.as_json(),
        "report": None if entry.report is None else entry.report.as_json(),
    }


def _do(asked: argparse.Namespace, settings: BackupSettings) -> dict[str, Any]:
    folder = settings.folder
    match asked.command:
        case "list":
            return {
                "backups": [as_json(each) for each in folder.entries()],
                "shipped_at": _moment_in(folder.wal / SHIPPED),
                "gap_at": _moment_in(folder.wal / GAP),
                "timeline": _source().history() if asked.timeline else "",
            }
        case "take":
            from services.standalone.backup.take import take

            source = _source()
            if asked.archived:
                from services.standalone.backup.archive import hold_wal

                folder.make()
                hold_wal(source, folder)
            manifest = take(
                source,
                folder,
                kind=asked.kind,
                files=settings.files,
                key=settings.key,
                backup_id=asked.id,
            )
            return as_json(folder.entry(manifest.id))
        case "verify":
            return _verify(asked.id, settings)
        case "delete":
            keeping.remove_one(folder, folder.entry(asked.id))
            return {}
        case "forget":
            return {"gone": keeping.forget(folder, keep=settings.keep, key=settings.key)}
        case _:
            return _archive(settings)


def _verify(backup_id: str, settings: BackupSettings) -> dict[str, Any]:
    from services.standalone.backup.verify import verify

    verify(
        settings.folder,
        settings.folder.entry(backup_id),
        binaries=Binaries.find(os.environ),
        key=settings.key,
        scratch=settings.scratch,
    )
    return as_json(settings.folder.entry(backup_id))


def _archive(settings: BackupSettings) -> dict[str, Any]:
    from services.standalone.backup.archive import Archive

    wait = told_to_end()
    archive = Archive(
        _source(), settings.folder, settings.files, settings.key, settings.is_synchronous
    )
    archive.run(interval_s=settings.ship_interval_s, wait=wait)
    return {}


def _source() -> Source:
    from services.standalone.backup.source import Source  # a driver, not needed to list

    url = os.environ.get("QFLOW_BACKUP_DATABASE_URL")
    if not url:
        raise StandaloneError(
            "set QFLOW_BACKUP_DATABASE_URL to the address of a login that may replicate and reads "
            "every row (qflow_backup)"
        )
    return Source(url, Binaries.find(os.environ))


def _moment_in(record: Path) -> str | None:
    try:
        return record.read_text("ascii").strip()
    except OSError:
        return None


def _end_with(parent: int) -> None:
    """Exit in an orderly way when the parent process ends, since nobody would read the result."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m services.standalone.backup", description=__doc__
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list").add_argument("--timeline", action="store_true")
    commands.add_parser("forget")
    commands.add_parser("archive")
    taken = commands.add_parser("take")
    taken.add_argument("kind", choices=["base", "dump"])
    taken.add_argument("--id")
    taken.add_argument("--archived", action="store_true", help="the archive goes on from it")
    for name in ("verify", "delete"):
        commands.add_parser(name).add_argument("id")
    return parser


if __name__ == "__main__":
    sys.exit(main())
