"""Cache immutable parts of definitions in Redis, authenticated against tampering.

The cache holds nothing about access. Callers first check in PostgreSQL that the version is visible
to them, and then read only its content from here.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import random
from collections.abc import Awaitable, Callable
from typing import Final, Literal, TypeVar
from uuid import UUID

import orjson

from services.kit.cache import Cache

Kind = Literal["graph", "code"]

_T = TypeVar("_T")

_TTL_S: Final = 3_600.0
_JITTER: Final = 0.2
_VALUE_BYTES_MAX: Final = 1024 * 1024
_MAC_BYTES: Final = 32
# The format of values: a release that changes it must use another letter.
_FORMAT: Final = "a"


class DefinitionCache:
    """A read-through cache over Redis; any fault counts as a miss."""

    def __init__(self, cache: Cache, secret: str) -> None:
        self._cache = cache
        # Replicas share the service's secret. Without a secret, each replica reads only its own
        # entries.
        seed = b"qflow definition cache\0" + secret.encode() if secret else os.urandom(32)
        self._key = hashlib.sha256(seed).digest()

    async def through(
        self,
        kind: Kind,
        of: UUID,
        version: int,
        *,
        tenant_id: UUID,
        load: Callable[[], Awaitable[_T]],
    ) -> _T:
        """Return a part of a version from the cache, or load it and store it there."""
        name = f"qflow:registry:{_FORMAT}:{kind}:{tenant_id}:{of}:{version}"
        sealed = await self._cache.get(name)
        if sealed is not None:
            found: _T | None = self._opened(name, sealed)
            if found is not None:
                return found
        loaded = await load()
        value = orjson.dumps(loaded)
        if len(value) <= _VALUE_BYTES_MAX:
            jitter = random.random() * _JITTER  # noqa: S311  # jitter, not a secret
            await self._cache.set(name, self._mac(name, value) + value, _TTL_S * (1 - jitter))
        return loaded

    def _opened(self, name: str, sealed: bytes) -> _T | None:
        """Return a value sealed under this name with our secret; None for anything else."""
        mac, value = sealed[:_MAC_BYTES], sealed[_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(name, value)):
            return None
        opened: _T = orjson.loads(value)
        return opened

    def _mac(self, name: str, value: bytes) -> bytes:
        return hmac.digest(self._key, name.encode() + b"\0" + value, "sha256")
