"""The outbox: keeps each result until it is acknowledged, and sends it to its owner."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Final
from uuid import UUID

from services.runner.domain.frames import Declined, Finished
from services.runner.usecases.attempt import Attempt
from services.runner.usecases.session import Session

# Acknowledged results to remember: an orchestrator that was suspended may assign one again.
_SETTLED_MAX: Final = 10_000


class Outbox:
    """The results without acknowledgement, and the streams that they are sent on."""

    _running: dict[UUID, Attempt]

    def __init__(self) -> None:
        self._finished: dict[UUID, Finished] = {}
        # Token and orchestrator, oldest first. Ordered: popping the first of a plain dict scans
        # past all deleted entries.
        self._settled_by: OrderedDict[UUID, tuple[int, str]] = OrderedDict()
        self._sessions: list[Session] = []
        self._settled = asyncio.Event()

    def _offer(self, session: Session) -> None:
        """Send all results that were not sent on this stream before."""
        for ref, finished in self._finished.items():
            if ref not in session.offered:
                self._send(session, finished)

    def _answer(self, owner: Session, answer: Finished | Declined) -> None:
        """Answer on the stream that asked; if it is gone, on all: the owner of the run takes it."""
        if isinstance(answer, Finished):
            self._finished[answer.attempt_ref] = answer
        for session in [owner] if owner in self._sessions else self._sessions:
            self._queue(session, answer)
            if self._running:
                session.ready.set()  # together with other results of the same iteration
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
        """Drop an acknowledged result, which is committed, and remember who has it."""
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
        """Return whether another orchestrator has the result: the asker lost that run."""
        settled_token, member = self._settled_by.get(ref, (-1, ""))
        return token <= settled_token and session.member != member
