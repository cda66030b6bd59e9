"""The folder of backups, the WAL archive and the stored files.

backups/<id>/manifest.json …   a complete backup: its folder is renamed last
wal/<segment>.gz               the WAL since then, one segment each
files/<tenant>/<file>.gz       bytes of files, stored once for all backups
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.standalone.backup import keys
from services.standalone.backup.manifest import Manifest, Report
from services.standalone.backup.sealed import CorruptError, pieces, stored, sync_folder
from services.standalone.home import Home
from services.standalone.process import StandaloneError

MANIFEST: Final = "manifest.json"
REPORT: Final = "report.json"
LISTING: Final = "files.jsonl"
SHIPPED: Final = "shipped"  # in wal: the time of the last copy
GAP: Final = "gap"  # in wal: the time since which it has no gap
PARTIAL: Final = ".partial"  # suffix of an unfinished segment
_UNFINISHED: Final = ".partial-"
_ID: Final = re.compile(r"\d{8}T\d{12}Z-[0-9a-f]{8}")
SEGMENT: Final = re.compile(r"[0-9A-F]{24}")


@dataclass(frozen=True, slots=True)
class Entry:
    """A complete backup; `problem` if its manifest or report is damaged."""

    id: str
    path: Path
    manifest: Manifest | None
    report: Report | None
    problem: str = ""


class BackupFolder:
    """The backups of one database in one folder."""

    def __init__(self, root: Path, home: Home) -> None:
        self.root = root.expanduser().absolute()
        self.home = home
        self.backups = self.root / "backups"
        self.wal = self.root / "wal"
        self.files = self.root / "files"

    def make(self) -> None:
        """Create the folders, accessible only to us."""
        try:
            for folder in (self.root, self.backups, self.wal, self.files):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StandaloneError(
                f"QFLOW_BACKUP_FOLDER: cannot make {self.root} ({error.strerror})"
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder for this process; removes what a killed one left."""
        self.make()
        descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StandaloneError(
                    f"another process is using the backups in {self.root}; try again when it ended"
                ) from None
            for left in self.backups.glob(f"{_UNFINISHED}*"):
                shutil.rmtree(left, ignore_errors=True)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def begun(self, backup_id: str) -> Iterator[Path]:
        """Yield a folder to fill, which becomes a backup if the block succeeds."""
        partial = self.backups / f"{_UNFINISHED}{backup_id}"
        partial.mkdir(mode=0o700)
        try:
            yield partial
            sync_folder(partial)
            partial.rename(self.backups / backup_id)
            sync_folder(self.backups)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def entries(self) -> list[Entry]:
        """Return all complete backups, newest first."""
        try:
            names = sorted((each.name for each in self.backups.iterdir()), reverse=True)
        except FileNotFoundError:
            return []
        return [self._entry(name) for name in names if _ID.fullmatch(name)]

    def entry(self, backup_id: str) -> Entry:
        """Return a backup by its id; `latest` is the newest."""
        found = self.entries()
        for each in found:
            if backup_id in ("latest", each.id):
                return each
        raise StandaloneError(
            f"there is no backup {backup_id} in {self.root}; "
            + (f"the newest is {found[0].id}" if found else "there is none at all")
        )

    def listing(self, entry: Entry, key: bytes | None) -> Iterator[bytes]:
        """Yield the lines of a backup's file listing."""
        path = stored(entry.path, LISTING)
        if path is None:
            raise CorruptError(f"{LISTING} is missing")
        rest = b""
        for piece in pieces(path, key):
            *lines, rest = (rest + piece).split(b"\n")
            yield from lines

    def remove(self, entry: Entry) -> None:
        """Delete a backup: renamed first, so that a half-deleted one does not count."""
        gone = self.backups / f"{_UNFINISHED}{entry.id}"
        entry.path.rename(gone)
        sync_folder(self.backups)
        shutil.rmtree(gone, ignore_errors=True)

    def _entry(self, name: str) -> Entry:
        path = self.backups / name
        try:
            manifest = Manifest.read(keys.read_signed(path / MANIFEST, self.home)[0])
        except (CorruptError, TypeError) as error:
            return Entry(name, path, None, None, str(error))
        report = None
        if (path / REPORT).exists():
            try:
                report = Report.read(keys.read_signed(path / REPORT, self.home)[0])
            except (CorruptError, TypeError) as error:
                return Entry(name, path, manifest, None, str(error))
        return Entry(name, path, manifest, report)
