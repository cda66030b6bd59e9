"""An optional cache: any fault of Redis is a miss, never an error, and never a long wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeVar

import structlog

if TYPE_CHECKING:
    from redis.asyncio import Redis

log = structlog.get_logger()

_TIMEOUT_S: Final = 0.05
_PAUSE_FIRST_S: Final = 1.0
_PAUSE_MAX_S: Final = 30.0

_T = TypeVar("_T")


class Cache:
    """Bytes by key with a time to live, in Redis if there is one; always safe to call.

    After a fault it is not asked for a second, doubling up to half a minute, so that a dead Redis
    costs calls nothing. The start and the end of an outage are logged once each.
    """

    def __init__(
        self,
        redis_url: str | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        self._redis: Redis | None = _client(redis_url, timeout_s) if redis_url else None
        self._timeout_s = timeout_s
        self._clock = clock
        self._closed_until = 0.0
        self._pause_s = 0.0
        self._hits = self._misses = 0

    async def get(self, key: str) -> bytes | None:
        """Return the value; None if there is none, or no Redis."""
        value = None
        if self._redis is not None and not self._resting():
            value = await self._ask(self._redis.get(key))
        if isinstance(value, bytes):
            self._hits += 1
            return value
        self._misses += 1
        return None

    async def set(self, key: str, value: bytes, ttl_s: float) -> None:
        """Store a value for `ttl_s` seconds, if possible."""
        if self._redis is not None and not self._resting():
            await self._ask(self._redis.set(key, value, px=max(1, round(ttl_s * 1000))))

    async def delete(self, key: str) -> None:
        """Delete a value, if possible; a value that must not be stale needs a short TTL as well."""
        if self._redis is not None and not self._resting():
            await self._ask(self._redis.delete(key))

    def asked(self) -> tuple[int, int]:
        """Return the numbers of hits and misses; a call without Redis is a miss."""
        return self._hits, self._misses

    async def answers(self) -> bool:
        """Return whether Redis answers; waits without a limit, and even during a pause."""
        from redis.exceptions import RedisError  # late: see _client

        try:
            return self._redis is not None and bool(await self._redis.ping())
        except (RedisError, OSError):
            return False

    async def close(self) -> None:
        """Close the connections."""
        if self._redis is not None:
            await self._redis.aclose()

    def _resting(self) -> bool:
        return self._clock() < self._closed_until

    async def _ask(self, reply: Awaitable[_T]) -> _T | None:
        from redis.exceptions import RedisError  # late: see _client

        try:
            async with asyncio.timeout(self._timeout_s):
                value = await reply
        except (RedisError, OSError, TimeoutError, ValueError) as error:
            self._rest(error)
            return None
        if self._pause_s:
            self._pause_s = 0.0
            log.info("cache_recovered")
        return value

    def _rest(self, error: Exception) -> None:
        if not self._pause_s:
            log.warning("cache_lost", fault=type(error).__name__)
        self._pause_s = min(self._pause_s * 2 or _PAUSE_FIRST_S, _PAUSE_MAX_S)
        self._closed_until = self._clock() + self._pause_s


def _client(url: str, timeout_s: float) -> Redis:
    # Imported late: the client costs 17 MB, which a service without a cache should not pay.
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    return Redis.from_url(
        url,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
        max_connections=8,
    )
