"""How those who watch a run are handed its changes."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from services.orchestrator.domain.records import NodeRecord
from services.orchestrator.domain.status import NodeStatus
from services.orchestrator.domain.transition import View
from services.orchestrator.engine.hub import Change, Hub, Moved

RUN = UUID(int=5)


def change(
    revision: int, *, nodes: int = 1, final: bool = False, row: bool = False, complete: bool = True
) -> Change:
    record = NodeRecord(id=RUN, order=1, status=NodeStatus.RUNNING, token=1, revision=revision)
    views = [View(f"n{number}", number, record) for number in range(nodes)]
    return Change(revision, views, complete=complete, final=final, row=row)


async def test_all_are_handed_the_same_change() -> None:
    hub, told = Hub(), change(1)
    with hub.subscribed(RUN) as one, hub.subscribed(RUN) as other:
        waiting = [asyncio.create_task(each.next(60)) for each in (one, other)]
        await asyncio.sleep(0)
        hub.publish(RUN, told)
        assert [told, told] == [await each for each in waiting]
        assert all(each.result() is told for each in waiting)


async def test_changes_that_were_not_read_in_time_are_read_as_one() -> None:
    hub = Hub()
    with hub.subscribed(RUN) as one:
        for each in (change(1), change(2, row=True), change(3, final=True)):
            hub.publish(RUN, each)
        merged = await one.next()
        assert merged is not None
        assert (3, True, True, True) == (
            merged.revision, merged.complete, merged.final, merged.row
        )  # fmt: skip
        assert [1, 2, 3] == [view.record.revision for view in merged.views]
        assert await one.next(0.001) is None


@pytest.mark.parametrize("nodes", [0, 7])
async def test_who_is_too_slow_is_sent_to_the_rows(nodes: int) -> None:
    hub = Hub()
    with hub.subscribed(RUN) as one:
        for revision in range(1, 2_100):
            hub.publish(RUN, change(revision, nodes=nodes, row=True))
        merged = await one.next()
        assert merged is not None
        assert (2_099, False, []) == (merged.revision, merged.complete, merged.views)


async def test_what_is_not_whole_makes_what_it_is_read_with_not_whole() -> None:
    hub = Hub()
    with hub.subscribed(RUN) as one:
        hub.publish(RUN, change(1))
        hub.resync()
        merged = await one.next()
        assert merged is not None
        assert not merged.complete


async def test_an_end_that_is_read_with_what_came_after_it_is_an_end_of_its_revision() -> None:
    hub = Hub()
    with hub.subscribed(RUN) as one:
        hub.publish(RUN, change(7, final=True))
        hub.resync()
        merged = await one.next()
        assert merged is not None
        assert (7, True) == (merged.revision, merged.final)


async def test_who_reads_in_time_is_never_sent_to_the_rows() -> None:
    hub = Hub()
    with hub.subscribed(RUN) as one:
        for revision in range(1, 2_100):
            hub.publish(RUN, change(revision))
            read = await one.next()
            assert read is not None
            assert read.complete


async def test_time_is_up_after_a_change_came_and_not_before() -> None:
    """One timer serves many waits: what an earlier one set must not end a later one."""
    hub, loop = Hub(), asyncio.get_running_loop()
    with hub.subscribed(RUN) as one:
        first = asyncio.create_task(one.next(0.05))
        await asyncio.sleep(0)
        hub.publish(RUN, change(1))
        assert await first is not None
        began = loop.time()
        assert await one.next(0.2) is None
        assert loop.time() - began >= 0.19
        began = loop.time()
        assert await one.next(0.01) is None, "a shorter wait than the one before"
        assert loop.time() - began < 0.19


async def test_a_waiter_hears_of_the_end_alone_and_of_a_rebuilt_memory() -> None:
    hub = Hub()
    with hub.subscribed(RUN, ends_only=True) as one:
        hub.publish(RUN, change(1))
        assert await one.next(0.001) is None
        hub.publish(RUN, change(2, final=True))
        ended = await one.next(60)
        assert ended is not None
        assert ended.final
        hub.resync()
        assert await one.next(60) is not None


async def test_a_run_that_moved_is_told_to_who_waits_and_to_who_comes_to_wait() -> None:
    hub = Hub()
    with hub.subscribed(RUN) as one:
        waiting = asyncio.create_task(one.next(60))
        await asyncio.sleep(0)
        hub.moved(RUN)
        for each in (waiting, one.next(60)):
            with pytest.raises(Moved):
                await each


def test_only_what_somebody_wants_to_hear_is_news() -> None:
    hub = Hub()
    assert not hub.heeded(RUN, final=True)
    with hub.subscribed(RUN, ends_only=True):
        assert not hub.heeded(RUN, final=False)
        assert hub.heeded(RUN, final=True)
        with hub.subscribed(RUN):
            assert hub.heeded(RUN, final=False)


async def test_nothing_is_left_of_who_went_away() -> None:
    hub = Hub()
    with hub.subscribed(RUN) as one:
        waiting = asyncio.create_task(one.next(60))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    assert not hub.watched(RUN)
    assert one._timer.at is None
