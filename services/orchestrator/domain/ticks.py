"""What a schedule owes when somebody looks: which ticks start, which were missed, what is next."""

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

# Looked at in one step: what is left is for the next one, which follows at once.
TICKS_MAX: Final = 1_000
# A tick that comes so late is still the one that was meant, whatever is done with missed ones.
ON_TIME: Final = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Tick:
    """A time that was due, and what is to be done with it: start it, or know that it was missed."""

    at: datetime
    missed: bool
    count: int = 1  # how many it stands for


@dataclass(frozen=True, slots=True)
class Step:
    """What a look gave: ticks in order, and when the schedule is due again, None for never."""

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
    """Say what is due from `due_at` on, now that its jitter is over.

    However long nobody looked, no more than `TICKS_MAX` times are asked for. What is too old for
    any rule is told as one tick and counted up to that many; then the rest is looked at.
    """
    due = [due_at, *_until(timing, schedule_id, due_at, now)]
    oldest = now - window_of(catch_up, window)
    late = [*takewhile(lambda at: put_off(timing, schedule_id, at) < oldest, due)]
    owed = due[len(late) :]
    if len(due) > TICKS_MAX and not owed:
        # So many that not even all can be counted: on with those that may still start.
        return _step(timing, schedule_id, late, [], next_after(timing, max(oldest, due[-1])))
    if len(due) > TICKS_MAX and catch_up != "all":
        # The newest is what counts, and it may not be among these.
        return _step(timing, schedule_id, [*late, *owed[:-1]], [], owed[-1])
    if catch_up != "all":
        late, owed = [*late, *owed[:-1]], owed[-1:]
    return _step(timing, schedule_id, late, owed, next_after(timing, due[-1]))


def window_of(catch_up: CatchUp, window: timedelta) -> timedelta:
    """Give how late a tick may start its run."""
    return ON_TIME if catch_up == "none" else max(window, ON_TIME)


def request_id(schedule_id: UUID, tick_at: datetime) -> UUID:
    """Give what makes the start of a tick the same start, whoever tries it how often."""
    return uuid5(schedule_id, tick_at.isoformat())


def _until(timing: Timing, schedule_id: UUID, after: datetime, now: datetime) -> list[datetime]:
    """Give the times after one whose jitter is over too; one that waits holds up those behind."""
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
