"""Identifiers and bearer tokens."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import secrets
import struct
import threading
import time
from typing import TYPE_CHECKING, Final
from uuid import UUID

from asyncpg.pgproto import pgproto

if TYPE_CHECKING:
    from collections.abc import Callable

TOKEN_BYTES_MAX: Final = 256
_SUB_MS_BITS: Final = 12
_SUB_MS_UNITS: Final = 1 << _SUB_MS_BITS
_HALVES: Final = struct.Struct(">QQ")
_TAILS: Final = struct.Struct(">512Q")


class _Source:
    """What version 7 takes: a time that never repeats or goes back, and bits nobody can guess.

    The time is one number of milliseconds and 12 bits of their fraction. Random bytes are drawn
    some hundreds of ids at once: to ask the kernel for each costs more than the rest.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0
        self._tails: list[int] = []

    def draw(self) -> tuple[int, int]:
        now = time.time_ns() * _SUB_MS_UNITS // 1_000_000
        with self._lock:
            if now <= self._last:
                now = self._last + 1
            self._last = now
            if not self._tails:
                self._tails.extend(_TAILS.unpack(os.urandom(_TAILS.size)))
            return now, self._tails.pop()

    def forget(self) -> None:
        """Draw anew: a forked child must not give the ids that its parent gives."""
        self._lock = threading.Lock()
        self._tails = []


_SOURCE: Final = _Source()
os.register_at_fork(after_in_child=_SOURCE.forget)

# The driver's own class: a UUID like any other, made, hashed and written ten times as fast.
uuid_from_bytes: Final[Callable[[bytes], UUID]] = pgproto.UUID


_CANONICAL: Final = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")


def canonical_uuid(text: str) -> UUID | None:
    """Read an id in its canonical form, in either case; None where it has another or is none."""
    return pgproto.UUID(text) if _CANONICAL.fullmatch(text) else None


def uuid7() -> UUID:
    """Make a version 7 UUID (RFC 9562): ordered by time within this process, random to outsiders.

    Time order keeps inserts at the right edge of B-tree indexes; making the id here instead of in
    the database saves the round trip that would read it back.
    """
    tick, random = _SOURCE.draw()
    head = (tick >> _SUB_MS_BITS) << 16 | 0x7000 | tick & (_SUB_MS_UNITS - 1)
    tail = random & 0x3FFF_FFFF_FFFF_FFFF | 0x8000_0000_0000_0000
    return uuid_from_bytes(_HALVES.pack(head, tail))


class _Requests:
    """Names requests: what this process drew once, and how many requests it has named."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Draw anew: a forked child must not give the names that its parent gives."""
        self.process = secrets.token_hex(8)
        self.numbers = itertools.count(1)


_REQUESTS: Final = _Requests()
os.register_at_fork(after_in_child=_REQUESTS.begin)


def request_id() -> str:
    """Name a request for logs and errors: unlike any other, and cheap, since every call has one."""
    return f"{_REQUESTS.process}-{next(_REQUESTS.numbers):08x}"


def new_token(prefix: str = "qf") -> str:
    """Make a token with 256 random bits; it is shown once, and only its digest is stored.

    The prefix tells people, and scanners for leaked secrets, what they look at.
    """
    return f"{prefix}_{secrets.token_urlsafe(32)}"


def token_sha256(token: str) -> str:
    """Return what the database knows of a token: 64 lower-case hexadecimal digits."""
    return hashlib.sha256(token.encode()).hexdigest()
