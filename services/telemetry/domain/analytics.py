"""Ranges that are asked about, and what is computed over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from services.kit.errors import FieldViolation, InvalidArgument

RANGE_MAX: Final = timedelta(days=366)
BUCKETS_MAX: Final = 1000
# How many runs, or errors, an answer looks at one by one.
LOOKED_AT_MAX: Final = 10_000
NODES_MAX: Final = 1000
EDGES_MAX: Final = 20
# Up to so many values are read one by one.
VALUES_MAX: Final = 20_000
# How far a percentile of what was added up may be from the exact one, as a part of its value.
SUMMED_ERROR: Final = 0.01
GROUPS_MAX: Final = 50
_EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Range:
    """From a moment on, until before another."""

    start: datetime
    end: datetime


def range_of(
    start: datetime | None, end: datetime | None, *, now: datetime, usual: timedelta
) -> Range:
    """Give the range that is meant; raises InvalidArgument for one that is empty or too long."""
    until = end or now
    # Nothing was recorded before, and there may be no such moment.
    begin = start or max(until, _EARLIEST + usual) - usual
    if begin >= until:
        raise _wrong("end_time", "must be after start_time", "RANGE_EMPTY")
    if until - begin > RANGE_MAX:
        raise _wrong("start_time", "is more than 366 days before the end", "RANGE_TOO_LONG")
    return Range(begin, until)


def bucket_width(span: Range, width: timedelta | None) -> timedelta:
    """Give the width of the buckets; raises InvalidArgument where too many would fit the range."""
    whole = span.end - span.start
    if width is None:
        return whole
    if whole > width * BUCKETS_MAX:
        text = f"is so small that more than {BUCKETS_MAX:,} fit the range"
        raise _wrong("bucket_width", text, "TOO_MANY_BUCKETS")
    return width


def whole_hours(span: Range) -> Range:
    """Give the hours that a range lies in."""
    last = span.end + timedelta(hours=1, microseconds=-1)
    return Range(*(each.replace(minute=0, second=0, microsecond=0) for each in (span.start, last)))


def shared_minutes(span: Range, width: timedelta) -> list[datetime]:
    """Give the minutes that an end of the range or of a bucket lies within."""
    found = set()
    at = span.start
    while at < span.end:
        found.add(at.replace(second=0, microsecond=0))
        at += width
    found.add(span.end.replace(second=0, microsecond=0))
    return sorted(
        minute for minute in found if not _is_whole(minute, span, width) and minute < span.end
    )


def _is_whole(minute: datetime, span: Range, width: timedelta) -> bool:
    last = minute + timedelta(minutes=1, microseconds=-1)
    return (
        minute >= span.start
        and last < span.end
        and (minute - span.start) // width == (last - span.start) // width
    )


def _wrong(field: str, text: str, reason: str) -> InvalidArgument:
    fields = [FieldViolation(field, text, reason)]
    return InvalidArgument(reason, f"{field} {text}", fields=fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """The values of one stretch of time."""

    starts_at: datetime
    count: int
    sum: float
    min: float
    max: float
    percentiles: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Buckets:
    """The buckets of a metric, and how far their percentiles may be from the exact ones."""

    buckets: Sequence[Bucket]
    error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Took:
    """How long something takes, in milliseconds: for a half, for 95 and for 99 of 100."""

    p50_ms: float
    p95_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatistics:
    """How the runs of a workflow went."""

    ended: int
    completed: int
    failed: int
    duration: Took | None
    queue_time: Took | None
    cpu_s: float
    oldest_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatistics:
    """How one node did in them."""

    node_id: str
    ended: int
    completed: int
    failed: int
    flaky: int
    duration: Took | None
    cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeStatistics:
    """How long values took along one edge."""

    source_node_id: str
    target_node_id: str
    count: int
    duration: Took | None
    mean_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowStatistics:
    """All of one workflow; without runs there is nothing to tell."""

    runs: RunStatistics | None
    nodes: Sequence[NodeStatistics] = ()
    edges: Sequence[EdgeStatistics] = ()
    # How far percentiles may be from the exact ones.
    error: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorGroup:
    """Errors that are alike; the example is the last of them."""

    fingerprint: str
    error_type: str
    node_id: str
    count: int
    executions: int
    first_at: datetime
    last_at: datetime
    example_id: UUID
    example_message: str
    example_execution_id: UUID | None
