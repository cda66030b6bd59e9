"""The shards whose runs this orchestrator has in memory, and the members beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from uuid import UUID

from services.orchestrator.domain.core import SHARDS


class Shards:
    """What is loaded. What the database says of ownership is the member's to know."""

    def __init__(self) -> None:
        self.ready: frozenset[int] = frozenset()
        self.peers: dict[UUID, str] = {}  # addresses of the other members that may be alive
        self.look = asyncio.Event()  # set when the members should be looked at
        self.some = asyncio.Event()  # set while a start finds a shard
        self.closing = False  # all are being given away, for this process ends
        self._order: list[int] = []

    @property
    def whole(self) -> bool:
        """Whether every run is this orchestrator's."""
        return len(self.ready) == SHARDS

    def put(self, shards: Iterable[int]) -> None:
        """Have exactly these loaded."""
        self.ready = frozenset(shards)
        self._order = sorted(self.ready)
        if self.ready:
            self.some.set()
        else:
            self.some.clear()

    def draw(self, wanted: int) -> int | None:
        """Give the shard that is wanted where it is here, else another one for all who want it."""
        if wanted in self.ready or not self._order:
            return wanted if self._order else None
        return self._order[wanted % len(self._order)]

    def meet(self, peers: Mapping[UUID, str]) -> bool:
        """Know the other members; whether they are others than before."""
        changed = dict(peers) != self.peers
        self.peers = dict(peers)
        return changed


class Strays:
    """Attempts that runners spoke of and memory does not know: they may be another member's."""

    def __init__(self) -> None:
        self.found = asyncio.Event()
        self._tokens: dict[tuple[UUID, UUID], int] = {}  # by runner and attempt

    def add(self, runner: UUID, attempt_ref: UUID, token: int) -> None:
        """Have somebody look whose it is."""
        self._tokens[runner, attempt_ref] = token
        self.found.set()

    def take(self) -> dict[tuple[UUID, UUID], int]:
        """Take all that wait."""
        self.found.clear()
        taken, self._tokens = self._tokens, {}
        return taken
