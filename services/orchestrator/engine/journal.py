"""The journal: every state change of every execution, in order, through one connection.

While one batch is being committed the next one collects: no delay when idle, large batches under
load, where a short wait makes them larger still. Commands and answers that depend on a batch are
released after its commit, never before.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final, NamedTuple
from uuid import UUID

import asyncpg
import structlog

from services.kit import crash
from services.kit.errors import QflowError
from services.kit.figures import Distribution
from services.kit.ids import uuid7
from services.kit.pg import given_up_after
from services.orchestrator.domain.transition import Transition
from services.orchestrator.engine.crash_points import reach_flush
from services.orchestrator.storage import flush

log = structlog.get_logger()

ROWS_MAX: Final = 2000
BATCH_BYTES_MAX: Final = 1024 * 1024
# A flush costs as much as dozens of rows, and so do the frames that follow it. A large flush means
# load: the next one waits a moment for more rows, unless it has many already.
_BUSY_ROWS: Final = 32
_LARGE_ROWS: Final = 256
_GATHER_S: Final = 0.003
# Prepared statements are replanned after this many rows on a connection, then after four times as
# many, up to the last: a plan made while a table is small may scan it in each flush.
_PLAN_ROWS: Final = 1_000
_PLAN_ROWS_LAST: Final = 1_000_000
_RETRIES_MAX: Final = 8
# After this the connection is dropped: a timeout of the driver would cancel the commit instead.
FLUSH_MAX_S: Final = 30.0
_TRANSITIONS_BOUNDS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)
# SQLSTATE prefixes of errors worth a retry: nothing was written.
_TRANSIENT: Final = ("40", "53", "55", "57014")
# The connection is lost or unusable: whether the statement was committed is unknown.
BROKEN: Final = (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError)
# Any failure of the database, for those who can wait and retry.
DATABASE_FAULTS: Final = (QflowError, asyncpg.PostgresError, *BROKEN)
# SQLSTATE prefixes of errors caused by one execution's rows: it is isolated, the others go on.
_CULPABLE: Final = ("22", "23", flush.GUARD_MISSED)


class FencedError(Exception):
    """Another member took over: this one must not write any more."""


class OutcomeUnknownError(Exception):
    """Memory may be wrong, because a flush lost its connection or a step failed: reload it."""


class Committed(NamedTuple):
    """A committed batch."""

    batch: Sequence[Transition]
    at: datetime  # the timestamp in its rows; never earlier than that of the batch before
    clock: datetime | None  # the database's time; None if nothing was written
    started: frozenset[UUID]  # which of the runs to insert were inserted


class Fence(NamedTuple):
    """The member and epoch under which the journal writes."""

    member_id: UUID
    epoch: int


class _Queued(NamedTuple):
    transition: Transition
    rows: int
    size: int


class Journal:
    """The only writer; calls `release` after each commit, `culprit` for a run it cannot write.

    A run and its sub-workflows form a `family`, which is refused as a whole, so that none of them
    is ahead of another.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[asyncpg.Connection[asyncpg.Record]]],
        *,
        ensure_live: Callable[[bool], Awaitable[Fence]],
        release: Callable[[Committed], None],
        culprit: Callable[[UUID, str], Awaitable[None]],
        family: Callable[[UUID], UUID],
        seal: flush.Seal | None = None,
    ) -> None:
        self._connect = connect
        self._ensure_live = ensure_live
        self._release = release
        self._culprit = culprit
        self._seal = seal
        self._family = family
        self._queue: deque[_Queued] = deque()
        # Transitions of runs whose start takes many flushes, by family. Every second flush is for
        # one of these, so that other runs wait for one of them at most.
        self._beginning: dict[UUID, deque[_Queued]] = {}
        self._others_first = True
        self._wake = asyncio.Event()
        self._doubted = False
        self._first: deque[Callable[[], Awaitable[None]]] = deque()
        self._writing = False
        self._queued_rows = 0
        self._flushed_rows = 0  # by the last batch
        self._db: asyncpg.Connection[asyncpg.Record] | None = None
        self._statements: dict[str, asyncpg.prepared_stmt.PreparedStatement[asyncpg.Record]] = {}
        self._written_rows = 0  # on this connection
        self._plan_rows = _PLAN_ROWS
        self._over = False
        self._opening = asyncio.Lock()
        self._marks: dict[UUID, asyncio.Future[None]] = {}  # by the id of an empty transition
        self._last = _EARLIEST
        self.pending_bytes = 0
        self.flush_s = Distribution()
        self.flush_transitions = Distribution(_TRANSITIONS_BOUNDS)

    def submit(self, transition: Transition) -> None:
        """Queue a transition; its commands are released once it is committed."""
        queued = _Queued(transition, *transition.cost())
        if transition.begins or self._beginning:
            family = self._family(transition.run_id)
            if transition.begins:
                self._beginning.setdefault(family, deque())
            if family in self._beginning:
                self._beginning[family].append(queued)
                self._wake.set()
                return
        self._put(queued)
        self._wake.set()

    def _put(self, queued: _Queued) -> None:
        self._queue.append(queued)
        self._queued_rows += queued.rows
        self.pending_bytes += queued.size

    def not_before(self, at: datetime) -> None:
        """Write no timestamp earlier than `at`, the latest one that was loaded."""
        self._last = max(self._last, at)

    @property
    def idle(self) -> bool:
        """Whether nothing is queued and nothing is being written."""
        return not (self._queue or self._beginning or self._first or self._writing)

    def drop(self, run_ids: Collection[UUID]) -> None:
        """Drop what is queued for these runs and their families: they are forgotten or reloaded."""
        family = self._family
        kept = [each for each in self._queue if family(each.transition.run_id) not in run_ids]
        for each in [each for each in self._beginning if each in run_ids]:
            # Marks stay: somebody waits for them.
            marks = self._beginning.pop(each)
            kept += [mark for mark in marks if mark.transition.run_id in self._marks]
        self._queue = deque(kept)
        self._queued_rows = sum(each.rows for each in kept)
        self.pending_bytes = sum(each.size for each in kept)

    def clear(self) -> None:
        """Drop everything that is queued: it is derived again from the committed rows."""
        self._queue.clear()
        self._beginning.clear()
        self._first.clear()
        self._queued_rows = self.pending_bytes = 0
        self._give_up_marks()

    def end(self) -> None:
        """Stop: nothing is written any more, so those who wait for it are cancelled."""
        self._over = True
        self._give_up_marks()

    def _give_up_marks(self) -> None:
        marks, self._marks = self._marks, {}
        for mark in marks.values():
            if not mark.done():
                mark.cancel()

    async def written(self) -> bool:
        """Return True once all that is queued now is committed, False if it never will be."""
        if self._over:
            return False
        marks = []
        for queue in (self._queue, *self._beginning.values()):
            mark: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            empty = Transition(uuid7())
            self._marks[empty.run_id] = mark
            queue.append(_Queued(empty, *empty.cost()))
            marks.append(mark)
        self._wake.set()
        await asyncio.wait(marks)
        return not any(mark.cancelled() for mark in marks)

    def doubt(self) -> None:
        """Have `run` raise `OutcomeUnknownError` before it writes anything else."""
        self._doubted = True
        self._wake.set()

    def first(self, run_ids: Collection[UUID], load: Callable[[], Awaitable[None]]) -> None:
        """Drop what is queued for these runs, and call `load` before the next flush.

        It is called while no flush is in progress.
        """
        self.drop(run_ids)
        self._first.append(load)
        self._wake.set()

    async def run(self) -> None:
        """Write until cancelled. Raises `FencedError` or `OutcomeUnknownError`."""
        while True:
            idle = not self._has_work
            while not self._has_work:
                self._wake.clear()
                await self._wake.wait()
            # One turn of the event loop first: events that arrived with the last commit join this
            # batch, and its waiters have run.
            if self._flushed_rows >= _BUSY_ROWS and self._queued_rows < _LARGE_ROWS:
                await asyncio.sleep(_GATHER_S)
            elif not idle:
                await asyncio.sleep(0)
            self._be_certain()
            self._writing = True
            try:
                if self._first:
                    await self._first.popleft()()
                else:
                    await self._write(self._take())
            finally:
                self._writing = False

    def _be_certain(self) -> None:
        if self._doubted:
            self._doubted = False
            raise OutcomeUnknownError

    @property
    def _has_work(self) -> bool:
        return bool(self._queue or self._beginning or self._first or self._doubted)

    async def open(self) -> None:
        """Connect if not connected; notifications of other members arrive here too."""
        async with self._opening:
            if self._db is None or self._db.is_closed():
                self._statements.clear()
                self._db = await self._connect()
                self._db.add_termination_listener(self._broken)
                self._written_rows, self._plan_rows = 0, _PLAN_ROWS

    def _broken(self, db: object) -> None:
        """Have memory reloaded after the connection broke, even if nothing was being written.

        The next connection may lead to a promoted replica that lacks the last commits.
        """
        if db is self._db:
            self.doubt()

    async def close(self) -> None:
        """Close the connection, before memory is reloaded."""
        self._doubted = False
        db, self._db = self._db, None
        if db is not None:
            db.terminate()
        self._statements.clear()

    def _take(self) -> list[Transition]:
        """Take what fits into one flush, in order; no row may occur in it twice."""
        if self._beginning and not (self._queue and self._others_first):
            self._others_first = True
            return self._take_beginning()
        self._others_first = False
        batch: list[Transition] = []
        touched = _Touched()
        followed: set[int] = set()  # `follows` shared by starts of one plan are written once
        rows = taken = size = 0
        while self._queue:
            queued = self._queue[0]
            t, follows = queued.transition, queued.transition.follows
            more = len(follows) if follows and id(follows) not in followed else 0
            full = rows + queued.rows + more > ROWS_MAX or size + queued.size > BATCH_BYTES_MAX
            if not touched.add(t) or (full and batch):
                break
            followed.add(id(follows))
            rows += queued.rows + more
            size += queued.size
            taken += queued.rows
            self._queue.popleft()
            batch.append(t)
        self.pending_bytes -= size
        self._queued_rows -= taken
        self._flushed_rows = taken
        return batch

    def _take_beginning(self) -> list[Transition]:
        """Take one transition of a long start; the family of the last one is queued as usual."""
        family = next(iter(self._beginning))
        queue = self._beginning.pop(family)
        queued = queue.popleft()
        if queue and (queue[0].transition.begins or queue[0].transition.begun_whole):
            self._beginning[family] = queue
        else:
            for each in queue:
                self._put(each)
        self._flushed_rows = queued.rows
        return [queued.transition]

    async def _write(self, batch: list[Transition]) -> None:
        if not any(t.writes for t in batch):  # only commands
            self._let_out(Committed(batch, self._last, None, frozenset()))
            return
        try:
            began = time.perf_counter()
            committed = await self._flush(batch)
        except asyncpg.PostgresError as error:
            state = error.sqlstate or ""
            if state == flush.FENCED:
                raise FencedError from error
            if not state.startswith(_CULPABLE):
                raise OutcomeUnknownError from error
            await self._take_apart(batch, error)
        else:
            took_s = time.perf_counter() - began
            self._let_out(committed)  # before the figures, for which nobody waits
            self.flush_s.note(took_s)
            self.flush_transitions.note(len(batch))
            self._written_rows += self._flushed_rows
            if self._written_rows >= self._plan_rows:
                await self._plan_anew()

    async def _plan_anew(self) -> None:
        """Have the statements replanned for the present size of the tables."""
        grown = self._plan_rows * 4
        self._plan_rows = grown if grown <= _PLAN_ROWS_LAST else sys.maxsize
        with suppress(asyncpg.PostgresError, *BROKEN):  # the next flush reports it
            if self._db is not None:
                await self._db.execute("DISCARD PLANS")

    def _let_out(self, committed: Committed) -> None:
        self._release(committed)
        if self._marks:
            for t in committed.batch:
                mark = self._marks.pop(t.run_id, None)
                if mark is not None and not mark.done():
                    mark.set_result(None)

    async def _take_apart(self, batch: list[Transition], error: asyncpg.PostgresError) -> None:
        """Write a refused batch family by family, to find the one that the database refuses."""
        families: dict[UUID, list[Transition]] = {}
        for t in batch:
            families.setdefault(self._family(t.run_id), []).append(t)
        if len(families) == 1:
            (root,) = families
            log.error("flush_refused", execution_id=str(root), error=str(error))
            self.drop({root})
            await self._culprit(root, str(error))
            return
        for transitions in families.values():
            await self._write(transitions)

    async def _flush(self, batch: Sequence[Transition]) -> Committed:
        prepared = flush.prepare(batch, self._seal)
        again = False
        attempt = 0
        while True:
            attempt += 1
            try:
                fence = await self._ensure_live(again)
            except DATABASE_FAULTS as error:
                raise OutcomeUnknownError from error
            try:
                statement = await self._statement(prepared.sql)
                self._be_certain()
                arguments = flush.arguments(prepared, fence.member_id, fence.epoch, self._last)
                if crash.ARMED:
                    reach_flush(batch, "before")
                assert self._db is not None
                with given_up_after(self._db, FLUSH_MAX_S):
                    row = await statement.fetchrow(*arguments)
                if crash.ARMED:
                    reach_flush(batch, "after")
            except asyncpg.PostgresError as error:
                alive = self._db is not None and not self._db.is_closed()
                state = error.sqlstate or ""
                if state == flush.FENCED and not again:
                    again = True  # the lease may just have been given up: renew it
                    continue
                if not alive or not state.startswith(_TRANSIENT) or attempt >= _RETRIES_MAX:
                    raise
                await asyncio.sleep(random.uniform(0.5, 1) * 0.02 * 2**attempt)  # noqa: S311
            except BROKEN as error:
                raise OutcomeUnknownError from error
            else:
                assert row is not None
                self._last = row["at"]
                started = frozenset(row["started"] or ())
                return Committed(batch, row["at"], row["clock"], started)

    async def _statement(self, sql: str) -> asyncpg.prepared_stmt.PreparedStatement[asyncpg.Record]:
        if self._db is None or self._db.is_closed():
            await self.open()
        assert self._db is not None
        statement = self._statements.get(sql)
        if statement is None:
            statement = self._statements[sql] = await self._db.prepare(sql)
        return statement


