"""By when calls end, as the server sees to it."""

from __future__ import annotations

import asyncio

import pytest

from services.kit.errors import DeadlineExceeded
from services.kit.rpc.deadline import Deadlines


@pytest.mark.parametrize("left_s", [0.0, -1.0])
async def test_a_call_whose_time_was_over_before_it_began_is_refused(left_s: float) -> None:
    """B13: whatever the client's own clock made of it."""
    task = asyncio.current_task()
    assert task is not None
    with pytest.raises(DeadlineExceeded, match="over before the call began"):
        Deadlines().begin(task, left_s)
