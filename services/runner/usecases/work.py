"""Runs attempts in the runner's slots, and grants orchestrators how many they may send."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from uuid import UUID

import structlog

from services.runner.domain.attempts import AttemptRequest, FileReference
from services.runner.domain.frames import Assignment, Declined, Definition, Finished
from services.runner.domain.outcome import INLINE_BYTES_MAX, Outcome
from services.runner.domain.pooling import Pace
from services.runner.domain.requests import request_of
from services.runner.usecases.attempt import BROKEN, CANCELLED, Attempt
from services.runner.usecases.attempts import Attempts
from services.runner.usecases.carried import NotCarried
from services.runner.usecases.membership import LeaseLost, Membership
from services.runner.usecases.outbox import Outbox
from services.runner.usecases.pulling import InputsMissing, PullValues, pull_patiently
from services.runner.usecases.session import Session
from services.runner.usecases.slots import Slots
from services.runner.usecases.trace import Trace

log = structlog.get_logger()

# Stores outputs that are too large to send: (request, outputs) -> reference.
StoreOutputs = Callable[[AttemptRequest, Sequence[tuple[str, bytes]]], Awaitable[FileReference]]


class Work(Outbox):
    """Owns the slots and what runs in them; divides them among orchestrators by their demand."""

    def __init__(
        self,
        attempts: Attempts,
        membership: Membership,
        *,
        slots: int,
        store: StoreOutputs,
        refuse: str = "",
        attempt_s_max: float = math.inf,
        trace: Trace | None = None,
    ) -> None:
        super().__init__()
        self._attempts = attempts
        self._membership = membership
        self._slots = slots
        self._store = store
        self._trace = trace
        self._attempt_s_max = attempt_s_max
        self._refuse = refuse  # why all assignments are declined; empty if they are not
        self._running: dict[UUID, Attempt] = {}
        self._owners: dict[UUID, Session] = {}
        self._grant_epoch = 0
        self._pace = Pace()
        self._places = Slots(slots, on_change=self._share)
        self.ended: Counter[str] = Counter()  # attempts, by how they ended

    def _enter(self, attempt: Attempt, definition: Definition, assignment: Assignment) -> None:
        """Queue an attempt for a slot, unless it was told to end meanwhile."""
        attempt.before = None
        if self._running.get(assignment.attempt_ref) is not attempt:
            return
        if assignment.pull or definition.concurrency > 1 or not self._membership.held:
            self._start(attempt, definition, assignment)  # it has to wait for more than a slot
        else:
            self._places.enter(partial(self._begin, attempt, definition, assignment))

    def _begin(self, attempt: Attempt, definition: Definition, assignment: Assignment) -> bool:
        """Begin a call that got a slot; return False if it does not need it any more."""
        if self._running.get(assignment.attempt_ref) is not attempt:
            return False  # it was told to end while it was queued
        attempt.has_slot = True
        self._start(attempt, definition, assignment)
        return True

    def _start(self, attempt: Attempt, definition: Definition, assignment: Assignment) -> None:
        if attempt.has_slot and self._membership.held and self._begin_plain(attempt):
            return
        self._run(attempt, partial(self._make, attempt, definition, assignment))

    def _begin_plain(self, attempt: Attempt) -> bool:
        """Begin a call without a task, if it only has to wait for an interpreter."""
        made = partial(self._made, attempt, time.time_ns())
        attempt.begun = True
        try:
            attempt.begun = self._attempts.begin(attempt, made, partial(self._leave, attempt))
        except Exception:
            log.exception("attempt_not_begun", attempt_ref=str(attempt.request.attempt_ref))
            asyncio.get_running_loop().call_soon(made, BROKEN)
            asyncio.get_running_loop().call_soon(self._leave, attempt)
        return attempt.begun

    def _made(self, attempt: Attempt, began_ns: int, outcome: Outcome) -> None:
        """Process the outcome of such a call; its slot is released after this."""
        try:
            self._note(attempt, outcome, began_ns)
        except Exception:
            log.exception("attempt_failed", attempt_ref=str(attempt.request.attempt_ref))
            outcome = BROKEN
        if _size(outcome) > INLINE_BYTES_MAX:
            self._run(attempt, partial(self._finish, attempt, outcome))
        else:
            self._end(attempt, self._over(attempt, outcome))

    def _end(self, attempt: Attempt, answer: Finished | Declined | None) -> None:
        """Send the answer of an attempt, unless nobody wants it any more."""
        owner = self._let_go(attempt)
        if owner is not None and answer is not None:
            self._answer(owner, answer)
        self._settled.set()

    def _note(self, attempt: Attempt, outcome: Outcome, began_ns: int) -> None:
        """Export the span of an attempt, and update the pace."""
        if self._trace is not None and attempt.request.traceparent:
            self._trace(attempt.request, outcome, began_ns)
        if self._pace.note(outcome.usage.wall_us):
            self._share()

    def _run(self, attempt: Attempt, make: Callable[[], Awaitable[Finished]]) -> None:
        """Run an attempt, or the rest of it, in a task."""
        attempt.begun = False
        attempt.task = asyncio.create_task(self._see_through(attempt, make))

    async def _see_through(self, attempt: Attempt, make: Callable[[], Awaitable[Finished]]) -> None:
        request = attempt.request
        attempt.begun = True
        answer: Finished | Declined | None = None
        try:
            answer = self._over(attempt, CANCELLED) if attempt.told else await make()
        except asyncio.CancelledError:
            if attempt.told != "killed":
                raise
            answer = self._over(attempt, CANCELLED)
        except LeaseLost:
            log.warning("attempt_dropped", attempt_ref=str(request.attempt_ref))
        except InputsMissing:
            # Declined, as if never accepted: no user code has run.
            log.warning("inputs_missing", attempt_ref=str(request.attempt_ref))
            answer = Declined(request.attempt_ref, request.token, "inputs_missing")
        except Exception:
            log.exception("attempt_failed", attempt_ref=str(request.attempt_ref))
            answer = self._over(attempt, BROKEN)
        finally:
            self._leave(attempt)
            self._end(attempt, answer)

    async def _make(
        self, attempt: Attempt, definition: Definition, assignment: Assignment
    ) -> Finished:
        if not self._membership.held:
            await self._membership.hold()
        if assignment.pull:
            values = await pull_patiently(
                attempt.request,
                len(definition.inputs),
                lambda: self._sources(assignment.attempt_ref),
            )
            attempt.request = request_of(definition, assignment, self._attempt_s_max, values)
        began_ns = time.time_ns()
        outcome = await self._run_once(attempt)
        if outcome.again:
            log.info("attempt_made_again", attempt_ref=str(assignment.attempt_ref))
            attempt.alone, attempt.over = True, False
            outcome = await self._run_once(attempt)
        self._note(attempt, outcome, began_ns)
        return await self._finish(attempt, outcome)

    async def _run_once(self, attempt: Attempt) -> Outcome:
        if not attempt.has_slot:
            if attempt.request.concurrency > 1 and not attempt.alone:
                key = await self._attempts.key_of(attempt.request)
                if key is not None and key.concurrency > 1:
                    async with self._places.seat(key, seats=key.concurrency):
                        return await self._attempts.run(attempt)
            await self._places.take()
            attempt.has_slot = True
        outcome = await self._attempts.run(attempt)
        self._leave(attempt)
        return outcome

    def _leave(self, attempt: Attempt) -> None:
        """Release the slot, and let attempts begin that had to wait for this one's end."""
        if attempt.has_slot:
            attempt.has_slot = False
            self._places.leave()
        attempt.over = True
        followers, attempt.followers = attempt.followers, []
        for enter in followers:
            enter()

    def _sources(self, ref: UUID) -> Iterator[PullValues]:
        """Yield whom to ask for an attempt's inputs: its owner first, then all others."""
        owner = self._owners.get(ref)
        for session in sorted(self._sessions, key=lambda each: each is not owner):
            if session in self._sessions:  # it may have been closed meanwhile
                yield session.pull

    def _let_go(self, attempt: Attempt) -> Session | None:
        """Forget an attempt and return its owner; None if done already: no result is wanted."""
        ref = attempt.request.attempt_ref
        if self._running.get(ref) is not attempt:
            return None
        del self._running[ref]
        owner = self._owners.pop(ref)
        owner.running -= 1
        return owner

    async def _finish(self, attempt: Attempt, outcome: Outcome) -> Finished:
        if _size(outcome) <= INLINE_BYTES_MAX:
            return self._over(attempt, outcome)
        try:
            file = await self._store(attempt.request, outcome.outputs)
        except NotCarried as refused:
            attempt.moved_bytes += _size(outcome)
            return self._over(attempt, outcome._replace(outputs=(), error=refused.error))
        return self._over(attempt, outcome, file)

    def _over(
        self, attempt: Attempt, outcome: Outcome, file: FileReference | None = None
    ) -> Finished:
        error = outcome.error
        self.ended["completed" if error is None else error.type.value] += 1
        return Finished(
            attempt_ref=attempt.request.attempt_ref,
            token=attempt.request.token,
            outcome=outcome,
            file=file,
            container_id=attempt.container_id,
            transfer_us=attempt.transfer_us,
            killed=attempt.told == "killed",
            moved_bytes=attempt.moved_bytes + _size(outcome),
        )

    def _abandon(self, ref: UUID, token: int) -> None:
        """End an attempt whose result nobody wants."""
        attempt = self._running.get(ref)
        if attempt is None or attempt.request.token > token:
            return
        self._let_go(attempt)
        self._tell_to_end(attempt, grace_s=0.0)
        self._settled.set()

    def _tell_to_end(self, attempt: Attempt, *, grace_s: float) -> None:
        """Kill an attempt; one whose task has not run its first step is only marked.

        A task cancelled before that would never run, so it would neither answer nor release its
        slot. A queued attempt has no task and nothing has begun, so it is answered at once.
        """
        if attempt.begun:
            self._attempts.tell_to_end(attempt, "killed", grace_s=grace_s)
            return
        attempt.told = "killed"
        if attempt.task is None and (owner := self._let_go(attempt)) is not None:
            self._answer(owner, self._over(attempt, CANCELLED))
            self._settled.set()

    # -- slots

    def _share(self) -> None:
        """Grant each orchestrator its share by demand, at least one; nothing while refusing."""
        total = sum(1 + session.demand for session in self._sessions)
        more = self._places.more()
        for session in self._sessions:
            part = max(1, self._slots * (1 + session.demand) // total) * self._pace.ahead
            part += more * (1 + session.demand) // total
            credits_now = 0 if self._refuse else part
            if credits_now != session.credits or session.outgoing.grant is not None:
                self._grant_epoch += 1
                session.credits = credits_now
                session.ceiling = max(session.ceiling, credits_now)
                session.outgoing.grant = (credits_now, self._grant_epoch)
                session.ready.set()


def _size(outcome: Outcome) -> int:
    return sum([len(text) for _, text in outcome.outputs])
