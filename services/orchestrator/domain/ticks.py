"""Which ticks of a schedule are due: which start, which were missed, and what is next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice, takewhile
from typing import Final, Literal
from uuid import UUID, uuid5

from services.orchestrator.domain.timing import Timing, next_after, put_off, ticks

CatchUp = Literal["none", "last", "all"]
Overlap = Literal["skip", "buffer_one", "allow", "cancel_running"]

# How many times one step handles; the next step follows at once.
TICKS_MAX: Final = 1_000
# A tick is not missed if it is no later than this, whatever the catch-up policy.
ON_TIME: Final = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Tick:
    """A time that was due, to start or to record as missed."""

    at: datetime
    missed: bool
    count: int = 1  # how many times it stands for


@dataclass(frozen=True, slots=True)
class Step:
    """The result of a step: ticks in order, and when the schedule is due next, None for never."""

    ticks: Sequence[Tick]
    due_at: datetime | None
    fire_at: datetime | None


def look(
    timing: Timing,
    schedule_id: UUID,
    *,
    due_at: datetime,
    now: datetime,
    catch_up: CatchUp,
    window: timedelta,
) -> Step:
    """Return what is due from `due_at` on, whose jitter is over.

    However long it has been, at most `TICKS_MAX` times are computed. Those too old to start become
    one missed tick with a count of up to that many; the rest follows in the next step.
    """
    due = [due_at, *_until(timing, schedule_id, due_at, now)]
    oldest = now - window_of(catch_up, window)
    late = [*takewhile(lambda at: put_off(timing, schedule_id, at) < oldest, due)]
    owed = due[len(late) :]
    if len(due) > TICKS_MAX and not owed:
        # Too many even to count: skip to those that may still start.
        return _step(timing, schedule_id, late, [], next_after(timing, max(oldest, due[-1])))
    if len(due) > TICKS_MAX and catch_up != "all":
        # Only the newest matters, which may not be among these.
        return _step(timing, schedule_id, [*late, *owed[:-1]], [], owed[-1])
    if catch_up != "all":
        late, owed = [*late, *owed[:-1]], owed[-1:]
    return _step(timing, schedule_id, late, owed, next_after(timing, due[-1]))


def window_of(catch_up: CatchUp, window: timedelta) -> timedelta:
    """Return how late a tick may start its run."""
    return ON_TIME if catch_up == "none" else max(window, ON_TIME)


def request_id(schedule_id: UUID, tick_at: datetime) -> UUID:
    """Return the request id of a tick's start, equal for all attempts by any member."""
    return uuid5(schedule_id, tick_at.isoformat())


def _until(timing: Timing, schedule_id: UUID, after: datetime, now: datetime) -> list[datetime]:
    """Return the following times whose jitter is over, up to the first that still waits."""
    found = []
    for at in islice(ticks(timing, after), TICKS_MAX):
        if put_off(timing, schedule_id, at) > now:
            break
        found.append(at)
    return found


def _step(
    timing: Timing,
    schedule_id: UUID,
    late: Sequence[datetime],
    owed: Sequence[datetime],
    due_at: datetime | None,
) -> Step:
    missed = [Tick(late[-1], True, len(late))] if late else []
    fire_at = due_at and put_off(timing, schedule_id, due_at)
    return Step([*missed, *(Tick(at, False) for at in owed)], due_at, fire_at)
