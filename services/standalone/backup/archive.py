"""The WAL archive: transactions since a backup, within seconds of their commit.

PostgreSQL streams its WAL into a folder of the home, and retains it while we are away. From there
each segment is copied to the backups, the unfinished one repeatedly.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, LiteralString

from services.standalone import process
from services.standalone.backup import bytes_of_files
from services.standalone.backup.folder import GAP, PARTIAL, SEGMENT, SHIPPED, BackupFolder
from services.standalone.backup.sealed import ENCRYPTED, PLAIN, CorruptError, Writer, stored
from services.standalone.backup.source import Source
from services.standalone.home import write_private
from services.standalone.process import StandaloneError

SLOT: Final = "qflow_archive"
_PIECE_BYTES: Final = 1 << 20
_STATUS_S: Final = 2
_SLOT: Final[LiteralString] = """
    SELECT wal_status FROM pg_replication_slots WHERE slot_name = %s
"""
_DROP_SLOT: Final[LiteralString] = "SELECT pg_drop_replication_slot(%s)"


@dataclass(slots=True)
class Archive:
    """Receives the WAL of one database and ships it to its backups."""

    source: Source
    folder: BackupFolder
    files: Path | None
    key: bytes | None
    is_synchronous: bool = False
    _shipped: dict[str, int] = field(default_factory=dict)

    @property
    def incoming(self) -> Path:
        """The folder that pg_receivewal writes to, on the machine's own disk."""
        return incoming_of(self.folder)

    def run(self, *, interval_s: float, wait: Callable[[float], bool]) -> None:
        """Receive and ship until `wait` returns True; raises StandaloneError if receiving ends."""
        self.folder.make()
        self.incoming.mkdir(mode=0o700, exist_ok=True)
        self._same_database()
        self._make_slot()
        receiving = self._receive()
        try:
            while not wait(interval_s):
                if receiving.poll() is not None:
                    raise StandaloneError(
                        f"pg_receivewal ended ({process.describe_exit(receiving.returncode)}):\n"
                        + process.tail(self._log, lines=5)
                    )
                self.ship()
                self.keep_files()
        finally:
            receiving.terminate()
            receiving.wait()
            self.ship()

    def ship(self) -> int:
        """Copy new segments to the backups; returns how many."""
        count, self._shipped = _ship(self.incoming, self.folder, self.key, self._shipped)
        write_private(self.folder.wal / SHIPPED, datetime.now(UTC).isoformat())
        return count

    def keep_files(self) -> None:
        """Copy the bytes of new files, so that points in time between backups have them too."""
        if self.files is None:
            return
        with self.source.connected() as db:
            try:
                bytes_of_files.keep_new(db, source=self.files, pool=self.folder.files, key=self.key)
            except CorruptError as error:
                raise StandaloneError(str(error)) from error

    @property
    def _log(self) -> Path:
        return self.folder.home.log / "pg_receivewal.log"

    def _same_database(self) -> None:
        """Start over if the WAL in the folder is that of another database."""
        record = self.incoming / "system"
        now = self.source.history()
        before = record.read_text("ascii") if record.exists() else now
        if before != now:
            self.ship()
            shutil.rmtree(self.incoming)
            self.incoming.mkdir(mode=0o700)
        record.write_text(now, "ascii")

    def _make_slot(self) -> None:
        """Make the server retain WAL; discards received WAL from before a gap."""
        if hold_wal(self.source, self.folder):
            shutil.rmtree(self.incoming)
            self.incoming.mkdir(mode=0o700)
            (self.incoming / "system").write_text(self.source.history(), "ascii")

    def _receive(self) -> subprocess.Popen[bytes]:
        return process.start(
            self.source.command(
                "pg_receivewal",
                *("-D", str(self.incoming), f"--slot={SLOT}", "--no-loop"),
                f"--status-interval={_STATUS_S}",
                *(["--synchronous"] if self.is_synchronous else []),
                name=SLOT,
            ),
            log=self._log,
            env=self.source.environment,
            cwd=Path("/"),
        )


def hold_wal(source: Source, folder: BackupFolder) -> bool:
    """Make the server retain all WAL for the archive from now on; returns whether that is new.

    WAL may be missing between the previous archive and now. The gap is recorded, since no base
    backup from before can be recovered across it.
    """
    began = datetime.now(UTC)
    with source.connected() as db:
        found = db.execute(_SLOT, (SLOT,)).fetchone()
        # An existing slot from another folder's archive is taken over by this one.
        if found is not None and found[0] != "lost" and (folder.wal / GAP).exists():
            return False
        if found is not None and found[0] == "lost":
            db.execute(_DROP_SLOT, (SLOT,))
    write_private(folder.wal / GAP, began.isoformat())
    command = source.command("pg_receivewal", f"--slot={SLOT}", "--create-slot", "--if-not-exists")
    with source.output(command) as out:
        out.read()
    return True


def incoming_of(folder: BackupFolder) -> Path:
    """Return the folder that pg_receivewal writes to, on the machine's own disk."""
    return folder.home.root / "wal-incoming"


def ship_rest(folder: BackupFolder, key: bytes | None) -> None:
    """Copy what was received but not shipped when everything stopped."""
    if incoming_of(folder).is_dir():
        _ship(incoming_of(folder), folder, key, {})


def _ship(
    incoming: Path, folder: BackupFolder, key: bytes | None, shipped: Mapping[str, int]
) -> tuple[int, dict[str, int]]:
    """Ship finished segments once, and the unfinished one whenever it has changed.

    Returns how many were copied, and the unfinished segment's modification time.
    """
    count, times = 0, dict(shipped)
    whole = sorted(
        path
        for path in incoming.iterdir()
        if SEGMENT.fullmatch(path.name) or path.suffix == ".history"
    )
    for path in whole:
        if stored(folder.wal, path.name) is None:
            _store(path, folder, key)
            count += 1
        for ending in (PLAIN, ENCRYPTED):
            (folder.wal / f"{path.name}{PARTIAL}{ending}").unlink(missing_ok=True)
    # The newest stays, since pg_receivewal continues from it.
    for path in [each for each in whole if SEGMENT.fullmatch(each.name)][:-1]:
        path.unlink()
    for path in incoming.glob(f"*{PARTIAL}"):
        try:
            changed = path.stat().st_mtime_ns
            if times.get(path.name) != changed:
                _store(path, folder, key)
                times = {path.name: changed}
                count += 1
        except FileNotFoundError:
            continue  # it was completed just now, and is shipped as such the next time
    return count, times


def _store(path: Path, folder: BackupFolder, key: bytes | None) -> None:
    with path.open("rb") as file, Writer(folder.wal / path.name, key) as writer:
        while piece := file.read(_PIECE_BYTES):
            writer.write(piece)
        writer.finish()
