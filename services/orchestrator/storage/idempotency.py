"""Answers that are kept under a caller's request id, so that a repeated call gets the same one."""

from __future__ import annotations

from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db

_GET: Final[LiteralString] = """
    SELECT request_digest, response
      FROM idempotency_keys
     WHERE tenant_id = $1 AND caller_id = $2 AND method = $3 AND request_id = $4
"""


async def get_answer(
    db: Db, caller_id: UUID, method: str, request_id: UUID, *, tenant_id: UUID
) -> tuple[str, bytes] | None:
    """Find the digest and the answer of an earlier call with this request id."""
    row = await db.fetchrow(_GET, tenant_id, caller_id, method, request_id)
    return None if row is None else (row["request_digest"], row["response"])


_INSERT: Final[LiteralString] = """
    INSERT INTO idempotency_keys
           (tenant_id, caller_id, method, request_id, request_digest, response, expires_at)
    VALUES ($1, $2, $3, $4, $5, $6, now() + interval '7 days')
    ON CONFLICT (tenant_id, caller_id, method, request_id) DO NOTHING
 RETURNING request_id
"""


async def insert_answer(
    db: Db,
    caller_id: UUID,
    method: str,
    request_id: UUID,
    *,
    tenant_id: UUID,
    digest: str,
    response: bytes,
) -> bool:
    """Keep an answer; False where another call with this request id was first."""
    inserted = await db.fetchval(
        _INSERT, tenant_id, caller_id, method, request_id, digest, response
    )
    return inserted is not None
