"""The desk: takes assignments, runs them, keeps each result until it is acknowledged."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Final
from uuid import UUID

import structlog

from services.runner.domain.attempts import AttemptRequest, FileReference
from services.runner.domain.frames import (
    Assignment,
    Declined,
    Definition,
    Finished,
    Incoming,
    Kill,
    Owned,
)
from services.runner.domain.network import Reach
from services.runner.domain.outcome import (
    INLINE_BYTES_MAX,
    Outcome,
)
from services.runner.domain.pooling import Pace
from services.runner.domain.requests import request_of
from services.runner.usecases.attempt import BROKEN, CANCELLED, Attempt
from services.runner.usecases.attempts import Attempts
from services.runner.usecases.carried import NotCarried
from services.runner.usecases.membership import LeaseLost, Membership
from services.runner.usecases.pulling import InputsMissing, PullValues, pull_patiently
from services.runner.usecases.session import Session
from services.runner.usecases.slots import Slots
from services.runner.usecases.trace import Trace

log = structlog.get_logger()

# Attempts that are over: an orchestrator that stood still may ask for one that another settled.
_SETTLED_MAX: Final = 10_000

# Stores outputs that are too large to travel: (request, outputs) -> where they lie.
StoreOutputs = Callable[[AttemptRequest, Sequence[tuple[str, bytes]]], Awaitable[FileReference]]


class Desk:
    """Owns the slots; shares them among the orchestrators by what they ask for."""

    def __init__(
        self,
        attempts: Attempts,
        membership: Membership,
        *,
        slots: int,
        store: StoreOutputs,
        pythons: Sequence[str],
        networks: Sequence[Reach] = (),
        refuse: str = "",
        attempt_s_max: float = math.inf,
        trace: Trace | None = None,
    ) -> None:
        self._attempts = attempts
        self._membership = membership
        self._slots = slots
        self._store = store
        self._trace = trace
        self._pythons = frozenset(pythons)
        self._networks = frozenset((Reach.NONE, *networks))
        self._attempt_s_max = attempt_s_max
        self._refuse = refuse  # why nothing is taken at all; empty when all is well
        self.drained = False  # whether all that it ever began is answered, and nothing new is taken
        self._running: dict[UUID, Attempt] = {}
        self._owners: dict[UUID, Session] = {}
        self._finished: dict[UUID, Finished] = {}
        # Token and orchestrator, oldest first; a plain dict looks for its first past all that went.
        self._settled_by: OrderedDict[UUID, tuple[int, str]] = OrderedDict()
        self._sessions: list[Session] = []
        self._grant_epoch = 0
        self._pace = Pace()
        self._places = Slots(slots, on_change=self._share)
        self._settled = asyncio.Event()
        self.ended: Counter[str] = Counter()  # attempts, by how

    # -- what is in hand

    def busy(self) -> bool:
        """Whether attempts are under way."""
        return bool(self._running)

    def activity(self) -> tuple[bool, int]:
        """Whether there is anything in hand, and how many attempts have ended until now."""
        return bool(self._running or self._finished), self.ended.total()

    def inventory(self) -> tuple[list[tuple[UUID, int]], list[tuple[UUID, int]]]:
        """List what runs and what is finished and not acknowledged."""
        running = [(ref, attempt.request.token) for ref, attempt in self._running.items()]
        finished = [(ref, result.token) for ref, result in self._finished.items()]
        return running, finished

    # -- streams

    def open_session(self, pull: PullValues) -> Session:
        """Begin to serve an orchestrator: offer what is finished, and grant it its share.

        Of what runs it says itself which attempts are its own.
        """
        session = Session(pull)
        self._sessions.append(session)
        self._offer(session)
        self._share()
        return session

    def close_session(self, session: Session) -> None:
        """Forget a stream; its attempts go on."""
        if session in self._sessions:
            self._sessions.remove(session)
            for other in self._sessions:  # one of them may own by now what only this one was told
                self._offer(other)
            self._share()

    def take(self, session: Session, frame: Incoming) -> None:
        """Do what a frame says."""
        for definition in frame.definitions:
            session.definitions[definition.number] = definition
        for ref, token in frame.superseded:
            self._forget(ref, token)
            self._abandon(ref, token)
        for owned in frame.owners:
            self._own(session, owned)
        for kill in frame.kills:
            self._kill(session, kill)
        for assignment in frame.assignments:
            self._assign(session, assignment)
        for ref, token in frame.acks:  # last: what begins goes first, whichever attempt it is
            self._settle(session, ref, token)
        if frame.demand is not None:
            session.demand = frame.demand
            self._share()

    def _own(self, session: Session, owned: Owned) -> None:
        """Know whose an attempt is: it counts there, and its result is offered there."""
        owner = next((each for each in self._sessions if each.member == owned.member), None)
        running = self._running.get(owned.attempt_ref)
        if running is not None and running.request.token == owned.token:
            self._owners[owned.attempt_ref].running -= 1
            # Nobody's, while there is no stream to it: the result goes to all, and then to whoever
            # attaches.
            self._owners[owned.attempt_ref] = owner or Session(session.pull)
            self._owners[owned.attempt_ref].running += 1
        finished = self._finished.get(owned.attempt_ref)
        # Its own only where it ended after the greeting, in which it still ran.
        told = owner is session and owned.attempt_ref in session.offered
        if finished is not None and owner is not None and not told:
            self._send(owner, finished)

    def _offer(self, session: Session) -> None:
        """Send all that is finished and was not sent there before."""
        for ref, finished in self._finished.items():
            if ref not in session.offered:
                self._send(session, finished)

    # -- ending

    async def drain(self, grace_s: float) -> None:
        """Take nothing new; return when all is answered and acknowledged, or the time is up."""
        self._refuse = "draining"
        self._share()
        try:
            async with asyncio.timeout(grace_s):
                while self._running or (self._finished and self._sessions):
                    self._settled.clear()
                    await self._settled.wait()
        except TimeoutError:
            log.warning("drain_incomplete", running=len(self._running))
        self.drained = not self._running and not self._finished

    def abandon_all(self) -> None:
        """Forget everything: the lease is lost, and nobody would take a result."""
        running, self._running = self._running, {}
        self._owners.clear()
        self._finished.clear()
        for attempt in running.values():
            if not attempt.begun:
                attempt.told = "killed"  # a task cancelled before its first step would keep a slot
            elif attempt.task is not None:
                attempt.task.cancel()
            else:
                self._attempts.tell_to_end(attempt, "killed", grace_s=0.0)
        for session in self._sessions:
            session.running = 0
            session.take_outgoing()
        self._settled.set()

    # -- one attempt

    def _assign(self, session: Session, assignment: Assignment) -> None:
        ref, token = assignment.attempt_ref, assignment.token
        finished = self._finished.get(ref)
        if finished is not None and finished.token >= token:
            self._send(session, finished)
            return
        running = self._running.get(ref)
        if running is not None:
            if running.request.token >= token:
                return
            self._abandon(ref, running.request.token)
        definition = session.definitions.get(assignment.definition)
        reason = self._reason_to_decline(session, definition)
        if self._is_settled(session, ref, token):
            reason = "settled"
        if reason or definition is None:
            self._send(session, Declined(ref, token, reason))
            return
        attempt = Attempt(request_of(definition, assignment, self._attempt_s_max))
        self._running[ref] = attempt
        self._owners[ref] = session
        session.running += 1
        if running is not None and (before := running if running.begun else running.before):
            attempt.before = before
            if not before.over:  # told to end, which may take it a moment: never two at once
                before.followers.append(partial(self._enter, attempt, definition, assignment))
                return
        self._enter(attempt, definition, assignment)

    def _enter(self, attempt: Attempt, definition: Definition, assignment: Assignment) -> None:
        """Let an attempt stand in the line for a slot, unless it was told to end by now."""
        attempt.before = None
        if self._running.get(assignment.attempt_ref) is not attempt:
            return
        if assignment.pull or definition.concurrency > 1 or not self._membership.held:
            self._start(attempt, definition, assignment)  # it has to wait for more than a slot
        else:
            self._places.enter(partial(self._begin, attempt, definition, assignment))

    def _begin(self, attempt: Attempt, definition: Definition, assignment: Assignment) -> bool:
        """Begin a call whose turn it is to have a slot; whether it takes it."""
        if self._running.get(assignment.attempt_ref) is not attempt:
            return False  # it was told to end while it stood in the line
        attempt.has_slot = True
        self._start(attempt, definition, assignment)
        return True

    def _start(self, attempt: Attempt, definition: Definition, assignment: Assignment) -> None:
        if attempt.has_slot and self._membership.held and self._begin_plain(attempt):
            return
        self._run(attempt, partial(self._make, attempt, definition, assignment))

    def _begin_plain(self, attempt: Attempt) -> bool:
        """Begin a call that needs no task, for it has nothing to wait for but an interpreter."""
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
        """Take what became of such a call; it gives its slot back after that."""
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
        """Answer for an attempt, unless nobody wants that any more."""
        owner = self._let_go(attempt)
        if owner is not None and answer is not None:
            self._answer(owner, answer)
        self._settled.set()

    def _note(self, attempt: Attempt, outcome: Outcome, began_ns: int) -> None:
        """Tell of an attempt that was made, and learn from it."""
        if self._trace is not None and attempt.request.traceparent:
            self._trace(attempt.request, outcome, began_ns)
        if self._pace.note(outcome.usage.wall_us):
            self._share()

    def _reason_to_decline(self, session: Session, definition: Definition | None) -> str:
        if self._refuse:
            return self._refuse
        if definition is None:
            return "definition_missing"
        if definition.python_version and definition.python_version not in self._pythons:
            return "python_missing"
        if definition.network.reach not in self._networks:
            return "network_missing"
        if session.running >= session.ceiling:
            return "over_grant"
        return ""

    def _run(self, attempt: Attempt, make: Callable[[], Awaitable[Finished]]) -> None:
        """Have a task make an attempt, or what is left of it."""
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
            # Handed back, as one that was never taken: nothing of the user's has begun.
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
        """Give its slot to the next, and let the attempt begin that stands for it by now."""
        if attempt.has_slot:
            attempt.has_slot = False
            self._places.leave()
        attempt.over = True
        followers, attempt.followers = attempt.followers, []
        for enter in followers:
            enter()

    def _sources(self, ref: UUID) -> Iterator[PullValues]:
        """Whom to ask for an attempt's inputs: its owner's stream, then any that may own it."""
        owner = self._owners.get(ref)
        for session in sorted(self._sessions, key=lambda each: each is not owner):
            if session in self._sessions:  # it may have gone while another was asked
                yield session.pull

    def _let_go(self, attempt: Attempt) -> Session | None:
        """Free the slot; None when that was done already, for nobody wants the result."""
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

    def _answer(self, owner: Session, answer: Finished | Declined) -> None:
        """Answer on the stream that asked; without it, on all: whoever owns the run takes it."""
        if isinstance(answer, Finished):
            self._finished[answer.attempt_ref] = answer
        for session in [owner] if owner in self._sessions else self._sessions:
            self._queue(session, answer)
            if self._running:
                session.ready.set()  # with what others that work may give in the same turn
            else:
                session.let_go()

    def _send(self, session: Session, answer: Finished | Declined) -> None:
        self._queue(session, answer)
        session.ready.set()

    def _queue(self, session: Session, answer: Finished | Declined) -> None:
        if isinstance(answer, Finished):
            session.outgoing.results.append(answer)
            session.offered.add(answer.attempt_ref)
        else:
            session.outgoing.declines.append(answer)

    def _settle(self, session: Session, ref: UUID, token: int) -> None:
        """Keep a result no longer, and know who has it: only what is committed is acknowledged."""
        self._settled_by.pop(ref, None)
        self._settled_by[ref] = token, session.member
        if len(self._settled_by) > _SETTLED_MAX:
            self._settled_by.popitem(last=False)
        self._forget(ref, token)

    def _forget(self, ref: UUID, token: int) -> None:
        finished = self._finished.get(ref)
        if finished is not None and finished.token <= token:
            del self._finished[ref]
            for each in self._sessions:
                each.offered.discard(ref)
            self._settled.set()

    def _is_settled(self, session: Session, ref: UUID, token: int) -> bool:
        """Whether another orchestrator has the result: who asks lost its run, and does not know."""
        settled_token, member = self._settled_by.get(ref, (-1, ""))
        return token <= settled_token and session.member != member

    def _abandon(self, ref: UUID, token: int) -> None:
        """End an attempt whose result nobody wants."""
        attempt = self._running.get(ref)
        if attempt is None or attempt.request.token > token:
            return
        self._let_go(attempt)
        self._tell_to_end(attempt, grace_s=0.0)
        self._settled.set()

    def _kill(self, session: Session, kill: Kill) -> None:
        finished = self._finished.get(kill.attempt_ref)
        if finished is not None and finished.token == kill.token:
            self._send(session, finished)
            return
        attempt = self._running.get(kill.attempt_ref)
        if attempt is None or attempt.request.token != kill.token:
            # Nothing to end: an answer all the same, or the orchestrator would wait for it.
            self._send(
                session,
                Finished(
                    attempt_ref=kill.attempt_ref,
                    token=kill.token,
                    outcome=CANCELLED,
                    killed=True,
                ),
            )
            return
        self._tell_to_end(attempt, grace_s=kill.grace_s)

    def _tell_to_end(self, attempt: Attempt, *, grace_s: float) -> None:
        """Kill; a task that has not taken its first step is only told.

        Cancelled, it would never take that step, and so never answer nor free its slot. Of one that
        stands in the line there is no task yet: nothing has begun.
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
        """Grant each orchestrator its part by demand, at least one; nothing while refusing."""
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
