"""Rows of environments: building, ready, failed or evicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Pool


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRow:
    """The identity of an environment, and the process that builds it."""

    key: str
    tenant_id: UUID
    python_version: str
    platform: str
    lock_digest: str
    package_count: int
    incarnation: UUID


_BEGIN: Final[LiteralString] = """
    INSERT INTO environments (key, tenant_id, python_version, platform, lock_digest, path,
           package_count, runner_incarnation)
    VALUES ($1, $2, $3, $4, $5, concat($2::uuid, '/', $1::text), $6, $7)
        ON CONFLICT (key) DO UPDATE
       SET state = 'building', error = NULL, package_count = $6, runner_incarnation = $7
"""


async def begin(pool: Pool, row: BuildRow) -> None:
    """Record that a build has begun; only the holder of the folder's lock calls this."""
    await pool.execute(_BEGIN, *_values(row))


_READY: Final[LiteralString] = """
    INSERT INTO environments (key, tenant_id, python_version, platform, lock_digest, path,
           package_count, runner_incarnation, state, build_ms, ready_at, last_used_at)
    VALUES ($1, $2, $3, $4, $5, concat($2::uuid, '/', $1::text), $6, $7, 'ready', $8, now(), now())
        ON CONFLICT (key) DO UPDATE
       SET state = 'ready', error = NULL, package_count = $6, last_used_at = now(),
           build_ms = coalesce($8, environments.build_ms),
           ready_at = CASE WHEN environments.state = 'ready' THEN environments.ready_at
                           ELSE now() END
"""


async def ready(pool: Pool, row: BuildRow, build_ms: int | None = None) -> None:
    """Record that an environment is in place and in use; `build_ms` only if it was just built."""
    await pool.execute(_READY, *_values(row), build_ms)


_DESCRIBED: Final[LiteralString] = """
    UPDATE environments SET size_bytes = $2, bom = $3 WHERE key = $1
"""


async def described(pool: Pool, key: str, size_bytes: int, bom: str | None) -> None:
    """Record an environment's size and bill of materials."""
    await pool.execute(_DESCRIBED, key, size_bytes, bom)


_FAILED: Final[LiteralString] = """
    UPDATE environments SET state = 'failed', error = $2 WHERE key = $1
"""


async def failed(pool: Pool, key: str, error: str) -> None:
    """Record why a build failed."""
    await pool.execute(_FAILED, key, error)


_USED: Final[LiteralString] = """
    UPDATE environments SET last_used_at = now() WHERE key = ANY($1::text[])
"""


async def used(pool: Pool, keys: Sequence[str]) -> None:
    """Record that environments were used recently."""
    await pool.execute(_USED, list(keys))


_EVICTED: Final[LiteralString] = """
    UPDATE environments SET state = 'evicted', ready_at = NULL WHERE key = $1 AND state = 'ready'
"""


async def evicted(pool: Pool, key: str) -> None:
    """Record that an environment was removed to free space."""
    await pool.execute(_EVICTED, key)


# Builds of this home's earlier incarnations died with them.
_CLOSE_LEFT: Final[LiteralString] = """
    UPDATE environments e
       SET state = 'failed', error = 'the runner ended while it was built'
      FROM runner_members m
     WHERE e.state = 'building' AND m.incarnation = e.runner_incarnation
       AND m.host = $1 AND m.incarnation <> $2
"""


async def close_left(pool: Pool, host: str, incarnation: UUID) -> None:
    """Close the rows of builds that were killed with their runner."""
    await pool.execute(_CLOSE_LEFT, host, incarnation)


def _values(row: BuildRow) -> tuple[object, ...]:
    return (
        row.key,
        row.tenant_id,
        row.python_version,
        row.platform,
        row.lock_digest,
        row.package_count,
        row.incarnation,
    )
