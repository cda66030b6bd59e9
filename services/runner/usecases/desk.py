"""The desk: takes assignments, has them made, and answers for each until that is acknowledged."""

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
    """Where orchestrators' streams come in: what each says is done, and what is left at the end."""

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
        self.drained = False  # whether all that it ever began is answered, and nothing new is taken

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
