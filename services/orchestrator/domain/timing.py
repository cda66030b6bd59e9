"""When a schedule is due: by the wall clock of a time zone, or at equal intervals.

Cron expressions are evaluated by `cronsim` on naive local times; changes of daylight saving time
are handled here. If the hour field begins with `*`, times are evaluated by elapsed time: "every
quarter of an hour" means just that, even in a night of 25 hours.
"""

from __future__ import annotations

import hashlib
import zoneinfo
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import islice
from typing import Any, Final, Literal
from uuid import UUID
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from services.kit.errors import invalid

SkippedTime = Literal["after_gap", "omit"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# Nothing is due after this.
_LAST: Final = datetime(9000, 1, 1, tzinfo=UTC)
# If a gap skips every time for so many years, it always does.
_LEFT_OUT_YEARS_MAX: Final = 50
_FIRST: Final = datetime(1900, 1, 1, tzinfo=UTC)
# The fields that `cronsim` names, and their allowed values.
_ALLOWED: Final = {
    "minute": "0 to 59",
    "hour": "0 to 23",
    "day-of-month": "1 to 31, L, LW",
    "month": "1 to 12, JAN to DEC",
    "day-of-week": "0 to 7, SUN to SAT, 5L, MON#2",
}
_FIELDS: Final = 5
_HOUR_FIELD: Final = 1
# Zone names whose meaning depends on the machine.
_MACHINES_OWN: Final = frozenset({"localtime", "Factory", "posixrules"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Cron:
    """Times by the wall clock of a time zone."""

    expression: str
    time_zone: str = "UTC"
    skipped_time: SkippedTime = "after_gap"


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Times at equal intervals since 1970."""

    every_ms: int
    offset_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """All times of a schedule."""

    times: Cron | Interval
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    jitter_ms: int = 0
    time_input: str = ""  # of the workflow: takes the time of each tick


def check(timing: Timing, *, field: str, now: datetime) -> datetime:
    """Refuse invalid timings and those without a next time; returns the first time after now."""
    match timing.times:
        case Cron():
            _check_cron(timing.times, field=f"{field}.cron")
        case Interval(every_ms=every_ms, offset_ms=offset_ms) if offset_ms >= every_ms:
            fault = "must be less than the distance"
            raise invalid(f"{field}.interval.offset", "OFFSET_INVALID", fault)
    for name, moment in (("start_time", timing.starts_at), ("end_time", timing.ends_at)):
        if moment is not None and not _FIRST <= moment <= _LAST:
            raise invalid(f"{field}.{name}", "TIME_INVALID", "must be in the years 1900 to 8999")
    first = next_after(timing, now)
    if first is None:
        fault = "no time comes after now: look at the expression, start_time and end_time"
        raise invalid(field, "SCHEDULE_NEVER_DUE", fault)
    return first


def ticks(timing: Timing, after: datetime) -> Iterator[datetime]:
    """Yield the times after a moment, in order, without jitter."""
    if timing.starts_at is not None and timing.starts_at > after:
        after = timing.starts_at - timedelta(microseconds=1)
    found = (
        _by_clock(timing.times, after)
        if isinstance(timing.times, Cron)
        else _by_distance(timing.times, after)
    )
    for moment in found:
        if moment >= (timing.ends_at or _LAST):
            return
        yield moment


def next_after(timing: Timing, after: datetime) -> datetime | None:
    """Return the first time after a moment; None if there is none."""
    return next(ticks(timing, after), None)


def upcoming(timing: Timing, after: datetime, *, count: int) -> list[datetime]:
    """Return the next `count` times."""
    return list(islice(ticks(timing, after), count))


def put_off(timing: Timing, schedule_id: UUID, tick_at: datetime) -> datetime:
    """Return when a tick is to start: with its jitter, which is derived from the tick."""
    if not timing.jitter_ms:
        return tick_at
    drawn = hashlib.sha256(schedule_id.bytes + tick_at.isoformat().encode()).digest()[:8]
    share = int.from_bytes(drawn) / 2**64
    return tick_at + timedelta(milliseconds=int(timing.jitter_ms * share))


def time_texts(timing: Timing, tick_at: datetime) -> tuple[str, str]:
    """Return the time of a tick in the schedule's zone as text, as a datetime and as a date."""
    zone = timing.times.time_zone if isinstance(timing.times, Cron) else "UTC"
    local = tick_at.astimezone(ZoneInfo(zone))
    return local.isoformat(), local.date().isoformat()


def to_json(timing: Timing) -> dict[str, Any]:
    """Return the stored form."""
    match timing.times:
        case Cron(expression=expression, time_zone=zone, skipped_time=skipped):
            stored: dict[str, Any] = {"cron": expression, "time_zone": zone, "skipped": skipped}
        case Interval(every_ms=every_ms, offset_ms=offset_ms):
            stored = {"every_ms": every_ms, "offset_ms": offset_ms}
    if timing.starts_at is not None:
        stored["starts_at"] = timing.starts_at.isoformat()
    if timing.ends_at is not None:
        stored["ends_at"] = timing.ends_at.isoformat()
    if timing.jitter_ms:
        stored["jitter_ms"] = timing.jitter_ms
    if timing.time_input:
        stored["time_input"] = timing.time_input
    return stored


def from_json(stored: dict[str, Any]) -> Timing:
    """Decode the stored form."""
    times: Cron | Interval
    if "cron" in stored:
        times = Cron(
            expression=stored["cron"],
            time_zone=stored["time_zone"],
            skipped_time=stored["skipped"],
        )
    else:
        times = Interval(every_ms=stored["every_ms"], offset_ms=stored["offset_ms"])
    starts_at, ends_at = stored.get("starts_at"), stored.get("ends_at")
    return Timing(
        times=times,
        starts_at=datetime.fromisoformat(starts_at) if starts_at else None,
        ends_at=datetime.fromisoformat(ends_at) if ends_at else None,
        jitter_ms=stored.get("jitter_ms", 0),
        time_input=stored.get("time_input", ""),
    )


def _check_cron(cron: Cron, *, field: str) -> None:
    if cron.time_zone not in _zones():
        fault = f"there is no time zone {cron.time_zone[:64]!r}; take an IANA name: Europe/Berlin"
        raise invalid(f"{field}.time_zone", "TIME_ZONE_UNKNOWN", fault)
    fields = cron.expression.split()
    if len(fields) != _FIELDS:
        fault = "must have five fields: minute, hour, day of month, month, day of week"
        raise invalid(f"{field}.expression", "CRON_INVALID", fault)
    fault = _unreadable(cron.expression)
    if not fault:
        return
    named = fault.removeprefix("Bad ")
    minute, hour, day, _, weekday = fields
    if named == "day-of-month" and not _unreadable(f"{minute} {hour} {day} * {weekday}"):
        fault = "none of its months has such a day"
    elif named in _ALLOWED:
        fault += f"; it takes {_ALLOWED[named]}, *, a-b, a,b and /step"
    raise invalid(f"{field}.expression", "CRON_INVALID", fault)


def _unreadable(expression: str) -> str:
    """Return what is wrong with a cron expression, or an empty text."""
    try:
        # cronsim raises AssertionError or TypeError for some malformed steps.
        CronSim(expression, _EPOCH)
    except (CronSimError, AssertionError, TypeError, ValueError) as error:
        return str(error) or "cannot be read"
    return ""


@cache
def _zones() -> frozenset[str]:
    return frozenset(zoneinfo.available_timezones() - _MACHINES_OWN)


def _by_distance(interval: Interval, after: datetime) -> Iterator[datetime]:
    microseconds = (after - _EPOCH) // timedelta(microseconds=1) - interval.offset_ms * 1000
    count = microseconds // (interval.every_ms * 1000) + 1
    while True:
        milliseconds = interval.offset_ms + count * interval.every_ms
        yield _EPOCH + timedelta(milliseconds=milliseconds)
        count += 1


def _by_clock(cron: Cron, after: datetime) -> Iterator[datetime]:
    zone = ZoneInfo(cron.time_zone)
    if cron.expression.split()[_HOUR_FIELD].startswith("*"):
        yield from _by_elapsed_time(cron, zone, after)
        return
    last = after
    for found in CronSim(cron.expression, after.astimezone(zone).replace(tzinfo=None)):
        moment = _moment(cron, zone, found)
        # Times that coincide after a gap are one; of a repeated hour only the first counts.
        if moment is not None and moment > last:
            last = moment
            yield moment
        elif found.year - last.year > _LEFT_OUT_YEARS_MAX:
            return


def _by_elapsed_time(cron: Cron, zone: ZoneInfo, after: datetime) -> Iterator[datetime]:
    """Yield each moment whose local time matches, using one UTC offset after the other.

    Clocks do not always change by whole hours, nor at whole hours: Lord Howe Island.
    """
    last, offset = after.astimezone(UTC), _offset(zone, after)
    local = after.astimezone(zone).replace(tzinfo=None)
    while True:
        for found in CronSim(cron.expression, local):
            moment = found.replace(tzinfo=UTC) - offset
            if _offset(zone, moment) != offset:
                last = _change(zone, last, moment)
                offset = _offset(zone, last)
                # A time at the change itself belongs to the new offset.
                local = (last + offset).replace(tzinfo=None) - timedelta(microseconds=1)
                break
            last = moment
            yield moment
        else:
            return


def _moment(cron: Cron, zone: ZoneInfo, local: datetime) -> datetime | None:
    """Return the moment of a local time: the first of two, and by rule if there is none."""
    earlier = local.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if earlier.astimezone(zone).replace(tzinfo=None) == local:
        return earlier
    if cron.skipped_time == "omit":
        return None
    # In a gap the change lies between the readings with either offset.
    return _change(zone, local.replace(tzinfo=zone, fold=1).astimezone(UTC), earlier)


def _change(zone: ZoneInfo, low: datetime, high: datetime) -> datetime:
    """Return the moment between two at which the UTC offset changes."""
    before = _offset(zone, low)
    while high - low > timedelta(seconds=1):
        middle = low + (high - low) // 2
        if _offset(zone, middle) == before:
            low = middle
        else:
            high = middle
    return high.replace(microsecond=0)


def _offset(zone: ZoneInfo, moment: datetime) -> timedelta:
    return moment.astimezone(zone).utcoffset() or timedelta(0)
