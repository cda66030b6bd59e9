"""One orchestrator's stream: what it told the desk, and what is to be sent on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from uuid import UUID

from services.runner.domain.frames import Definition, Outgoing
from services.runner.usecases.pulling import PullValues


class Session:
    """The state of one orchestrator's stream."""

    def __init__(self, pull: PullValues) -> None:
        self.pull = pull
        self.member = ""  # the orchestrator's id, once known
        self.peers: Sequence[str] = ()  # addresses of the other orchestrators, as it reports them
        self.offered: set[UUID] = set()  # results already sent here
        self.definitions: dict[int, Definition] = {}
        self.running = 0
        self.credits = 0
        self.ceiling = 0  # the largest grant so far: a smaller one may still be on its way
        self.demand = 0
        self.outgoing = Outgoing()
        self.ready = asyncio.Event()
        self.answered = asyncio.Event()  # set when a frame came since the last one was sent
        # Sends what waits without blocking, if it can; returns whether it did.
        self.say: Callable[[], bool] | None = None

    def let_go(self) -> None:
        """Have waiting messages sent: directly if possible, else by the sending task."""
        if self.say is None or not self.say():
            self.ready.set()

    def take_outgoing(self) -> Outgoing:
        """Return all waiting messages, and clear them."""
        taken, self.outgoing = self.outgoing, Outgoing()
        self.ready.clear()
        return taken
