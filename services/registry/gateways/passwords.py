"""Password hashes with argon2id, computed in threads, at most two at once."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Final, TypeVar

from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerificationError

from services.kit.errors import ResourceExhausted

_HASHER: Final = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1, type=Type.ID)
_CONCURRENT_MAX: Final = 2
# Limits the queue: each hash takes 19 MiB and some 20 ms. Further calls are refused.
_WAITING_MAX: Final = 32
_RETRY_AFTER_S: Final = 1.0

T = TypeVar("T")


class Passwords:
    """Computes and verifies hashes; an unknown user takes the same time as a wrong password."""

    def __init__(self) -> None:
        self._hasher = _HASHER
        self._slots = asyncio.Semaphore(_CONCURRENT_MAX)
        self._waiting = 0
        self._dummy: str | None = None

    async def hash(self, password: str) -> str:
        """Return the hash of a password."""
        return await self._in_turn(self._hasher.hash, password)

    async def verify(self, password_hash: str | None, password: str) -> bool:
        """Verify a password; without a hash takes the same time and returns False."""
        if self._dummy is None:
            self._dummy = await self.hash(secrets.token_urlsafe(16))
        right = await self._in_turn(self._matches, password_hash or self._dummy, password)
        return right and password_hash is not None

    def is_outdated(self, password_hash: str) -> bool:
        """Return whether a hash was computed with other parameters than the current ones."""
        return self._hasher.check_needs_rehash(password_hash)

    def _matches(self, password_hash: str, password: str) -> bool:
        try:
            return self._hasher.verify(password_hash, password)
        except (VerificationError, InvalidHashError):
            return False

    async def _in_turn(self, work: Callable[..., T], *args: str) -> T:
        if self._waiting >= _WAITING_MAX:
            raise ResourceExhausted(
                "TOO_MANY_SIGN_INS",
                "too many sign-ins are waiting; try again shortly",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._waiting += 1
        try:
            async with self._slots:
                return await asyncio.to_thread(work, *args)
        finally:
            self._waiting -= 1
