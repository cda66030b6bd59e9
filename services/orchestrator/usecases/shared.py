"""Shares look-ups between concurrent callers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Found = TypeVar("Found")


class Shared(Generic[Key, Found]):
    """Runs one look-up per key at a time; callers that arrive meanwhile share the next one.

    A caller never gets a result that was read before its call, so it sees its own changes; and two
    look-ups serve any number of concurrent callers.
    """

    def __init__(self, look: Callable[[Key], Awaitable[Found]]) -> None:
        self._look = look
        self._running: dict[Key, asyncio.Future[Found]] = {}
        self._next: dict[Key, asyncio.Future[Found]] = {}

    async def get(self, key: Key) -> Found:
        """Return the result of a look-up that begins after this call."""
        following = self._next.get(key)
        if following is None:
            running = self._running.get(key)
            following = asyncio.ensure_future(self._after(key, running))
            if running is None:
                self._running[key] = following
            else:
                self._next[key] = following
        return await asyncio.shield(following)

    async def _after(self, key: Key, running: asyncio.Future[Found] | None) -> Found:
        if running is not None:
            await asyncio.wait({running})
            self._running[key] = self._next.pop(key)
        mine = self._running.get(key)
        try:
            return await self._look(key)
        finally:
            if mine is not None and self._running.get(key) is mine:
                del self._running[key]
