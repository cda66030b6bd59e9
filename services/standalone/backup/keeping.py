"""Which backups are kept, and what goes with those that are not."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from services.standalone.backup.folder import PARTIAL, SEGMENT, BackupFolder, Entry
from services.standalone.backup.manifest import Listed
from services.standalone.backup.sealed import CorruptError

KEEP_DEFAULT: Final = 7


def due_to_go(entries: Sequence[Entry], *, keep: int) -> list[Entry]:
    """Give what goes, of entries sorted from the newest: all but `keep` of each kind.

    The newest that is proven stays whatever its age, and a damaged one is left to people.
    """
    proven = next((each.id for each in entries if each.report and each.report.is_proven), None)
    going = []
    for kind in ("base", "dump"):
        whole = [each for each in entries if each.manifest and each.manifest.kind == kind]
        going += [each for each in whole[keep:] if each.id != proven and not each.problem]
    return going


def forget(folder: BackupFolder, *, keep: int, key: bytes | None) -> list[str]:
    """Remove what is due, and the WAL and bytes of files that no backup needs; give the ids."""
    with folder.locked():
        gone = due_to_go(folder.entries(), keep=keep)
        for each in gone:
            folder.remove(each)
        rest = folder.entries()
        if not any(each.manifest is None or each.problem for each in rest):
            # A damaged one may need anything; while there is one nothing else goes.
            _forget_wal(folder, rest)
            _forget_files(folder, rest, key)
    return [each.id for each in gone]


def remove_one(folder: BackupFolder, entry: Entry) -> None:
    """Remove one backup that somebody named."""
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
            return  # encrypted under another key, or damaged: who knows what it needs
    for path in folder.files.glob("*/*.gz*"):
        name = f"{path.parent.name}/{path.name.partition('.gz')[0]}"
        # What was kept since the oldest backup may be needed for a moment after it.
        if name not in listed and path.stat().st_mtime < oldest.timestamp():
            path.unlink(missing_ok=True)
