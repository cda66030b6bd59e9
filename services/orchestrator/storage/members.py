"""Rows of orchestrators and runners: lease and fence, judged by the database's clock only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db

# Epochs only grow, over all members: the lock serializes joins.
_LOCK: Final[LiteralString] = "LOCK TABLE engine_members IN SHARE ROW EXCLUSIVE MODE"

_JOIN: Final[LiteralString] = """
    INSERT INTO engine_members (id, epoch, state, host, address, formats, started_at, updated_at)
    SELECT $1, 1 + COALESCE(max(epoch), 0), 'idle', $2, $3, $4,
           clock_timestamp(), clock_timestamp()
      FROM engine_members
 RETURNING epoch
"""


async def join(db: Db, member_id: UUID, *, host: str, address: str, formats: Sequence[int]) -> int:
    """Add a member, idle; returns its epoch, higher than any before."""
    await db.execute(_LOCK)
    return int(await db.fetchval(_JOIN, member_id, host, address, list(formats)))


_ADVANCE: Final[LiteralString] = """
    UPDATE engine_members
       SET epoch = 1 + (SELECT max(epoch) FROM engine_members), updated_at = clock_timestamp()
     WHERE id = $1 AND epoch = $2 AND state IN ('live', 'idle')
 RETURNING epoch
"""


async def advance(db: Db, member_id: UUID, epoch: int) -> int | None:
    """Take a higher epoch, with which flushes of older ones are refused. None if fenced."""
    await db.execute(_LOCK)
    found = await db.fetchval(_ADVANCE, member_id, epoch)
    return None if found is None else int(found)


# A member that holds the home's lock knows that no other member of this home is alive. An idle
# member writes nothing: it is fenced only after a long silence, to remove it. A member that is
# fenced, or may be at any moment, fences nobody: if two leases expired together, as while the
# database was away, neither member ends the other.
_FENCE_DEAD: Final[LiteralString] = """
    UPDATE engine_members AS other SET state = 'fenced', updated_at = clock_timestamp()
      FROM engine_members AS own
     WHERE own.id = $1 AND other.id <> $1
       AND (own.state = 'idle' OR own.state = 'live' AND own.expires_at >= clock_timestamp())
       AND ($4 AND other.state = 'live' AND other.expires_at < clock_timestamp()
         OR other.state = 'idle'
            AND other.updated_at < clock_timestamp() - $3 * interval '1 second'
         OR other.state IN ('live', 'idle') AND other.host = $2)
 RETURNING other.id
"""


async def fence_dead(
    db: Db, member_id: UUID, *, host: str | None, silent_max_s: float, by_lease: bool
) -> list[UUID]:
    """Fence dead members: by expired lease, by long silence, or by proof on this host."""
    rows = await db.fetch(_FENCE_DEAD, member_id, host, silent_max_s, by_lease)
    return [row["id"] for row in rows]


_LOOK_IN: Final[LiteralString] = """
    UPDATE engine_members SET updated_at = clock_timestamp()
     WHERE id = $1 AND epoch = $2 AND state = 'idle'
"""


async def look_in(db: Db, member_id: UUID, epoch: int) -> None:
    """Record that an idle member is still there."""
    await db.execute(_LOOK_IN, member_id, epoch)


_RENEW: Final[LiteralString] = """
    UPDATE engine_members
       SET state = 'live', expires_at = clock_timestamp() + $3 * interval '1 second',
           updated_at = clock_timestamp()
     WHERE id = $1 AND epoch = $2 AND state IN ('live', 'idle')
 RETURNING true
"""


async def renew(db: Db, member_id: UUID, epoch: int, ttl_s: float) -> bool:
    """Renew the lease for `ttl_s`; False if another member fenced this one."""
    return bool(await db.fetchval(_RENEW, member_id, epoch, ttl_s))


_REST: Final[LiteralString] = """
    UPDATE engine_members SET state = $3, expires_at = NULL, updated_at = clock_timestamp()
     WHERE id = $1 AND epoch = $2 AND state IN ('live', 'idle')
 RETURNING true
"""


async def rest(db: Db, member_id: UUID, epoch: int, *, state: str) -> bool:
    """Give the lease up: `idle` until there is work again, or `gone` for good."""
    return bool(await db.fetchval(_REST, member_id, epoch, state))


_IS_FENCED: Final[LiteralString] = """
    SELECT state = 'fenced' FROM runner_members WHERE incarnation = $1
"""


async def is_fenced(db: Db, incarnation: UUID) -> bool:
    """Return whether a runner was fenced; one without a row was not."""
    return bool(await db.fetchval(_IS_FENCED, incarnation))


# `silent` runners had no stream for longer than a lease: an idle one has no lease to expire.
_FENCE_RUNNERS: Final[LiteralString] = """
    UPDATE runner_members SET state = 'fenced', updated_at = clock_timestamp()
     WHERE incarnation = ANY($1)
       AND (state = 'live' AND expires_at < clock_timestamp()
         OR state = 'idle' AND incarnation = ANY($2))
"""
_STATES: Final[LiteralString] = """
    SELECT incarnation, state FROM runner_members WHERE incarnation = ANY($1)
"""


async def lost_runners(
    db: Db, incarnations: Sequence[UUID], *, silent: Iterable[UUID]
) -> dict[UUID, bool]:
    """Fence runners with expired leases; returns all given runners that are fenced or gone.

    The value says whether a runner left in order: then its unanswered attempts never began.
    """
    await db.execute(_FENCE_RUNNERS, list(incarnations), list(silent))
    states = {
        row["incarnation"]: row["state"] for row in await db.fetch(_STATES, list(incarnations))
    }
    ended = [each for each in incarnations if states.get(each) not in ("live", "idle")]
    return {each: states.get(each) == "gone" for each in ended}
