"""Counts of failed sign-ins, shared by all processes of the registry and kept across restarts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, LiteralString, TypeAlias

from services.kit.pg import Db
from services.registry.domain.lockout import QUIET_S, Count

Counts: TypeAlias = Mapping[str, Count]

_NONE: Final = Count(0, QUIET_S)

_GET: Final[LiteralString] = """
    SELECT key, failures, extract(epoch FROM clock_timestamp() - failed_at)::float8 AS since_s
      FROM sign_in_attempts
     WHERE key = ANY ($1::text[])
"""


async def get_counts(db: Db, keys: Sequence[str]) -> Counts:
    """Read the counts without waiting for locks."""
    rows = await db.fetch(_GET, list(keys))
    found = {row["key"]: Count(row["failures"], row["since_s"]) for row in rows}
    return {key: found.get(key, _NONE) for key in keys}


# In the order of the keys, so that concurrent attempts cannot deadlock.
_COUNT: Final[LiteralString] = """
    INSERT INTO sign_in_attempts AS known (key, failures, failed_at)
    SELECT key, 1, clock_timestamp() FROM unnest($1::text[]) AS asked (key) ORDER BY key
        ON CONFLICT (key) DO UPDATE
       SET failures = CASE WHEN known.failed_at < clock_timestamp() - make_interval(secs => $2)
                           THEN 1 ELSE known.failures + 1 END,
           failed_before = known.failed_at,
           failed_at = clock_timestamp()
 RETURNING key, failures - 1 AS failures,
           COALESCE(extract(epoch FROM failed_at - failed_before), $2)::float8 AS since_s
"""


async def count_attempt(db: Db, keys: Sequence[str]) -> Counts:
    """Count an attempt as failed before it is made; returns the previous counts.

    Of concurrent attempts each sees the earlier ones, since one transaction at a time locks a row.
    """
    rows = await db.fetch(_COUNT, list(keys), QUIET_S)
    return {row["key"]: Count(row["failures"], row["since_s"]) for row in rows}


_TAKE_BACK: Final[LiteralString] = """
    UPDATE sign_in_attempts
       SET failures = GREATEST(failures - 1, 0), failed_at = COALESCE(failed_before, failed_at)
     WHERE key IN (SELECT key FROM sign_in_attempts
                    WHERE key = ANY ($1::text[]) ORDER BY key FOR UPDATE)
"""


async def take_back(db: Db, keys: Sequence[str]) -> None:
    """Uncount an attempt that did not fail."""
    await db.execute(_TAKE_BACK, list(keys))


_DELETE: Final[LiteralString] = """
    DELETE FROM sign_in_attempts WHERE key = $1
"""


async def delete_count(db: Db, key: str) -> None:
    """Reset a count."""
    await db.execute(_DELETE, key)


_PRUNE: Final[LiteralString] = """
    DELETE FROM sign_in_attempts
     WHERE key IN (SELECT key FROM sign_in_attempts
                    WHERE failed_at < clock_timestamp() - make_interval(secs => $1)
                    ORDER BY failed_at LIMIT $2 FOR UPDATE SKIP LOCKED)
"""


async def prune(db: Db, *, rows_max: int) -> None:
    """Delete some expired counts: up to `rows_max`, more than an attempt adds."""
    await db.execute(_PRUNE, QUIET_S, rows_max)
