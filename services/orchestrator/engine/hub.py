"""The hub: notifies waiters and watchers of a run about committed changes."""

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

# How many changes, and nodes in them, are queued for a slow subscriber before they are merged.
_WAITING_MAX: Final = 2000


class Moved(Exception):  # noqa: N818  # an event, not an error
    """The run belongs to another member now, which publishes its changes."""


@dataclass(frozen=True, slots=True)
class Change:
    """A committed change of a run; one object is shared by all subscribers."""

    revision: int
    views: Sequence[View]  # the changed nodes, oldest first
    complete: bool  # whether `views` holds all changed nodes; else read the rows
    final: bool
    row: bool = True  # whether the run's own row changed, not just its nodes
    # What the first subscriber derived of it, for the others to reuse; the keys are theirs.
    made: dict[Hashable, Any] = field(default_factory=dict, compare=False)


class Subscription:
    """One waiter or watcher of a run."""

    __slots__ = ("_changes", "_ends_at", "_size", "_timer", "_waiting", "ends_only", "moved")

    def __init__(self, *, ends_only: bool = False) -> None:
        """With `ends_only`, only the end of the run and a reload of the memory are delivered."""
        self.ends_only = ends_only
        self.moved = False
        self._changes: list[Change] = []
        self._size = 0
        self._waiting: asyncio.Future[None] | None = None
        # One timer for many waits: changes arrive far more often than a wait times out.
        self._timer = Alarm()
        self._ends_at: float | None = None

    def publish(self, change: Change) -> None:
        """Queue a change; when too much is queued it is merged into one."""
        if self.ends_only and change.revision and not change.final:
            return
        self._size += 1 + len(change.views)
        self._changes.append(change)
        if self._size > _WAITING_MAX:
            self._changes, self._size = [_merged(self._changes, complete=False)], 0
        self._wake()

    def move(self) -> None:
        """Have `next` raise `Moved`: the run went to another member."""
        self.moved = True
        self._wake()

    async def next(self, timeout_s: float | None = None) -> Change | None:
        """Wait for changes and return them merged into one; None on timeout. Raises `Moved`."""
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
        """Cancel the timer."""
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
        if self._ends_at is None:  # no wait, or one without a timeout
            return
        left_s = self._ends_at - asyncio.get_running_loop().time()
        if left_s > 0:  # a later wait has begun since
            self._set_timer(left_s)
        else:
            self._wake()


def _merged(changes: Sequence[Change], *, complete: bool) -> Change:
    """Merge changes; the nodes are kept only if they are complete."""
    complete = complete and all(each.complete for each in changes)
    return Change(
        max(each.revision for each in changes),
        [view for each in changes for view in each.views] if complete else [],
        complete,
        any(each.final for each in changes),
        any(each.row for each in changes),
    )


class Hub:
    """The subscriptions by run."""

    def __init__(self) -> None:
        self.leaving = False
        self._by_run: dict[UUID, list[Subscription]] = {}
        self._waits: set[asyncio.Timeout] = set()

    async def waited(self, wait: Awaitable[_T]) -> _T | None:
        """Return the result of a wait, or None if this member leaves first.

        A stopping server lets calls finish, and a call that waits for a run could take a minute.
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
        """End all waits now, and any that begins later."""
        self.leaving = True
        while self._waits:
            self._waits.pop().reschedule(0)

    @contextmanager
    def subscribed(self, run_id: UUID, *, ends_only: bool = False) -> Iterator[Subscription]:
        """Subscribe to a run's changes, or just to its end, within the block."""
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
        """Return whether a run has subscribers."""
        return run_id in self._by_run

    def heeded(self, run_id: UUID, *, final: bool) -> bool:
        """Return whether any subscriber would get a change of this run."""
        subscriptions = self._by_run.get(run_id)
        if subscriptions is None:
            return False
        return final or not all(each.ends_only for each in subscriptions)

    def watchers(self, run_id: UUID) -> int:
        """Count the subscribers that get every change."""
        return sum(not each.ends_only for each in self._by_run.get(run_id, ()))

    def publish(self, run_id: UUID, change: Change) -> None:
        """Deliver a change to all subscribers of a run."""
        for subscription in self._by_run.get(run_id, ()):
            subscription.publish(change)

    def moved(self, run_id: UUID) -> None:
        """Tell all subscribers that the run went to another member."""
        for subscription in self._by_run.get(run_id, ()):
            subscription.move()

    def resync(self) -> None:
        """Tell all subscribers to read the rows again, after the memory was rebuilt from them."""
        for run_id in self._by_run:
            self.publish(run_id, Change(0, [], complete=False, final=False))
