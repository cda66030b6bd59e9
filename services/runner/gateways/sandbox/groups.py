"""Process groups of sandboxes, recorded on disk so that leftovers of a killed runner can be ended.

For sandboxes without a namespace or a control group. Their filter prevents leaving the process
group, so everything that a sandbox started is in it, even if reparented.
"""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

import msgspec

_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_FILTERED: Final = "2"


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    group: int
    started_ticks: int
    user: int
    boot: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Process:
    pid: int
    group: int
    session: int
    started_ticks: int


class ProcessGroups:
    """One file per living sandbox; only the holder of the home's lock may use the folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def note(self, name: str, *, pid: int, user: int) -> None:
        """Record a sandbox by its first process, before that reads user code; raises OSError."""
        found = _process(pid)
        if found is None:
            return
        record = _Record(
            group=pid, started_ticks=found.started_ticks, user=user, boot=_BOOT.read_text()
        )
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self._folder / name).write_bytes(msgspec.json.encode(record))

    def forget(self, name: str) -> None:
        """Delete the record of a sandbox whose group has been killed."""
        (self._folder / name).unlink(missing_ok=True)

    def reap(self) -> int:
        """Kill what is certainly left of an earlier runner; return the number of groups killed.

        A truncated record belongs to a sandbox without user code, which ends with its channel.
        """
        return sum(self.end(file.name) for file in list(self._folder.glob("*")))

    def names(self) -> set[UUID]:
        """Return the recorded sandboxes."""
        return {UUID(file.name) for file in self._folder.glob("*")}

    def end(self, name: str) -> bool:
        """Kill a recorded group if it certainly is the sandbox's, and delete the record."""
        file = self._folder / name
        killed = False
        with contextlib.suppress(msgspec.DecodeError, FileNotFoundError):
            record = msgspec.json.decode(file.read_bytes(), type=_Record)
            members = [each for each in _processes() if each.group == record.group]
            # Processes that end meanwhile are ignored: otherwise constant forking would prevent the
            # kill.
            known = [of for each in members if (of := _is_of(record, each)) is not None]
            if known and all(known):
                killed = True
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(record.group, signal.SIGKILL)
        file.unlink(missing_ok=True)
        return killed


def _is_of(record: _Record, process: _Process) -> bool | None:
    """Return whether a process belongs to the sandbox, not to a later group of the same number.

    None if it has ended. The first process may be gone; the number is not reused while the group
    has members. They are recognised by what they cannot change: filter, user and session.
    """
    if record.boot != _BOOT.read_text() or process.session != record.group:
        return False
    if process.pid == record.group and process.started_ticks != record.started_ticks:
        return False
    try:
        text = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    status = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return (
        process.started_ticks >= record.started_ticks
        and status.get("Seccomp", "").strip() == _FILTERED
        and set(status.get("Uid", "").split()) == {str(record.user)}
    )


def _processes() -> list[_Process]:
    pids = [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
    return [found for pid in pids if (found := _process(pid)) is not None]


def _process(pid: int) -> _Process | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name in brackets may contain spaces and brackets; fields are counted from its end.
    state, _, group, session, *rest = stat.rpartition(")")[2].split()
    if state in {"Z", "X"}:
        return None
    return _Process(pid=pid, group=int(group), session=int(session), started_ticks=int(rest[15]))
