"""What was just answered: loaded once, never older than it may be, bounded, forgotten when told."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from services.kit.recent import Loaded, Recent

ONE, TWO = UUID(int=1), UUID(int=2)


class Source:
    """Counts what it is asked, and may be held up."""

    def __init__(self, weight: int = 1) -> None:
        self.asked = 0
        self.weight = weight
        self.go = asyncio.Event()
        self.go.set()

    async def load(self) -> Loaded[int]:
        self.asked += 1
        value = self.asked
        await self.go.wait()
        return Loaded(value, self.weight)


async def test_a_value_is_kept_no_longer_than_it_may_be() -> None:
    now = 0.0
    recent: Recent[str, int] = Recent(ttl_s=5.0, weight_max=10, clock=lambda: now)
    source = Source()
    assert await recent.get(ONE, "k", source.load) == 1
    now = 3.9
    assert await recent.get(ONE, "k", source.load) == 1
    now = 5.0
    assert await recent.get(ONE, "k", source.load) == 2


async def test_what_is_too_old_makes_room_though_nobody_asks_for_it_again() -> None:
    """E17: many questions of one moment are not remembered for ever."""
    now = 0.0
    recent: Recent[str, int] = Recent(ttl_s=5.0, weight_max=1_000, clock=lambda: now)
    source = Source()
    for at in range(100):
        await recent.get(ONE, str(at), source.load)
    assert len(recent) == 100
    now = 5.0
    await recent.get(ONE, "next", source.load)
    assert len(recent) == 1


async def test_the_age_counts_from_before_the_question() -> None:
    now = 0.0
    recent: Recent[str, int] = Recent(ttl_s=5.0, weight_max=10, clock=lambda: now)
    source = Source()
    source.go.clear()
    asking = asyncio.ensure_future(recent.get(ONE, "k", source.load))
    await asyncio.sleep(0)
    now = 5.0
    source.go.set()
    assert await asking == 1
    assert await recent.get(ONE, "k", source.load) == 2


async def test_a_hundred_who_ask_at_once_make_one_question() -> None:
    recent: Recent[str, int] = Recent(ttl_s=5.0, weight_max=10)
    source = Source()
    source.go.clear()
    asking = [asyncio.ensure_future(recent.get(ONE, "k", source.load)) for _ in range(100)]
    await asyncio.sleep(0)
    asking[0].cancel()  # the first to ask goes away; the others wait on
    source.go.set()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert ([1] * 99, 1) == (answers[1:], source.asked)


async def test_what_was_asked_before_it_was_forgotten_is_not_kept() -> None:
    """CP30: a read that began before a write must not bring back what it saw."""
    recent: Recent[str, int] = Recent(ttl_s=5.0, weight_max=10)
    source = Source()
    source.go.clear()
    before = asyncio.ensure_future(recent.get(ONE, "k", source.load))
    await asyncio.sleep(0)
    recent.forget(ONE)
    after = asyncio.ensure_future(recent.get(ONE, "k", source.load))
    await asyncio.sleep(0)
    source.go.set()
    assert (1, 2) == (await before, await after)
    assert await recent.get(ONE, "k", source.load) == 2


async def test_one_tenant_is_forgotten_and_not_another() -> None:
    recent: Recent[str, int] = Recent(ttl_s=5.0, weight_max=10)
    mine, yours = Source(), Source()
    for _ in range(2):
        await recent.get(ONE, "k", mine.load)
        await recent.get(TWO, "k", yours.load)
        recent.forget(ONE)
    assert (2, 1) == (mine.asked, yours.asked)


async def test_the_least_recent_goes_when_there_is_no_room_and_no_trace_of_it_stays() -> None:
    recent: Recent[int, int] = Recent(ttl_s=5.0, weight_max=10)
    for key in range(1_000):
        await recent.get(UUID(int=key), key, Source(weight=3).load)
        await recent.get(UUID(int=0), 0, Source(weight=3).load)
    assert len(recent) == 3
    assert {0, 998, 999} == {tenant.int for tenant in recent._keys}
    again = Source()
    await recent.get(UUID(int=0), 0, again.load)
    assert again.asked == 0


@pytest.mark.parametrize("weight", [0, 11])
async def test_what_must_not_or_cannot_be_kept_is_given_and_forgotten(weight: int) -> None:
    recent: Recent[str, int] = Recent(ttl_s=5.0, weight_max=10)
    source = Source(weight)
    assert (1, 2) == tuple([await recent.get(ONE, "k", source.load) for _ in range(2)])
    assert not recent._keys


async def test_a_failure_is_everybodys_who_waits_and_nobodys_after() -> None:
    recent: Recent[str, int] = Recent(ttl_s=5.0, weight_max=10)

    async def fail() -> Loaded[int]:
        await asyncio.sleep(0)
        raise LookupError

    failed = await asyncio.gather(
        *(recent.get(ONE, "k", fail) for _ in range(3)), return_exceptions=True
    )
    assert [LookupError] * 3 == [type(each) for each in failed]
    assert await recent.get(ONE, "k", Source().load) == 1
