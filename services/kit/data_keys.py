"""Data keys: rows that each process reads, unwraps with its root keys, and keeps in memory.

A new key is used only after every process had time to load it, so that data can be opened without
asking the database while rows are decoded.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final, LiteralString
from uuid import UUID

import structlog

from services.kit.env import EnvError
from services.kit.errors import QflowError
from services.kit.ids import uuid7
from services.kit.loops import pause
from services.kit.pg import LINK_FAULTS, Pool, Row, connection, transaction, translate
from services.kit.root_keys import CannotOpen, RootKeys, new_key
from services.kit.sealed_data import DataKeys

log = structlog.get_logger()

_LOOK_S: Final = 20.0
# A process that still waits for the first key polls more often.
_WAIT_S: Final = 1.0
_LEARNT_AFTER_S: Final = 3 * _LOOK_S
_LIFE_DAYS: Final = 30

_LIST: Final[LiteralString] = """
    SELECT id, key_id, wrapped_key, created_at < clock_timestamp() - $1 * interval '1 second'
           AS is_learnt, created_at < clock_timestamp() - $2 * interval '1 day' AS is_old
      FROM data_keys
     ORDER BY created_at, id
"""
# Serialises creation: other processes wait, and then find the key.
_LOCK: Final[LiteralString] = """
    SELECT pg_advisory_xact_lock(hashtextextended('data keys', 0))
"""
_INSERT: Final[LiteralString] = """
    INSERT INTO data_keys (id, key_id, wrapped_key)
    SELECT $1, $2, $3
     WHERE NOT EXISTS (SELECT 1 FROM data_keys
            WHERE created_at > clock_timestamp() - $4 * interval '1 day')
"""
# Only if no other process has rewrapped it already.
_REWRAP: Final[LiteralString] = """
    UPDATE data_keys SET key_id = $2, wrapped_key = $3 WHERE id = $1 AND key_id = $4
"""


@dataclass(frozen=True, slots=True)
class KeyRing:
    """Loads the data keys of a process; in the orchestrator it also creates and rewraps them."""

    pool: Pool
    roots: RootKeys
    keys: DataKeys
    makes: bool = False
    rewraps: bool = False

    async def begin(self) -> None:
        """Load the keys before any data is read; EnvError if one cannot be unwrapped."""
        try:
            await self.look()
        except CannotOpen as problem:
            raise EnvError(f"QFLOW_DATA_KEY_FILE: {problem}; it was replaced too early") from None

    async def look(self) -> bool:
        """Load the keys, create or rewrap if due; return whether there is one to seal with."""
        rows = await self._rows()
        if self.makes and all(row["is_old"] for row in rows):
            await self._make()
            rows = await self._rows()
        known = {row["id"]: self._unwrapped(row) for row in rows}
        # The latest key old enough to be known to all; the very first is loaded by all at start.
        current = next((row["id"] for row in reversed(rows) if row["is_learnt"]), None)
        if current is None and rows:
            current = rows[0]["id"]
        self.keys.learn(known, current)
        if self.rewraps:
            await self._rewrap([row for row in rows if row["key_id"] != self.roots.current], known)
        return current is not None

    async def _rows(self) -> list[Row]:
        async with connection(self.pool) as db:
            return await db.fetch(_LIST, _LEARNT_AFTER_S, _LIFE_DAYS)

    async def _make(self) -> None:
        key_id = uuid7()
        wrapped = self.roots.wrap(new_key(), _context(key_id))
        async with transaction(self.pool) as db:
            await db.execute(_LOCK)
            await db.execute(_INSERT, key_id, self.roots.current, wrapped, _LIFE_DAYS)

    def _unwrapped(self, row: Row) -> bytes:
        return self.roots.unwrap(row["wrapped_key"], row["key_id"], _context(row["id"]))

    async def _rewrap(self, rows: list[Row], known: dict[UUID, bytes]) -> None:
        for row in rows:
            wrapped = self.roots.wrap(known[row["id"]], _context(row["id"]))
            async with connection(self.pool) as db:
                await db.execute(_REWRAP, row["id"], self.roots.current, wrapped, row["key_id"])
        if rows:
            log.info("data_keys_rewrapped", keys=len(rows), key_id=self.roots.current)

    async def keep(self, stop: asyncio.Event) -> None:
        """Reload the keys periodically until `stop` is set."""
        found = True
        while not stop.is_set():
            await pause(stop, _LOOK_S if found else _WAIT_S)
            try:
                found = await self.look()
            except (QflowError, *LINK_FAULTS) as problem:
                log.warning("data_keys_not_read", fault=type(problem).__name__)
            except CannotOpen as problem:  # keys already loaded still work
                log.warning("data_key_not_opened", fault=str(problem))
            except Exception as problem:
                if translate(problem) is None:
                    raise
                log.warning("data_keys_not_read", fault=type(problem).__name__)


def _context(key_id: UUID) -> bytes:
    return f"qflow data key {key_id}".encode()
