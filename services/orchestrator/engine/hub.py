"""The hub: tells those who wait for or watch a run what was committed of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar
from uuid import UUID

from services.kit.alarm import Alarm
from services.orchestrator.domain.transition import View

_T = TypeVar("_T")

# What may wait for one who is slow: changes, and nodes in them.
_WAITING_MAX: Final = 2000


class Moved(Exception):  # noqa: N818  # what happened, for the caller to follow
    """The run is another member's now: its changes are told there."""


@dataclass(frozen=True, slots=True)
class Change:
    """What a watcher has to catch up with; all who listen are handed the same one."""

    revision: int
    views: Sequence[View]  # nodes as they stood, oldest first
    complete: bool  # whether `views` is all; else the rows tell
    final: bool
    row: bool = True  # whether the run's own row changed, not its nodes' alone
    # What was made of it, for those after the first who would make the same: what listens says how.
    made: dict[Hashable, Any] = field(default_factory=dict, compare=False)


class Subscription:
    """One waiter or watcher of a run."""

    __slots__ = ("_changes", "_ends_at", "_size", "_timer", "_waiting", "ends_only", "moved")

    def __init__(self, *, ends_only: bool = False) -> None:
        """With `ends_only` it is a waiter: only the end, or a rebuilt memory, is news."""
        self.ends_only = ends_only
        self.moved = False
        self._changes: list[Change] = []
        self._size = 0
        self._waiting: asyncio.Future[None] | None = None
        # One timer for many waits: a watcher is told of changes far more often than time is up.
        self._timer = Alarm()
        self._ends_at: float | None = None

    def publish(self, change: Change) -> None:
        """Add a change; those that are not read in time are read as one."""
        if self.ends_only and change.revision and not change.final:
            return
        self._size += 1 + len(change.views)
        self._changes.append(change)
        if self._size > _WAITING_MAX:
            self._changes, self._size = [_merged(self._changes, complete=False)], 0
        self._wake()

    def move(self) -> None:
        """Have the one who listens follow the run to another member."""
        self.moved = True
        self._wake()

    async def next(self, timeout_s: float | None = None) -> Change | None:
        """Wait for changes and take them all; None when the time is up. Raises `Moved`."""
        if not (self._changes or self.moved):
            self._waiting = asyncio.get_running_loop().create_future()
            self._set_timer(timeout_s)
            try:
                await self._waiting
            finally:
                self._waiting = self._ends_at = None
        if self.moved:
            raise Moved
        changes, self._changes, self._size = self._changes, [], 0
        if not changes:
            return None
        return changes[0] if len(changes) == 1 else _merged(changes, complete=True)

    def close(self) -> None:
        """Leave no timer behind."""
        self._timer.cancel()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _set_timer(self, timeout_s: float | None) -> None:
        if timeout_s is None:
            return
        self._ends_at = asyncio.get_running_loop().time() + timeout_s
        self._timer.by(self._ends_at, self._time_is_up)

    def _time_is_up(self) -> None:
        if self._ends_at is None:  # nobody waits, or without end
            return
        left_s = self._ends_at - asyncio.get_running_loop().time()
        if left_s > 0:  # of a later wait
            self._set_timer(left_s)
        else:
            self._wake()


def _merged(changes: Sequence[Change], *, complete: bool) -> Change:
    """Make one of several; where they are not all there is, what they showed is of no use."""
    complete = complete and all(each.complete for each in changes)
    return Change(
        max(each.revision for each in changes),
        [view for each in changes for view in each.views] if complete else [],
        complete,
        any(each.final for each in changes),
        any(each.row for each in changes),
    )


class Hub:
    """Who waits for which run."""

    def __init__(self) -> None:
        self.leaving = False
        self._by_run: dict[UUID, list[Subscription]] = {}
        self._waits: set[asyncio.Timeout] = set()

    async def waited(self, wait: Awaitable[_T]) -> _T | None:
        """Give what comes of a wait, or None when this member leaves first.

        A server that stops lets calls end, and one that waits for a run may have a minute left.
        """
        try:
            async with asyncio.timeout(0 if self.leaving else None) as scope:
                self._waits.add(scope)
                try:
                    return await wait
                finally:
                    self._waits.discard(scope)
        except TimeoutError:
            if not scope.expired():
                raise
            return None

    def leave(self) -> None:
        """End all waits, and those that still come."""
        self.leaving = True
        while self._waits:
            self._waits.pop().reschedule(0)

    @contextmanager
    def subscribed(self, run_id: UUID, *, ends_only: bool = False) -> Iterator[Subscription]:
        """Be told of a run's changes inside the block, or of its end alone."""
        subscription = Subscription(ends_only=ends_only)
        self._by_run.setdefault(run_id, []).append(subscription)
        try:
            yield subscription
        finally:
            subscription.close()
            subscriptions = self._by_run[run_id]
            subscriptions.remove(subscription)
            if not subscriptions:
                del self._by_run[run_id]

    def watched(self, run_id: UUID) -> bool:
        """Say whether anybody listens."""
        return run_id in self._by_run

    def heeded(self, run_id: UUID, *, final: bool) -> bool:
        """Say whether a change of what memory knows is news to anybody."""
        subscriptions = self._by_run.get(run_id)
        if subscriptions is None:
            return False
        return final or not all(each.ends_only for each in subscriptions)

    def watchers(self, run_id: UUID) -> int:
        """Count those who want every change."""
        return sum(not each.ends_only for each in self._by_run.get(run_id, ()))

    def publish(self, run_id: UUID, change: Change) -> None:
        """Tell all who listen."""
        for subscription in self._by_run.get(run_id, ()):
            subscription.publish(change)

    def moved(self, run_id: UUID) -> None:
        """Tell all who listen that the run went to another member."""
        for subscription in self._by_run.get(run_id, ()):
            subscription.move()

    def resync(self) -> None:
        """Tell everybody to read the rows again, after memory was rebuilt from them."""
        for run_id in self._by_run:
            self.publish(run_id, Change(0, [], complete=False, final=False))
