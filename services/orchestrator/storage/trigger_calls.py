"""Triggers for calls without a token, across tenants."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db


@dataclass(frozen=True, slots=True, kw_only=True)
class Armed:
    """What firing a trigger needs, and the digest of its secret."""

    id: UUID
    tenant_id: UUID
    created_by: UUID
    workflow_id: UUID
    workflow_version: int
    workflow_alias: str
    input_data: str
    payload_input: str
    filter: str
    secret_sha256: str
    is_paused: bool
    now: datetime


_FIND: Final[LiteralString] = """
    SELECT id, tenant_id, created_by, workflow_id, workflow_version, workflow_alias, input_data,
           payload_input, filter, secret_sha256, paused_at IS NOT NULL AS is_paused,
           clock_timestamp() AS now
      FROM triggers WHERE id = $1
"""


async def find(db: Db, trigger_id: UUID) -> Armed | None:
    """Return a trigger; the caller has yet to check its secret."""
    row = await db.fetchrow(_FIND, trigger_id)
    return None if row is None else Armed(**dict(row))


_FIRED: Final[LiteralString] = """
    UPDATE triggers
       SET fired_at = clock_timestamp(), fired_count = fired_count + 1, error_reason = NULL,
           error_message = NULL, error_at = NULL
     WHERE id = $1
"""
_REFUSED: Final[LiteralString] = """
    UPDATE triggers
       SET error_reason = $2, error_message = $3, error_at = clock_timestamp()
     WHERE id = $1
"""


_FILTERED: Final[LiteralString] = """
    UPDATE triggers SET filtered_count = filtered_count + 1 WHERE id = $1
"""


async def filtered(db: Db, trigger_id: UUID) -> None:
    """Record a call that the filter did not match."""
    await db.execute(_FILTERED, trigger_id)


async def fired(db: Db, trigger_id: UUID) -> None:
    """Record a call that started a run."""
    await db.execute(_FIRED, trigger_id)


async def refused(db: Db, trigger_id: UUID, *, reason: str, message: str) -> None:
    """Record why a start was refused, for the user of the trigger."""
    await db.execute(_REFUSED, trigger_id, reason, message)
