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
    """The variable parts of version 7 UUIDs: a strictly increasing time, and random bits.

    The time is a number of milliseconds with 12 bits of fraction. Random bytes are drawn for 512
    ids at once: asking the kernel for each costs more than the rest.
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
        """Reset after a fork: a child must not make the same ids as its parent."""
        self._lock = threading.Lock()
        self._tails = []


_SOURCE: Final = _Source()
os.register_at_fork(after_in_child=_SOURCE.forget)

# The driver's UUID class: compatible, and ten times as fast to create, hash and encode.
uuid_from_bytes: Final[Callable[[bytes], UUID]] = pgproto.UUID


_CANONICAL: Final = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")


def canonical_uuid(text: str) -> UUID | None:
    """Parse an id in canonical form, in either case; None for any other text."""
    return pgproto.UUID(text) if _CANONICAL.fullmatch(text) else None


def uuid7() -> UUID:
    """Make a version 7 UUID (RFC 9562): ordered by time within this process, not guessable.

    Ordered ids are inserted at the right edge of B-tree indexes; making them here saves the round
    trip that would read them back from the database.
    """
    tick, random = _SOURCE.draw()
    head = (tick >> _SUB_MS_BITS) << 16 | 0x7000 | tick & (_SUB_MS_UNITS - 1)
    tail = random & 0x3FFF_FFFF_FFFF_FFFF | 0x8000_0000_0000_0000
    return uuid_from_bytes(_HALVES.pack(head, tail))


class _Requests:
    """Names requests by random bits of this process and a counter."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Reset after a fork: a child must not use the same names as its parent."""
        self.process = secrets.token_hex(8)
        self.numbers = itertools.count(1)


_REQUESTS: Final = _Requests()
os.register_at_fork(after_in_child=_REQUESTS.begin)


def request_id() -> str:
    """Return a new, unique request id for logs and errors; cheap, since every call has one."""
    return f"{_REQUESTS.process}-{next(_REQUESTS.numbers):08x}"


def new_token(prefix: str = "qf") -> str:
    """Make a token with 256 random bits; it is shown once, and only its digest is stored.

    The prefix lets people and secret scanners recognise it.
    """
    return f"{prefix}_{secrets.token_urlsafe(32)}"


def token_sha256(token: str) -> str:
    """Return the digest of a token as stored: 64 lower-case hexadecimal digits."""
    return hashlib.sha256(token.encode()).hexdigest()
