"""The engine's one timer: for the earliest of all that its runs wait for."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import uvloop

from tests.unit.orchestrator.test_certainty import Lease, engine_of


def test_what_is_due_at_once_may_be_followed_by_more_in_the_same_turn() -> None:
    """On a service's loop the handle of what is due now knows no time: that crashed calls."""
    looked = list[float]()

    async def twice() -> None:
        engine = engine_of(Lease())
        due_at = engine.now()

        def due(now: float) -> list[Any]:
            looked.append(now)
            core.next_timer = None
            return []

        quiet = SimpleNamespace(wanted=False, charged=False)
        core = SimpleNamespace(next_timer=due_at, due=due, runs={}, locks_pending=())
        core.limited = core.cache = core.ledger = quiet
        engine.core = cast("Any", core)
        engine._set_timer()
        core.next_timer = due_at + 60.0
        engine._set_timer()
        async with asyncio.timeout(30):
            while not looked:  # noqa: ASYNC110  # nothing to wait for but turns of the loop
                await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(twice())
    assert 1 == len(looked)
