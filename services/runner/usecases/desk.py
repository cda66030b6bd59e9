"""The desk: accepts assignments, runs them, and keeps each result until it is acknowledged."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from functools import partial
from uuid import UUID

import structlog

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
from services.runner.domain.requests import request_of
from services.runner.usecases.attempt import CANCELLED, Attempt
from services.runner.usecases.attempts import Attempts
from services.runner.usecases.membership import Membership
from services.runner.usecases.pulling import PullValues
from services.runner.usecases.session import Session
from services.runner.usecases.trace import Trace
from services.runner.usecases.work import StoreOutputs, Work

log = structlog.get_logger()


class Desk(Work):
    """Handles the streams of orchestrators: executes their frames, and drains at the end."""

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
        super().__init__(
            attempts,
            membership,
            slots=slots,
            store=store,
            refuse=refuse,
            attempt_s_max=attempt_s_max,
            trace=trace,
        )
        self._pythons = frozenset(pythons)
        self._networks = frozenset((Reach.NONE, *networks))
        self.drained = False  # whether everything is answered and nothing new is accepted

    # -- state

    def busy(self) -> bool:
        """Return whether attempts are running."""
        return bool(self._running)

    def activity(self) -> tuple[bool, int]:
        """Return whether there is anything to do, and the count of attempts that ended so far."""
        return bool(self._running or self._finished), self.ended.total()

    def inventory(self) -> tuple[list[tuple[UUID, int]], list[tuple[UUID, int]]]:
        """Return the running attempts, and the finished ones without acknowledgement."""
        running = [(ref, attempt.request.token) for ref, attempt in self._running.items()]
        finished = [(ref, result.token) for ref, result in self._finished.items()]
        return running, finished

    # -- streams

    def open_session(self, pull: PullValues) -> Session:
        """Begin to serve an orchestrator: send it finished results, and grant its share of slots.

        The orchestrator then states which running attempts it owns.
        """
        session = Session(pull)
        self._sessions.append(session)
        self._offer(session)
        self._share()
        return session

    def close_session(self, session: Session) -> None:
        """Drop a stream; its attempts keep running."""
        if session in self._sessions:
            self._sessions.remove(session)
            for other in self._sessions:  # another one may now own what was only sent to this one
                self._offer(other)
            self._share()

    def take(self, session: Session, frame: Incoming) -> None:
        """Execute a frame of a stream."""
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
        for ref, token in frame.acks:  # last: starting attempts is more urgent
            self._settle(session, ref, token)
        if frame.demand is not None:
            session.demand = frame.demand
            self._share()

    def _own(self, session: Session, owned: Owned) -> None:
        """Set the owner of an attempt: it counts there, and its result is sent there."""
        owner = next((each for each in self._sessions if each.member == owned.member), None)
        running = self._running.get(owned.attempt_ref)
        if running is not None and running.request.token == owned.token:
            self._owners[owned.attempt_ref].running -= 1
            # Without a stream to its owner it has none: the result is sent to all, and then to the
            # next that attaches.
            self._owners[owned.attempt_ref] = owner or Session(session.pull)
            self._owners[owned.attempt_ref].running += 1
        finished = self._finished.get(owned.attempt_ref)
        # `session` has got it already, unless it still ran when the stream began.
        told = owner is session and owned.attempt_ref in session.offered
        if finished is not None and owner is not None and not told:
            self._send(owner, finished)

    # -- ending

    async def drain(self, grace_s: float) -> None:
        """Accept nothing new; return when all is answered and acknowledged, or after `grace_s`."""
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
        """Drop everything: the lease is lost, so nobody would accept a result."""
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
            if not before.over:  # it is still ending: two attempts must never overlap
                before.followers.append(partial(self._enter, attempt, definition, assignment))
                return
        self._enter(attempt, definition, assignment)

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

    def _kill(self, session: Session, kill: Kill) -> None:
        finished = self._finished.get(kill.attempt_ref)
        if finished is not None and finished.token == kill.token:
            self._send(session, finished)
            return
        attempt = self._running.get(kill.attempt_ref)
        if attempt is None or attempt.request.token != kill.token:
            # Nothing to kill, but the orchestrator waits for an answer.
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
