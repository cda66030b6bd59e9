"""Callers that wait for a commit: of starts, cancellations and other changes to a run.

When it is unknown whether something was committed, callers are told so; repeating the call with the
same request id is safe.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container
from uuid import UUID

from services.kit.errors import Unavailable
from services.orchestrator.domain.transition import Transition


class NotStarted(Exception):  # noqa: N818  # an event, not an error
    """A run was not inserted: its workflow went away or changed, or its request id is taken."""


def try_again() -> Unavailable:
    """Return the error for calls that arrive while the engine reloads its state."""
    return Unavailable(
        "ENGINE_RECOVERING",
        "the engine is reloading its state, so the outcome is unknown; "
        "retry with the same request id",
        retry_after_s=1.0,
    )


class Starts:
    """Runs started by one call, which waits once for all of them."""

    __slots__ = ("_left", "done", "refused")

    def __init__(self, count: int) -> None:
        self.done = _future()
        self.refused: dict[UUID, Exception] = {}  # by run; the others are committed
        self._left = count

    def answer(self, run_id: UUID, error: Exception | None = None) -> None:
        """Record that one run was committed, or refused with `error`."""
        if error is not None:
            self.refused[run_id] = error
        self._left -= 1
        if not self._left:  # by `call_soon`, so that assignments of the same commit are sent first
            self.done.get_loop().call_soon(_resolve, self.done)


class Callers:
    """The futures of waiting callers; each is resolved once, by a commit or with an error."""

    def __init__(self) -> None:
        self._starts: dict[UUID, Starts] = {}  # by run
        self._cancels: dict[UUID, asyncio.Future[None]] = {}  # by run
        # By transition, each with its run.
        self._changes: dict[int, tuple[UUID, asyncio.Future[None]]] = {}

    # --- waiting --------------------------------------------------------------------------------

    def start(self, run_id: UUID, starts: Starts) -> None:
        """Register that `starts` waits for the insert of a run."""
        self._starts[run_id] = starts

    def cancel(self, run_id: UUID) -> asyncio.Future[None]:
        """Return a future that resolves when a run's cancellation is committed."""
        future = self._cancels[run_id] = _future()
        return future

    def cancelling(self, run_id: UUID) -> asyncio.Future[None] | None:
        """Return the future of a cancellation of this run that is already under way, if any."""
        return self._cancels.get(run_id)

    def change(self, run_id: UUID, last: Transition) -> asyncio.Future[None]:
        """Return a future that resolves when the last transition of a change is committed."""
        _, future = self._changes[id(last)] = (run_id, _future())
        return future

    # --- outcomes -------------------------------------------------------------------------------

    def started(self, run_id: UUID) -> None:
        """Resolve the start of a run: its row is committed."""
        self._answer_start(run_id)

    def refused(self, run_id: UUID) -> None:
        """Fail the start of a run that was not inserted."""
        self._answer_start(run_id, NotStarted())

    def written(self, t: Transition) -> None:
        """Resolve the callers that wait for this transition: it is committed."""
        if self._changes and (changed := self._changes.pop(id(t), None)) is not None:
            _resolve(changed[1])
        if self._cancels and any(change.cancels for change in t.run_changes):
            _resolve(self._cancels.pop(t.run_id, None))

    def loaded_again(self, run_id: UUID, *, there: bool) -> None:
        """Answer the callers of a run that was reloaded: what was queued for it is dropped.

        `there` says whether the run has a row.
        """
        self._reject_changes(run_id)
        _reject(self._cancels.pop(run_id, None), try_again())
        self._start_told(run_id, there=there)

    def all_loaded_again(self, there: Container[UUID]) -> None:
        """Answer all callers after everything was reloaded; `there` holds the runs with rows."""
        self._reject_changes(None)
        for run_id in list(self._starts):
            self._start_told(run_id, there=run_id in there)
        for run_id in list(self._cancels):
            _reject(self._cancels.pop(run_id), try_again())

    def _start_told(self, run_id: UUID, *, there: bool) -> None:
        # Its insert was committed after all, or never was.
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
        future.exception()  # marks it as retrieved: the caller may have gone