class _Touched:
    """The rows that the transitions of a batch insert or update.

    A transition changes rows of its own run only, so its keys are not listed until the batch has a
    second one of that run.
    """

    __slots__ = ("_first", "_rows")

    def __init__(self) -> None:
        self._first: dict[UUID, Transition] = {}  # by run
        self._rows: dict[UUID, set[UUID]] = {}  # by run, where there are several

    def add(self, t: Transition) -> bool:
        """Add the rows of a transition; returns whether none of them was there already."""
        first = self._first.setdefault(t.run_id, t)
        if first is t:
            return True
        rows = self._rows.get(t.run_id)
        if rows is None:
            rows = self._rows[t.run_id] = set(_keys(first))
        added = _keys(t)
        fits = rows.isdisjoint(added)
        rows.update(added)
        return fits


def _keys(t: Transition) -> list[UUID]:
    """Return the ids of the rows that a transition inserts or updates."""
    keys = [each.id for each in t.completes]
    keys += [each.id for each in t.node_inserts]
    if t.run_inserts or t.run_changes:
        keys += [each.id for each in t.run_inserts]
        keys += [each.id for each in t.run_changes]
    if t.changes or t.placed:
        keys += t.changes
        keys += t.placed
    if t.copies or t.signals or t.uses or t.frees:
        keys += [each.id for each in t.copies]
        keys += [each.id for each in t.signals]
        keys += [each.id for each in t.uses]
        keys += [each.id for each in t.frees]
    return keys
