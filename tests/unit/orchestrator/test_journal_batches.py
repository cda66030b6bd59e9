"""What the journal writes with one statement."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

from services.kit.columns import flat
from services.orchestrator.domain.rows import ErrorInsert, NodeComplete
from services.orchestrator.domain.transition import Transition
from services.orchestrator.engine.journal import Committed, Journal

ONE, OTHER = UUID(int=1), UUID(int=2)


def journal(flushed: list[list[Transition]]) -> Journal:
    made = Journal(
        None,  # type: ignore[arg-type]
        ensure_live=None,  # type: ignore[arg-type]
        release=lambda _: None,
        culprit=None,  # type: ignore[arg-type]
        family=lambda run_id: run_id,
    )

    async def flush(batch: Sequence[Transition]) -> Committed:
        flushed.append(list(batch))
        return Committed(batch, datetime.now(UTC), None, frozenset())

    made._flush = flush  # type: ignore[method-assign]
    return made


def completes(run: UUID, *rows: int) -> Transition:
    made = [NodeComplete(UUID(int=at), 1, "{}", 1, 0, 0, None) for at in rows]
    return Transition(run, completes=made)


def test_a_row_stands_once_in_a_batch() -> None:
    """No statement changes a row twice; what comes behind such a change waits with it."""
    queue = [completes(ONE, 10), completes(OTHER, 20), completes(ONE, 11), completes(ONE, 12, 10)]
    behind = completes(OTHER, 21)
    written = journal([])
    for each in (*queue, behind):
        written.submit(each)
    assert queue[:3] == written._queue.take()
    assert [queue[3], behind] == written._queue.take()
    assert (0, 0) == (written.pending_bytes, written._queue.rows)


def test_who_begins_over_many_flushes_has_every_second_one() -> None:
    """Others wait for one of them at most, and what is its own waits behind its beginning."""
    parts = [replace(completes(ONE, at), begins=True) for at in range(3)]
    last, behind = replace(completes(ONE, 9), begun_whole=True), completes(ONE, 10)
    others = [completes(OTHER, 20 + at) for at in range(3)]
    written = journal([])
    for each in (*parts, last, others[0], behind):
        written.submit(each)
    taken = [written._queue.take()]
    for each in others[1:]:
        taken.append(written._queue.take())
        written.submit(each)
        taken.append(written._queue.take())
    while not written.idle:
        taken.append(written._queue.take())
    first, second, third = others
    assert [[first], [parts[0]], [second], [parts[1]], [third], [parts[2]], [last]] == taken[:7]
    assert [[behind]] == taken[7:]
    assert (0, 0) == (written.pending_bytes, written._queue.rows)


async def test_what_is_queued_of_who_begins_is_waited_for_and_dropped_with_it() -> None:
    flushed: list[list[Transition]] = []
    written = journal(flushed)
    for at in range(3):
        written.submit(replace(completes(ONE, at), begins=True))
    async with asyncio.TaskGroup() as tasks:
        all_of_it = tasks.create_task(written.written())
        await asyncio.sleep(0)
        writing = tasks.create_task(written.run())
        assert await all_of_it
        assert 3 == len(flushed)
        writing.cancel()
    written.submit(replace(completes(ONE, 5), begins=True))
    assert not written.idle
    written.drop({ONE})
    assert written.idle


async def test_a_change_of_which_only_an_error_is_told_is_written() -> None:
    """What a place could not begin for is in no other row while others still run."""
    flushed: list[list[Transition]] = []
    written = journal(flushed)
    row = ErrorInsert(UUID(int=5), ONE, None, OTHER, None, "user_error", "no", "", "", "")
    told, mute = Transition(ONE, errors=[row]), Transition(OTHER)
    await written._write([told])
    await written._write([mute])
    assert [[told]] == flushed


def test_a_column_gives_the_driver_its_length_and_then_its_values() -> None:
    [long, short, value] = flat([(1, None, 3, 4), (1, 2, 3), 7])
    assert (4, [], [1, None, 3, 4]) == (len(long), list(long), list(long))
    assert ((1, 2, 3), 7) == (short, value)


def test_plain_values_are_given_as_they_are() -> None:
    assert [7, None, b"1"] == flat([7, None, b"1"])
    assert [] == flat([])


async def test_an_idle_journal_writes_what_came_in_a_turn_with_the_next_one() -> None:
    """ADR 88: a node of a chain waits for nothing but its flush."""
    flushed: list[list[Transition]] = []
    written = journal(flushed)
    one, other, later = completes(ONE, 10), completes(OTHER, 20), completes(ONE, 11)
    async with asyncio.TaskGroup() as tasks:
        writing = tasks.create_task(written.run())
        await asyncio.sleep(0)
        written.submit(one)
        written.submit(other)
        await asyncio.sleep(0)
        assert [[one, other]] == flushed
        written.submit(later)
        await asyncio.sleep(0)
        assert [[one, other], [later]] == flushed
        assert written.idle
        writing.cancel()


async def test_statements_are_planned_anew_as_tables_grow() -> None:
    """What is planned while a table is small would read all of it, however large it became."""
    said: list[str] = []

    class Connection:
        async def execute(self, sql: str) -> None:
            said.append(sql)

    written = journal([])
    written._db = Connection()  # type: ignore[assignment]
    counts = []
    for _ in range(9):
        written._queue.taken_rows = 500
        await written._write([completes(ONE, 1)])
        counts.append(len(said))
    assert {"DISCARD PLANS"} == set(said)
    assert [0, 1, 1, 1, 1, 1, 1, 2, 2] == counts
