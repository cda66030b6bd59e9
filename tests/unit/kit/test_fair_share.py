"""What one user may take of a server."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from services.kit.caller import Caller, Kind
from services.kit.errors import ResourceExhausted
from services.kit.rpc.call import Call
from services.kit.rpc.fair_share import FairShare

ADA, BOB = uuid4(), uuid4()


def call_of(user: UUID, kind: Kind = "user") -> Any:
    caller = Caller(
        user_id=user,
        tenant_id=user,
        role="user",
        is_owner=False,
        scopes="all",
        kind=kind,
        name="",
        session_id=user,
        expires_at=datetime.max.replace(tzinfo=UTC),
    )
    nothing: Any = None
    return Call(nothing, nothing, (), nothing, caller=caller)


async def inner(_call: Call, request: Any) -> Any:
    if request is not None:
        await request.wait()
    return "done"


async def test_one_user_leaves_a_quarter_of_the_room_to_others() -> None:
    """X50, B16."""
    handle = FairShare(8).stage(inner)
    end = asyncio.Event()
    held = [asyncio.create_task(handle(call_of(ADA), end)) for _ in range(6)]
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhausted) as caught:
        await handle(call_of(ADA), None)
    assert "TOO_MANY_CALLS_OF_CALLER" == caught.value.reason
    assert "done" == await handle(call_of(BOB), None)
    assert "done" == await handle(call_of(ADA, "service"), None)
    end.set()
    assert ["done"] * 6 == await asyncio.gather(*held)
    assert "done" == await handle(call_of(ADA), None)


async def test_a_rate_allows_bursts_and_then_its_pace() -> None:
    """X50: one who is too fast slows nobody else down."""
    now = [0.0]
    handle = FairShare(8, calls_per_second_max=10, clock=lambda: now[0]).stage(inner)
    for _ in range(20):
        assert "done" == await handle(call_of(ADA), None)
    with pytest.raises(ResourceExhausted) as caught:
        await handle(call_of(ADA), None)
    assert ("CALL_RATE_REACHED", 0.1) == (caught.value.reason, caught.value.retry_after_s)
    assert "done" == await handle(call_of(BOB), None)
    now[0] += 0.1
    assert "done" == await handle(call_of(ADA), None)
    with pytest.raises(ResourceExhausted):
        await handle(call_of(ADA), None)
    now[0] += 3600
    for _ in range(20):
        assert "done" == await handle(call_of(ADA), None)
