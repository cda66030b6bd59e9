"""The runner's own row: the lease and fence of all its attempts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Pool

_JOIN: Final[LiteralString] = """
    INSERT INTO runner_members (incarnation, state, host, tier, slots, pythons)
    VALUES ($1, 'idle', $2, $3, $4, $5)
"""


async def join(
    pool: Pool, incarnation: UUID, host: str, tier: str, slots: int, pythons: Sequence[str]
) -> None:
    """Insert the row of a new incarnation, idle."""
    await pool.execute(_JOIN, incarnation, host, tier, slots, list(pythons))


# A fenced row cannot be renewed. The expiry is computed by the database's clock only.
_RENEW: Final[LiteralString] = """
    UPDATE runner_members
       SET state = 'live', expires_at = clock_timestamp() + $2 * interval '1 second',
           updated_at = clock_timestamp()
     WHERE incarnation = $1 AND state IN ('live', 'idle')
 RETURNING true
"""


async def renew(pool: Pool, incarnation: UUID, ttl_s: float) -> bool:
    """Extend the lease by `ttl_s`; False if the incarnation is fenced."""
    return bool(await pool.fetchval(_RENEW, incarnation, ttl_s))


_REST: Final[LiteralString] = """
    UPDATE runner_members
       SET state = 'idle', expires_at = NULL, updated_at = clock_timestamp()
     WHERE incarnation = $1 AND state IN ('live', 'idle')
 RETURNING true
"""


async def rest(pool: Pool, incarnation: UUID) -> bool:
    """Release the lease while there are no attempts; False if fenced."""
    return bool(await pool.fetchval(_REST, incarnation))


_LEAVE: Final[LiteralString] = """
    UPDATE runner_members
       SET state = CASE WHEN $2 THEN 'gone' ELSE 'fenced' END, expires_at = NULL,
           updated_at = clock_timestamp()
     WHERE incarnation = $1 AND state IN ('live', 'idle')
"""


async def leave(pool: Pool, incarnation: UUID, *, in_order: bool) -> None:
    """Record that this incarnation has ended, with all its processes.

    `in_order` means that unanswered assignments never began.
    """
    await pool.execute(_LEAVE, incarnation, in_order)


# A runner that holds its home's lock and has killed all leftovers proves that the earlier
# incarnation is dead: nobody needs to wait for its lease to expire.
_BURY: Final[LiteralString] = """
    UPDATE runner_members
       SET state = 'fenced', updated_at = clock_timestamp()
     WHERE host = $1 AND incarnation <> $2 AND state IN ('live', 'idle')
"""


async def bury_predecessors(pool: Pool, host: str, incarnation: UUID) -> None:
    """Fence earlier incarnations of this home."""
    await pool.execute(_BURY, host, incarnation)
