"""Time ranges of queries, and the values computed over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from services.kit.errors import FieldViolation, InvalidArgument

RANGE_MAX: Final = timedelta(days=366)
BUCKETS_MAX: Final = 1000
# The number of runs or errors that a response reads individually.
LOOKED_AT_MAX: Final = 10_000
NODES_MAX: Final = 1000
EDGES_MAX: Final = 20
# The number of values that are read individually.
VALUES_MAX: Final = 20_000
# The relative error bound of percentiles computed from sums.
SUMMED_ERROR: Final = 0.01
GROUPS_MAX: Final = 50
_EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Range:
    """A half-open time range."""

    start: datetime
    end: datetime


def range_of(
    start: datetime | None, end: datetime | None, *, now: datetime, usual: timedelta
) -> Range:
    """Return the requested range; raises InvalidArgument if it is empty or too long."""
    until = end or now
    # Nothing was recorded before 1970, and subtracting could leave the range of datetime.
    begin = start or max(until, _EARLIEST + usual) - usual
    if begin >= until:
        raise _wrong("end_time", "must be after start_time", "RANGE_EMPTY")
    if until - begin > RANGE_MAX:
        raise _wrong("start_time", "is more than 366 days before the end", "RANGE_TOO_LONG")
    return Range(begin, until)


def bucket_width(span: Range, width: timedelta | None) -> timedelta:
    """Return the width of the buckets; raises InvalidArgument if there would be too many."""
    whole = span.end - span.start
    if width is None:
        return whole
    if whole > width * BUCKETS_MAX:
        text = f"is so small that more than {BUCKETS_MAX:,} fit the range"
        raise _wrong("bucket_width", text, "TOO_MANY_BUCKETS")
    return width


def whole_hours(span: Range) -> Range:
    """Return the whole hours that contain a range."""
    last = span.end + timedelta(hours=1, microseconds=-1)
    return Range(*(each.replace(minute=0, second=0, microsecond=0) for each in (span.start, last)))


def shared_minutes(span: Range, width: timedelta) -> list[datetime]:
    """Return the minutes cut by an end of the range or of a bucket."""
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
    """The aggregated values of one time bucket."""

    starts_at: datetime
    count: int
    sum: float
    min: float
    max: float
    percentiles: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Buckets:
    """The buckets of a metric, and the relative error bound of their percentiles."""

    buckets: Sequence[Bucket]
    error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Took:
    """Percentiles of a duration, in milliseconds."""

    p50_ms: float
    p95_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatistics:
    """Aggregates over the runs of a workflow."""

    ended: int
    completed: int
    failed: int
    duration: Took | None
    queue_time: Took | None
    cpu_s: float
    oldest_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatistics:
    """Aggregates over one node in these runs."""

    node_id: str
    ended: int
    completed: int
    failed: int
    flaky: int
    duration: Took | None
    cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeStatistics:
    """Aggregates over the values carried by one edge."""

    source_node_id: str
    target_node_id: str
    count: int
    duration: Took | None
    mean_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowStatistics:
    """The statistics of a workflow; empty without runs."""

    runs: RunStatistics | None
    nodes: Sequence[NodeStatistics] = ()
    edges: Sequence[EdgeStatistics] = ()
    # The relative error bound of percentiles.
    error: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorGroup:
    """A group of similar errors; the example is the newest one."""

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
