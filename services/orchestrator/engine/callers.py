"""Who waits for what is on its way to disk: starts, cancellations, and other changes to a run.

What is in doubt is told as such: a repetition with the same request id is safe.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container
from uuid import UUID

from services.kit.errors import Unavailable
from services.orchestrator.domain.transition import Transition


class NotStarted(Exception):  # noqa: N818  # what happened, for the caller to look into
    """A run was not inserted: its workflow went away or changed, or its request id is taken."""


def try_again() -> Unavailable:
    """Make the answer to who called while the engine does not know what is written."""
    return Unavailable(
        "ENGINE_RECOVERING",
        "the engine does not know what of it was written, and reads that from its database; "
        "repeat the call with the same request id",
        retry_after_s=1.0,
    )


class Starts:
    """Runs that begin together: who started them waits once, for all of them."""

    __slots__ = ("_left", "done", "refused")

    def __init__(self, count: int) -> None:
        self.done = _future()
        self.refused: dict[UUID, Exception] = {}  # by run; the others are committed
        self._left = count

    def answer(self, run_id: UUID, error: Exception | None = None) -> None:
        """Know what became of one of them."""
        if error is not None:
            self.refused[run_id] = error
        self._left -= 1
        if not self._left:  # once what hangs on the same commit is out: assignments go first
            self.done.get_loop().call_soon(_resolve, self.done)


class Callers:
    """Their futures; each is answered once: by the commit, or by what came instead of it."""

    def __init__(self) -> None:
        self._starts: dict[UUID, Starts] = {}  # by run
        self._cancels: dict[UUID, asyncio.Future[None]] = {}  # by run
        # By transition, each with its run.
        self._changes: dict[int, tuple[UUID, asyncio.Future[None]]] = {}

    # --- who waits ------------------------------------------------------------------------------

    def start(self, run_id: UUID, starts: Starts) -> None:
        """Wait for a run's first row, with those of others."""
        self._starts[run_id] = starts

    def cancel(self, run_id: UUID) -> asyncio.Future[None]:
        """Wait until a run's cancellation is written."""
        future = self._cancels[run_id] = _future()
        return future

    def cancelling(self, run_id: UUID) -> asyncio.Future[None] | None:
        """Give what another caller waits for who cancelled the run a moment before."""
        return self._cancels.get(run_id)

    def change(self, run_id: UUID, last: Transition) -> asyncio.Future[None]:
        """Wait until the last transition of what was done to a run is written."""
        _, future = self._changes[id(last)] = (run_id, _future())
        return future

    # --- what became of it ----------------------------------------------------------------------

    def started(self, run_id: UUID) -> None:
        """Know that a run's first row is written."""
        self._answer_start(run_id)

    def refused(self, run_id: UUID) -> None:
        """Know that a run was not inserted."""
        self._answer_start(run_id, NotStarted())

    def written(self, t: Transition) -> None:
        """Know that a transition is durable."""
        if self._changes and (changed := self._changes.pop(id(t), None)) is not None:
            _resolve(changed[1])
        if self._cancels and any(change.cancels for change in t.run_changes):
            _resolve(self._cancels.pop(t.run_id, None))

    def loaded_again(self, run_id: UUID, *, there: bool) -> None:
        """Know that a run is what its rows say, whatever was queued for it."""
        self._reject_changes(run_id)
        _reject(self._cancels.pop(run_id, None), try_again())
        self._start_told(run_id, there=there)

    def all_loaded_again(self, there: Container[UUID]) -> None:
        """Know that these runs are there, as their rows say, and no others."""
        self._reject_changes(None)
        for run_id in list(self._starts):
            self._start_told(run_id, there=run_id in there)
        for run_id in list(self._cancels):
            _reject(self._cancels.pop(run_id), try_again())

    def _start_told(self, run_id: UUID, *, there: bool) -> None:
        # Written after all, or not at all.
        self._answer_start(run_id, None if there else try_again())

    def _answer_start(self, run_id: UUID, error: Exception | None = None) -> None:
        starts = self._starts.pop(run_id, None)
        if starts is not None:
            starts.answer(run_id, error)

    def _reject_changes(self, run_id: UUID | None) -> None:
        for key, (changed, future) in list(self._changes.items()):
            if run_id is None or changed == run_id:
                del self._changes[key]
                _reject(future, try_again())


def _future() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


def _resolve(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)


def _reject(future: asyncio.Future[None] | None, error: Exception) -> None:
    if future is not None and not future.done():
        future.set_exception(error)
        future.exception()  # whoever waited may have gone: then nobody needs to hear it
