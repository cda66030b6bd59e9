"""Moments of rows are held against the clock that wrote them, not against this machine's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from services.orchestrator.engine.database_clock import DatabaseClock
from services.orchestrator.engine.engine import Engine
from services.orchestrator.engine.journal import Committed
from services.orchestrator.engine.loaded import Loaded
from tests.unit.orchestrator.test_certainty import nothing
from tests.unit.orchestrator.test_giving_shards import Giving

AHEAD = datetime(2100, 1, 1, tzinfo=UTC)


def test_it_goes_on_from_what_it_was_told_last() -> None:
    here = [datetime(2026, 1, 31, tzinfo=UTC)]
    clock = DatabaseClock(lambda: here[0])
    assert here[0] == clock.now()
    clock.told(AHEAD)
    here[0] += timedelta(hours=2)  # passed, or slept through
    assert AHEAD + timedelta(hours=2) == clock.now()


async def test_the_engine_goes_by_the_clock_that_a_flush_told_of() -> None:
    """GB seconds are from a moment of that clock, and a sleep ends at one."""
    engine = Engine(member=Giving(), connect=nothing, load=nothing)
    engine._released(Committed([], AHEAD, AHEAD, frozenset()))
    assert AHEAD <= engine.core.fx.wall() < AHEAD + timedelta(minutes=1)


async def test_an_engine_that_begins_goes_by_the_clock_that_its_runs_were_read_by() -> None:
    """What an attempt took that a runner brings before anything is written is not this clock's."""
    engine = Engine(member=Giving(), connect=nothing, load=nothing)
    loaded = Loaded()
    loaded.clock = AHEAD
    engine._adopt(loaded)
    assert AHEAD <= engine.core.fx.wall() < AHEAD + timedelta(minutes=1)
