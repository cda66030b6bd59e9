"""The queue of the journal: transitions in order, taken in batches that fit one flush."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Final, NamedTuple
from uuid import UUID

from services.kit.ids import uuid7
from services.orchestrator.domain.transition import Transition

ROWS_MAX: Final = 2000
BATCH_BYTES_MAX: Final = 1024 * 1024


class _Queued(NamedTuple):
    transition: Transition
    rows: int
    size: int


class JournalQueue:
    """Transitions to write, and marks whose futures are done when all before them is written."""

    def __init__(self, family: Callable[[UUID], UUID]) -> None:
        self._family = family
        self._queue: deque[_Queued] = deque()
        # Transitions of runs whose start takes many flushes, by family. Every second flush is for
        # one of these, so that other runs wait for one of them at most.
        self._beginning: dict[UUID, deque[_Queued]] = {}
        self._others_first = True
        self._marks: dict[UUID, asyncio.Future[None]] = {}  # by the id of an empty transition
        self.rows = 0  # without those of long starts
        self.size_bytes = 0  # likewise
        self.taken_rows = 0  # by the last batch

    def __bool__(self) -> bool:
        return bool(self._queue or self._beginning)

    def run_ids(self) -> set[UUID]:
        """Return the runs with queued transitions, without those of long starts."""
        return {each.transition.run_id for each in self._queue}

    def add(self, transition: Transition) -> None:
        """Queue a transition behind all others of its run."""
        queued = _Queued(transition, *transition.cost())
        if transition.begins or self._beginning:
            family = self._family(transition.run_id)
            if transition.begins:
                self._beginning.setdefault(family, deque())
            if family in self._beginning:
                self._beginning[family].append(queued)
                return
        self._put(queued)

    def _put(self, queued: _Queued) -> None:
        self._queue.append(queued)
        self.rows += queued.rows
        self.size_bytes += queued.size

    def drop(self, run_ids: Collection[UUID]) -> None:
        """Drop what is queued for these families; marks stay, since somebody waits for them."""
        family = self._family
        kept = [each for each in self._queue if family(each.transition.run_id) not in run_ids]
        for each in [each for each in self._beginning if each in run_ids]:
            marks = self._beginning.pop(each)
            kept += [mark for mark in marks if mark.transition.run_id in self._marks]
        self._queue = deque(kept)
        self.rows = sum(each.rows for each in kept)
        self.size_bytes = sum(each.size for each in kept)

    def clear(self) -> None:
        """Drop everything, and cancel the marks."""
        self._queue.clear()
        self._beginning.clear()
        self.rows = self.size_bytes = 0
        self.cancel_marks()

    def take(self) -> list[Transition]:
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
        self.size_bytes -= size
        self.rows -= taken
        self.taken_rows = taken
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
        self.taken_rows = queued.rows
        return [queued.transition]

    def mark(self) -> list[asyncio.Future[None]]:
        """Return futures that are done when everything queued now is committed."""
        marks = []
        for queue in (self._queue, *self._beginning.values()):
            mark: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            empty = Transition(uuid7())
            self._marks[empty.run_id] = mark
            queue.append(_Queued(empty, *empty.cost()))
            marks.append(mark)
        return marks

    def complete_marks(self, batch: Sequence[Transition]) -> None:
        """Complete the marks in a committed batch."""
        if self._marks:
            for t in batch:
                mark = self._marks.pop(t.run_id, None)
                if mark is not None and not mark.done():
                    mark.set_result(None)

    def cancel_marks(self) -> None:
        """Cancel all marks: what is before them will not be written."""
        marks, self._marks = self._marks, {}
        for mark in marks.values():
            if not mark.done():
                mark.cancel()


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
