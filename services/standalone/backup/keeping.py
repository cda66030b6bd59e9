"""Which backups to keep, and what is deleted along with the others."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from services.standalone.backup.folder import PARTIAL, SEGMENT, BackupFolder, Entry
from services.standalone.backup.manifest import Listed
from services.standalone.backup.sealed import CorruptError

KEEP_DEFAULT: Final = 7


def due_to_go(entries: Sequence[Entry], *, keep: int) -> list[Entry]:
    """Return the backups to delete, of entries sorted newest first: all but `keep` of each kind.

    The newest verified one is always kept, and damaged ones are left to the operator.
    """
    proven = next((each.id for each in entries if each.report and each.report.is_proven), None)
    going = []
    for kind in ("base", "dump"):
        whole = [each for each in entries if each.manifest and each.manifest.kind == kind]
        going += [each for each in whole[keep:] if each.id != proven and not each.problem]
    return going


def forget(folder: BackupFolder, *, keep: int, key: bytes | None) -> list[str]:
    """Delete expired backups, and WAL and files that no backup needs; returns the backups' ids."""
    with folder.locked():
        gone = due_to_go(folder.entries(), keep=keep)
        for each in gone:
            folder.remove(each)
        rest = folder.entries()
        if not any(each.manifest is None or each.problem for each in rest):
            # A damaged backup may need anything, so nothing else is deleted while there is one.
            _forget_wal(folder, rest)
            _forget_files(folder, rest, key)
    return [each.id for each in gone]


def remove_one(folder: BackupFolder, entry: Entry) -> None:
    """Delete one named backup."""
    with folder.locked():
        folder.remove(entry)


def _forget_wal(folder: BackupFolder, entries: Sequence[Entry]) -> None:
    needed = [
        each.manifest.first_segment[8:]
        for each in entries
        if each.manifest is not None and each.manifest.kind == "base"
    ]
    if not needed:
        return
    first = min(needed)
    for path in folder.wal.glob("*.gz*"):
        segment = path.name.partition(".gz")[0].removesuffix(PARTIAL)
        if SEGMENT.fullmatch(segment) and segment[8:] < first:
            path.unlink(missing_ok=True)


def _forget_files(folder: BackupFolder, entries: Sequence[Entry], key: bytes | None) -> None:
    manifests = [each.manifest for each in entries if each.manifest is not None]
    if not manifests or not all(each.files_kept for each in manifests):
        return
    oldest: datetime = min(each.started_at for each in manifests)
    listed: set[str] = set()
    for entry in entries:
        try:
            listed |= {Listed.of(line).key for line in folder.listing(entry, key)}
        except CorruptError:
            return  # encrypted under another key, or damaged: what it needs is unknown
    for path in folder.files.glob("*/*.gz*"):
        name = f"{path.parent.name}/{path.name.partition('.gz')[0]}"
        # Files stored since the oldest backup may be needed for a point in time after it.
        if name not in listed and path.stat().st_mtime < oldest.timestamp():
            path.unlink(missing_ok=True)
