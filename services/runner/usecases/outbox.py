"""The outbox: keeps each result until it is acknowledged, and sends it to whoever may take it."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Final
from uuid import UUID

from services.runner.domain.frames import Declined, Finished
from services.runner.usecases.attempt import Attempt
from services.runner.usecases.session import Session

# Attempts that are over: an orchestrator that stood still may ask for one that another settled.
_SETTLED_MAX: Final = 10_000


class Outbox:
    """What is finished and not acknowledged, and the streams on which it is offered."""

    _running: dict[UUID, Attempt]

    def __init__(self) -> None:
        self._finished: dict[UUID, Finished] = {}
        # Token and orchestrator, oldest first; a plain dict looks for its first past all that went.
        self._settled_by: OrderedDict[UUID, tuple[int, str]] = OrderedDict()
        self._sessions: list[Session] = []
        self._settled = asyncio.Event()

    def _offer(self, session: Session) -> None:
        """Send all that is finished and was not sent there before."""
        for ref, finished in self._finished.items():
            if ref not in session.offered:
                self._send(session, finished)

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
