"""The engine's timers, by the loop that services run on."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest
import uvloop

from services.orchestrator.engine.outlet import Outlet


@pytest.mark.parametrize("left_s", [-1.0, 0.0, 0.0002])
def test_something_may_happen_in_the_moment_in_which_a_timer_is_due(left_s: float) -> None:
    """An approval was answered as its time was up: what was written was told INTERNAL."""

    async def main() -> None:
        outlet = Outlet(member=cast("Any", SimpleNamespace(epoch=1)))
        outlet.journal = cast("Any", SimpleNamespace(idle=True, submit=list.append))
        outlet.core.timers.set(outlet.now() + left_s, UUID(int=1), 0)
        outlet._apply([])
        outlet._apply([])
        async with asyncio.timeout(30):
            while outlet.core.next_timer is not None:  # noqa: ASYNC110  # a timer tells nobody
                await asyncio.sleep(0.001)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
