"""What one orchestrator's stream has told the desk, and what waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from uuid import UUID

from services.runner.domain.frames import Definition, Outgoing
from services.runner.usecases.pulling import PullValues


class Session:
    """One orchestrator's stream, as the desk knows it."""

    def __init__(self, pull: PullValues) -> None:
        self.pull = pull
        self.member = ""  # the orchestrator's id, once it has said so
        self.peers: Sequence[str] = ()  # where it says that the others are
        self.offered: set[UUID] = set()  # of what is finished, what went out here
        self.definitions: dict[int, Definition] = {}
        self.running = 0
        self.credits = 0
        self.ceiling = 0  # the largest window granted: a smaller one may still be on its way
        self.demand = 0
        self.outgoing = Outgoing()
        self.ready = asyncio.Event()
        self.answered = asyncio.Event()  # a frame came since the last was sent
        # Says what waits without a wait, where there is a way for that; whether it did.
        self.say: Callable[[], bool] | None = None

    def let_go(self) -> None:
        """Have what waits sent: at once where that can be, else by whoever takes it."""
        if self.say is None or not self.say():
            self.ready.set()

    def take_outgoing(self) -> Outgoing:
        """Take all that waits."""
        taken, self.outgoing = self.outgoing, Outgoing()
        self.ready.clear()
        return taken
