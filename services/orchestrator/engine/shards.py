"""The shards whose runs this orchestrator has loaded, and the other members."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from uuid import UUID

from services.orchestrator.domain.core import SHARDS


class Shards:
    """The shards that are loaded; which ones are owned is the business of `Member`."""

    def __init__(self) -> None:
        self.ready: frozenset[int] = frozenset()
        self.peers: dict[UUID, str] = {}  # addresses of the other members that are not fenced
        self.look = asyncio.Event()  # set to have the members surveyed now
        self.some = asyncio.Event()  # set while there is any shard to start runs in
        self.closing = False  # this process is stopping and gives all shards away
        self._order: list[int] = []

    @property
    def whole(self) -> bool:
        """Whether all shards are loaded here."""
        return len(self.ready) == SHARDS

    def put(self, shards: Iterable[int]) -> None:
        """Set the shards that are loaded."""
        self.ready = frozenset(shards)
        self._order = sorted(self.ready)
        if self.ready:
            self.some.set()
        else:
            self.some.clear()

    def draw(self, wanted: int) -> int | None:
        """Return `wanted` if it is loaded, else another one, always the same; None if none is."""
        if wanted in self.ready or not self._order:
            return wanted if self._order else None
        return self._order[wanted % len(self._order)]

    def meet(self, peers: Mapping[UUID, str]) -> bool:
        """Set the other members; returns whether they changed."""
        changed = dict(peers) != self.peers
        self.peers = dict(peers)
        return changed


class Strays:
    """Attempts that runners reported and memory does not know: another member may own them."""

    def __init__(self) -> None:
        self.found = asyncio.Event()
        self._tokens: dict[tuple[UUID, UUID], int] = {}  # by runner and attempt

    def add(self, runner: UUID, attempt_ref: UUID, token: int) -> None:
        """Add an attempt, so that its owner is looked up."""
        self._tokens[runner, attempt_ref] = token
        self.found.set()

    def take(self) -> dict[tuple[UUID, UUID], int]:
        """Remove and return all of them."""
        self.found.clear()
        taken, self._tokens = self._tokens, {}
        return taken
