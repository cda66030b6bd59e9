"""The hub: tells those who wait for or watch a run what was committed of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from services.orchestrator.domain.rows import View

_VIEWS_MAX: Final = 2000


class Moved(Exception):  # noqa: N818  # what happened, for the caller to follow
    """The run is another member's now: its changes are told there."""


@dataclass(frozen=True, slots=True)
class Change:
    """What a watcher has to catch up with."""

    revision: int
    views: list[View]  # nodes as they stood, oldest first
    complete: bool  # whether `views` is all; else the rows tell
    final: bool
    row: bool = True  # whether the run's own row changed, not its nodes' alone


@dataclass(slots=True, eq=False)
class Subscription:
    """One waiter or watcher of a run."""

    _event: asyncio.Event = field(default_factory=asyncio.Event)
    _views: list[View] = field(default_factory=list)
    _revision: int = 0
    _complete: bool = True
    _row: bool = False
    final: bool = False
    moved: bool = False
    ends_only: bool = False  # a waiter: only the end, or a rebuilt memory, is news

    def publish(self, change: Change) -> None:
        """Add a change; one that is not read in time merges with those before it."""
        if self.ends_only and change.revision and not change.final:
            return
        self._revision = max(self._revision, change.revision)
        self._complete = self._complete and change.complete
        self._row = self._row or change.row
        self.final = self.final or change.final
        if self._complete and len(self._views) < _VIEWS_MAX:
            self._views += change.views
        else:
            self._views, self._complete = [], False
        self._event.set()

    def move(self) -> None:
        """Have the one who listens follow the run to another member."""
        self.moved = True
        self._event.set()

    async def next(self, timeout_s: float | None = None) -> Change | None:
        """Wait for changes and take them all; None when the time is up. Raises `Moved`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            return None
        if self.moved:
            raise Moved
        self._event.clear()
        change = Change(self._revision, self._views, self._complete, self.final, self._row)
        self._views, self._complete, self._row = [], True, False
        return change


class Hub:
    """Who waits for which run."""

    def __init__(self) -> None:
        self._by_run: dict[UUID, list[Subscription]] = {}

    @contextmanager
    def subscribed(self, run_id: UUID, *, ends_only: bool = False) -> Iterator[Subscription]:
        """Be told of a run's changes inside the block, or of its end alone."""
        subscription = Subscription(ends_only=ends_only)
        self._by_run.setdefault(run_id, []).append(subscription)
        try:
            yield subscription
        finally:
            subscriptions = self._by_run[run_id]
            subscriptions.remove(subscription)
            if not subscriptions:
                del self._by_run[run_id]

    def watched(self, run_id: UUID) -> bool:
        """Say whether anybody listens."""
        return run_id in self._by_run

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
