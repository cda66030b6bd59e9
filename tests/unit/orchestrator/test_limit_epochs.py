"""Places under limits are of the epoch whose memory waits for them."""

from __future__ import annotations

from typing import Any, cast
from uuid import UUID

import pytest

from services.orchestrator.domain.limit_lanes import Waiting
from services.orchestrator.domain.limits import Demand
from services.orchestrator.loops.limits import take_once
from tests.unit.orchestrator.test_certainty import Lease, engine_of

LANE = (Demand(UUID(int=1), ""),)


class AskedError(Exception):
    """The database was asked for places."""


class Pool:
    """A database that is asked for nothing without the test hearing of it."""

    def acquire(self, **_: object) -> Any:
        raise AskedError


async def test_memory_that_is_over_takes_no_place_with_the_epoch_that_follows() -> None:
    """Worlds 502605 and 502995: memory was made anew, and nobody knew of that place any more.

    No sweep frees a place of a member's own epoch, so whoever waited for it did so for ever.
    """
    lease = Lease()
    lease.live = True
    engine = engine_of(lease)
    engine.core.limited.push(LANE, Waiting(UUID(int=2), 0), owner=UUID(int=3), priority=0)
    with pytest.raises(AskedError):
        await take_once(engine, cast("Any", Pool()))
    lease.epoch += 1  # a flush was lost: what is open is about to be read from its rows
    assert not await take_once(engine, cast("Any", Pool()))
