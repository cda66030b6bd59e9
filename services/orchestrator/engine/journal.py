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
from services.kit.pg import given_up_after
from services.orchestrator.domain.transition import Transition
from services.orchestrator.engine.crash_points import reach_flush
from services.orchestrator.engine.journal_queue import JournalQueue
from services.orchestrator.storage import flush

log = structlog.get_logger()

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
        self._queue = JournalQueue(family)
        self._wake = asyncio.Event()
        self._doubted = False
        self._first: deque[Callable[[], Awaitable[None]]] = deque()
        self._writing = False
        self._db: asyncpg.Connection[asyncpg.Record] | None = None
        self._statements: dict[str, asyncpg.prepared_stmt.PreparedStatement[asyncpg.Record]] = {}
        self._written_rows = 0  # on this connection
        self._plan_rows = _PLAN_ROWS
        self._over = False
        self._opening = asyncio.Lock()
        self._last = _EARLIEST
        self.flush_s = Distribution()
        self.flush_transitions = Distribution(_TRANSITIONS_BOUNDS)

    def submit(self, transition: Transition) -> None:
        """Queue a transition; its commands are released once it is committed."""
        self._queue.add(transition)
        self._wake.set()

    @property
    def pending_bytes(self) -> int:
        """The size of what is queued, without long starts."""
        return self._queue.size_bytes

    def not_before(self, at: datetime) -> None:
        """Write no timestamp earlier than `at`, the latest one that was loaded."""
        self._last = max(self._last, at)

    @property
    def idle(self) -> bool:
        """Whether nothing is queued and nothing is being written."""
        return not (self._queue or self._first or self._writing)

    def drop(self, run_ids: Collection[UUID]) -> None:
        """Drop what is queued for these runs and their families: they are forgotten or reloaded."""
        self._queue.drop(run_ids)

    def clear(self) -> None:
        """Drop everything that is queued: it is derived again from the committed rows."""
        self._queue.clear()
        self._first.clear()

    def end(self) -> None:
        """Stop: nothing is written any more, so those who wait for it are cancelled."""
        self._over = True
        self._queue.cancel_marks()

    async def written(self) -> bool:
        """Return True once all that is queued now is committed, False if it never will be."""
        if self._over:
            return False
        marks = self._queue.mark()
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
            if self._queue.taken_rows >= _BUSY_ROWS and self._queue.rows < _LARGE_ROWS:
                await asyncio.sleep(_GATHER_S)
            elif not idle:
                await asyncio.sleep(0)
            self._be_certain()
            self._writing = True
            try:
                if self._first:
                    await self._first.popleft()()
                else:
                    await self._write(self._queue.take())
            finally:
                self._writing = False

    def _be_certain(self) -> None:
        if self._doubted:
            self._doubted = False
            raise OutcomeUnknownError

    @property
    def _has_work(self) -> bool:
        return bool(self._queue or self._first or self._doubted)

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
            self._written_rows += self._queue.taken_rows
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
        self._queue.complete_marks(committed.batch)

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
