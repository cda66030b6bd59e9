"""Points measured by callers: which of them can be recorded, and their sums."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

POINTS_MAX: Final = 10_000
REFUSALS_MAX: Final = 1_000
# The range of a metric's column: 24 digits before the decimal point and six after it.
_VALUE_BOUND: Final = 1e24
_LEAST: Final = 0.5e-6
_MINUTE_US: Final = 60_000_000
_AHEAD_US: Final = 5 * _MINUTE_US
_AGO_US: Final = 366 * 86_400 * 1_000_000
# Prefixes of the metrics that Qflow itself derives.
_RESERVED: Final = ("execution_", "node_", "container_")
_STEPS: Final = 100
_SHIFT: Final = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points with one name, of one run or none; times are microseconds since 1970."""

    name: str
    unit: str
    execution_id: UUID | None
    keeps_points: bool
    values: Sequence[float]
    times_us: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A point that cannot be recorded, or a whole series if `point_index` is None."""

    series_index: int
    point_index: int | None
    is_missing: bool = False  # the run is missing
    reason: str
    text: str


@dataclass(slots=True)
class Checked:
    """What a call can record, and what it cannot."""

    series: list[Series] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    refused_count: int = 0

    @property
    def count(self) -> int:
        """The number of points to record."""
        return sum(len(each.values) for each in self.series)


@dataclass(frozen=True, slots=True)
class Sum:
    """Values of one minute in one step.

    The extremes are those of the whole minute; its total is in its first step only.
    """

    name: str
    workflow_id: UUID | None
    minute_us: int
    mark: int
    count: int
    total: float
    low: float
    high: float


def checked(
    given: Sequence[Series], workflows: Mapping[UUID, UUID | None], *, now_us: int
) -> Checked:
    """Separate valid from invalid points; `workflows` maps the runs that the caller may read."""
    found = Checked()
    earliest_us, latest_us = now_us - _AGO_US, now_us + _AHEAD_US
    for at, each in enumerate(given):
        refusal = _refused_whole(at, each, workflows)
        if refusal is not None:
            found.refused_count += len(each.values)
            found.refusals.append(refusal)
            continue
        wrong = [
            index
            for index, (value, time_us) in enumerate(zip(each.values, each.times_us, strict=True))
            # NaN is within no bounds.
            if not -_VALUE_BOUND < value < _VALUE_BOUND or not earliest_us <= time_us <= latest_us
        ]
        if not wrong:
            found.series.append(each)
            continue
        found.refused_count += len(wrong)
        found.refusals += [_refused(at, index, each.values[index]) for index in wrong]
        if len(wrong) < len(each.values):
            found.series.append(_without(each, set(wrong)))
    del found.refusals[REFUSALS_MAX:]
    return found


def _refused_whole(
    at: int, series: Series, workflows: Mapping[UUID, UUID | None]
) -> Refusal | None:
    if series.name.startswith(_RESERVED):
        return Refusal(
            series_index=at,
            point_index=None,
            reason="METRIC_NAME_RESERVED",
            text="names that begin with execution_, node_ or container_ are Qflow's own",
        )
    if series.execution_id is not None and series.execution_id not in workflows:
        return Refusal(
            series_index=at,
            point_index=None,
            is_missing=True,
            reason="EXECUTION_NOT_FOUND",
            text="there is no such execution",
        )
    return None


def _refused(at: int, index: int, value: float) -> Refusal:
    if -_VALUE_BOUND < value < _VALUE_BOUND:
        reason = "RECORD_TIME_INVALID"
        text = "record_time must be at most 5 minutes ahead and at most 366 days ago"
    else:
        reason = "METRIC_VALUE_INVALID"
        text = "metric_value must be a number of at most 24 digits"
    return Refusal(series_index=at, point_index=index, reason=reason, text=text)


def _without(series: Series, wrong: set[int]) -> Series:
    kept = [index for index in range(len(series.values)) if index not in wrong]
    return Series(
        name=series.name,
        unit=series.unit,
        execution_id=series.execution_id,
        keeps_points=series.keeps_points,
        values=[series.values[index] for index in kept],
        times_us=[series.times_us[index] for index in kept],
    )


def sums_of(series: Series, workflow_id: UUID | None) -> Iterator[Sum]:
    """Sum up the points of a series by minute and step."""
    minutes: dict[int, list[float]] = {}
    for value, time_us in zip(series.values, series.times_us, strict=True):
        minutes.setdefault(time_us // _MINUTE_US, []).append(value)
    for minute, values in minutes.items():
        total, low, high = sum(values), min(values), max(values)
        for mark, count in Counter(map(mark_of, values)).items():
            yield Sum(series.name, workflow_id, minute * _MINUTE_US, mark, count, total, low, high)
            total = 0.0


def mark_of(value: float) -> int:
    """Return the number of a value's logarithmic step, like `metric_mark` in the schema.

    Values smaller than the column's resolution count as zero.
    """
    if value >= _LEAST:
        return _SHIFT + math.ceil(_STEPS * math.log(value))
    if value <= -_LEAST:
        return -_SHIFT - math.ceil(_STEPS * math.log(-value))
    return 0
