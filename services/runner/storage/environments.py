"""Rows of environments: what is built, what is being built, what could not be."""

from __future__ import annotations

from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Pool

_BEGIN: Final[LiteralString] = """
    INSERT INTO environments (key, tenant_id, python_version, platform, lock_digest, path)
    VALUES ($1, $2, $3, $4, $5, concat($2::uuid, '/', $1::text))
        ON CONFLICT (key) DO UPDATE
       SET state = 'building', error = NULL
"""


async def begin(
    pool: Pool, key: str, tenant_id: UUID, python_version: str, platform: str, lock_digest: str
) -> None:
    """Say that an environment is being built; only the holder of its folder's lock does."""
    await pool.execute(_BEGIN, key, tenant_id, python_version, platform, lock_digest)


_READY: Final[LiteralString] = """
    INSERT INTO environments (key, tenant_id, python_version, platform, lock_digest, path, state,
           size_bytes, ready_at, last_used_at)
    VALUES ($1, $2, $3, $4, $5, concat($2::uuid, '/', $1::text), 'ready', $6, now(), now())
        ON CONFLICT (key) DO UPDATE
       SET state = 'ready', size_bytes = $6, error = NULL, last_used_at = now(),
           ready_at = coalesce(environments.ready_at, now())
"""


async def ready(
    pool: Pool,
    key: str,
    tenant_id: UUID,
    python_version: str,
    platform: str,
    lock_digest: str,
    size_bytes: int,
) -> None:
    """Say that an environment is in its place, and that it is used."""
    await pool.execute(_READY, key, tenant_id, python_version, platform, lock_digest, size_bytes)


_FAILED: Final[LiteralString] = """
    UPDATE environments SET state = 'failed', error = $2 WHERE key = $1
"""


async def failed(pool: Pool, key: str, error: str) -> None:
    """Say why an environment could not be built."""
    await pool.execute(_FAILED, key, error)
