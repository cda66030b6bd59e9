"""The manifest of a backup, and the report of its verification."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, Self

from services.standalone.backup.sealed import CorruptError, Part

Kind = Literal["base", "dump"]
FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Listed:
    """A row of `files`: the key, size and digest of its bytes."""

    key: str
    size_bytes: int
    sha256: str

    def line(self) -> bytes:
        """Return its line of a listing."""
        return json.dumps([self.key, self.size_bytes, self.sha256]).encode() + b"\n"

    @classmethod
    def of(cls, line: bytes) -> Listed:
        """Parse a line of a listing."""
        return cls(*json.loads(line))


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The origin of a backup, its recovery point, and all its files with digests."""

    id: str
    kind: Kind
    started_at: datetime
    recovery_point: datetime  # by the database's clock; contains all that was committed by then
    finished_at: datetime
    postgres_major: int
    schema_revision: str
    database: str
    superuser: str
    system_id: str
    first_segment: str  # of the WAL that makes it consistent; empty for a dump
    key_id: str
    parts: Sequence[Part]
    files_count: int
    files_bytes: int
    files_kept: bool  # False if they are in an object store, which has its own copies
    rows: Mapping[str, int]  # of each table, in a dump

    @property
    def size_bytes(self) -> int:
        """The size of its own files; runs' files are shared by all backups."""
        return sum(part.size_bytes for part in self.parts)

    def as_json(self) -> dict[str, Any]:
        """Return a JSON-compatible dict."""
        return {**_plain(asdict(self)), "format": FORMAT}

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> Self:
        """Parse a manifest; raises CorruptError for an unknown format."""
        if facts.get("format") != FORMAT:
            raise CorruptError(
                f"the backup has format {facts.get('format')}, this version reads {FORMAT}: "
                "use the version of Qflow that made it, or a later one"
            )
        told = {name: value for name, value in facts.items() if name != "format"}
        for name in ("started_at", "recovery_point", "finished_at"):
            told[name] = datetime.fromisoformat(told[name])
        told["parts"] = tuple(Part(**part) for part in told["parts"])
        return cls(**told)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The result of restoring a backup into a separate server and examining the copy."""

    backup_id: str
    verified_at: datetime
    recovery_point: datetime  # the last point in time that the copy contains
    recovery_time_s: float  # until the restored server answered
    problems: Sequence[str]
    invariants_held: int
    invariants_asked: int
    files_checked: int
    rows_read: int
    signed_here: bool

    @property
    def is_proven(self) -> bool:
        """Whether the backup can be relied on."""
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """Return a JSON-compatible dict."""
        return _plain(asdict(self))

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> Self:
        """Parse a report."""
        told = dict(facts)
        for name in ("verified_at", "recovery_point"):
            told[name] = datetime.fromisoformat(told[name])
        told["problems"] = tuple(told["problems"])
        return cls(**told)


def id_of(moment: datetime, noise: str) -> str:
    """Return a new id; ids sort by time."""
    return f"{moment.astimezone(UTC):%Y%m%dT%H%M%S%fZ}-{noise}"


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in values.items()
    }
