"""Signals and waits for callers, under row-level security."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalRow:
    """A signal that was sent."""

    workflow_execution_id: UUID
    name: str
    payload: str
    sent_by: UUID
    node_id: str | None


_FIND: Final[LiteralString] = """
    SELECT workflow_execution_id, name, payload, sent_by, node_id
      FROM execution_signals WHERE id = ANY($1) AND sent_by = $2
"""


async def find(db: Db, ids: Sequence[UUID], sent_by: UUID) -> SignalRow | None:
    """Return the signal that a user sent with one of these ids."""
    row = await db.fetchrow(_FIND, ids, sent_by)
    return None if row is None else SignalRow(**row)


@dataclass(frozen=True, slots=True)
class WaitRow:
    """When a node began to wait, and when the wait times out."""

    started_at: datetime | None
    due_at: datetime | None


_WAITS: Final[LiteralString] = """
    SELECT id, started_at, due_at FROM node_executions WHERE id = ANY($1) AND status = 'waiting'
"""


async def get_waits(db: Db, node_execution_ids: Iterable[UUID]) -> dict[UUID, WaitRow]:
    """Return the rows of waiting nodes, by id."""
    rows = await db.fetch(_WAITS, list(node_execution_ids))
    return {row["id"]: WaitRow(row["started_at"], row["due_at"]) for row in rows}
