"""The backup commands for operators."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

import structlog

from services.standalone import hints, people
from services.standalone.backup import at_home, keeping
from services.standalone.backup.folder import Entry
from services.standalone.backup.settings import BackupSettings
from services.standalone.backup.source import Source
from services.standalone.backup.take import take
from services.standalone.backup.verify import verify
from services.standalone.home import Home
from services.standalone.postgres import Binaries
from services.standalone.process import StandaloneError

_UNPROVEN: Final = 1
Say = Callable[[str], None]


def do(  # noqa: PLR0911 - one for each command
    asked: argparse.Namespace, home: Home, *, say: Say
) -> int:
    """Run a command; returns the exit code, 1 if a backup could not be verified."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )
    match asked.command:
        case "backup":
            return _take(home, dump=asked.dump, say=say)
        case "backups":
            return _list(home, say)
        case "verify-backup":
            return _verify(home, asked.id, say)
        case "restore":
            entry = _settings(home).folder.entry(asked.id)
            return _restore(home, entry, None, replace=asked.replace, say=say)
        case "recover":
            entry = _newest_before(_settings(home), asked.to)
            return _restore(home, entry, asked.to, replace=asked.replace, say=say)
        case "replica":
            return _follow(home, Path(asked.of), say)
        case "promote":
            return _promote(home, say)
        case _:
            return _upgrade(home, asked.old, say)


def _take(home: Home, *, dump: bool, say: Say) -> int:
    settings = _settings(home)
    with people.logins(home) as urls:
        url = os.environ.get("QFLOW_BACKUP_DATABASE_URL") or urls.get("qflow_backup")
        if url is None:
            raise StandaloneError(
                "the database has no login for backups; as a superuser run: CREATE ROLE "
                "qflow_backup LOGIN REPLICATION BYPASSRLS; GRANT pg_read_all_data TO qflow_backup; "
                "and start the suite once"
            )
        manifest = take(
            Source(url, Binaries.find(os.environ)),
            settings.folder,
            kind="dump" if dump else "base",
            files=settings.files,
            key=settings.key,
        )
    gone = keeping.forget(settings.folder, keep=settings.keep, key=settings.key)
    say(f"{manifest.id}: {manifest.kind}, {manifest.size_bytes / 1e6:.1f} MB")
    if gone:
        say(f"no longer kept: {', '.join(gone)}")
    say(f"prove it: {hints.standalone(f'verify-backup {manifest.id}', home=home.root)}")
    return 0


def _list(home: Home, say: Say) -> int:
    for each in _settings(home).folder.entries():
        say(_told(each))
    return 0


def _told(entry: Entry) -> str:
    if entry.manifest is None or entry.problem:
        return f"{entry.id}  DAMAGED: {entry.problem}"
    if entry.report is None:
        proven = "not verified"
    elif entry.report.is_proven:
        proven = f"verified {entry.report.verified_at:%Y-%m-%d %H:%M}"
    else:
        proven = f"NOT PROVEN: {entry.report.problems[0]}"
    size = f"{entry.manifest.size_bytes / 1e6:.1f} MB"
    return f"{entry.id}  {entry.manifest.kind}  {size}  {proven}"


def _verify(home: Home, backup_id: str, say: Say) -> int:
    settings = _settings(home)
    report = verify(
        settings.folder,
        settings.folder.entry(backup_id),
        binaries=Binaries.find(os.environ),
        key=settings.key,
        scratch=settings.scratch,
    )
    for problem in report.problems:
        say(f"PROBLEM: {problem}")
    say(
        f"{report.backup_id}: {'proven' if report.is_proven else 'NOT PROVEN'}; the copy goes to "
        f"{report.recovery_point.isoformat()} and answered after {report.recovery_time_s:.1f} s; "
        f"{report.invariants_held} of {report.invariants_asked} invariants hold, "
        f"{report.rows_read} rows and {report.files_checked} files were read"
        + ("" if report.signed_here else "; it was signed by a key that this home does not have")
    )
    return 0 if report.is_proven else _UNPROVEN


def _restore(home: Home, entry: Entry, to: datetime | None, *, replace: bool, say: Say) -> int:
    kept = at_home.restore(
        home,
        _settings(home),
        entry,
        binaries=Binaries.find(os.environ),
        to=to,
        replace=replace,
    )
    say(f"restored {entry.id}" + (f" up to {to.isoformat()}" if to else ""))
    if kept is not None:
        say(f"the database before is kept in {kept}; remove it when all is well")
    say(f"start it: {hints.make('run', home=home.root, env=os.environ)}")
    return 0


def _newest_before(settings: BackupSettings, to: datetime) -> Entry:
    for each in settings.folder.entries():
        if each.manifest and each.manifest.kind == "base" and each.manifest.recovery_point < to:
            return each
    raise StandaloneError(
        f"no base backup in {settings.folder.root} is older than {to.isoformat()}"
    )


def _follow(home: Home, file: Path, say: Say) -> int:
    try:
        url = file.read_text("utf-8").strip()
    except OSError as error:
        raise StandaloneError(f"cannot read {file}: {error.strerror}") from error
    home.make()
    return at_home.follow(home, Source(url, Binaries.find(os.environ)), say=say)


def _promote(home: Home, say: Say) -> int:
    settings = _settings(home) if os.environ.get("QFLOW_BACKUP_FOLDER") else None
    at_home.promote(home, settings, binaries=Binaries.find(os.environ))
    say("promoted; the server before must not be started again as it is")
    say(f"start it: {hints.make('run', home=home.root, env=os.environ)}")
    return 0


def _upgrade(home: Home, old: Path, say: Say) -> int:
    new = Binaries.find(os.environ)
    kept = at_home.upgrade(home, old=Binaries.at(old, source="--from"), new=new)
    say(f"the database is of PostgreSQL {new.major} now; the one before is kept in {kept}")
    return 0


def _settings(home: Home) -> BackupSettings:
    return BackupSettings.from_env(home, os.environ)
