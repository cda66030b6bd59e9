"""Identifiers and bearer tokens."""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
import time
from typing import Final
from uuid import UUID

TOKEN_BYTES_MAX: Final = 256
_SUB_MS_UNITS: Final = 4096


class _Clock:
    """Milliseconds and 12 bits of their fraction as one number that never repeats or goes back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def tick(self) -> int:
        now = time.time_ns() * _SUB_MS_UNITS // 1_000_000
        with self._lock:
            self._last = now if now > self._last else self._last + 1
            return self._last


_CLOCK: Final = _Clock()


def uuid7() -> UUID:
    """Make a version 7 UUID (RFC 9562): ordered by time within this process, random to outsiders.

    Time order keeps inserts at the right edge of B-tree indexes; making the id here instead of in
    the database saves the round trip that would read it back.
    """
    tick = _CLOCK.tick()
    milliseconds, fraction = divmod(tick, _SUB_MS_UNITS)
    random = int.from_bytes(os.urandom(8)) & 0x3FFF_FFFF_FFFF_FFFF
    return UUID(
        int=(milliseconds & 0xFFFF_FFFF_FFFF) << 80
        | 0x7 << 76
        | fraction << 64
        | 0b10 << 62
        | random
    )


def new_token(prefix: str = "qf") -> str:
    """Make a token with 256 random bits; it is shown once, and only its digest is stored.

    The prefix tells people, and scanners for leaked secrets, what they look at.
    """
    return f"{prefix}_{secrets.token_urlsafe(32)}"


def token_sha256(token: str) -> str:
    """Return what the database knows of a token: 64 lower-case hexadecimal digits."""
    return hashlib.sha256(token.encode()).hexdigest()
