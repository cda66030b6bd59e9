"""Looks that many callers share."""

from __future__ import annotations

import asyncio

from services.orchestrator.usecases.shared import Shared


async def test_callers_at_once_share_two_looks_and_see_nothing_older_than_their_call() -> None:
    begun = 0
    gate = asyncio.Event()

    async def look(_key: str) -> int:
        nonlocal begun
        begun += 1
        seen = begun
        await gate.wait()
        return seen

    shared = Shared(look)
    first = asyncio.ensure_future(shared.get("a"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    later = [asyncio.ensure_future(shared.get("a")) for _ in range(50)]
    await asyncio.sleep(0)
    gate.set()
    assert 1 == await first
    assert [2] * 50 == await asyncio.gather(*later)
    assert 3 == await shared.get("a")


async def test_a_look_that_fails_fails_those_who_wait_for_it_and_no_others() -> None:
    fails = [True, False]

    async def look(_key: str) -> str:
        if fails.pop(0):
            raise RuntimeError("away")
        return "found"

    shared = Shared(look)
    answers = await asyncio.gather(shared.get("a"), return_exceptions=True)
    assert isinstance(answers[0], RuntimeError)
    assert "found" == await shared.get("a")
