"""Orchestrators and runners: one row each is lease and fence. Only the database's clock judges."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db

# Epochs only grow, over all members: the lock makes one joiner wait for the other.
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
    """Take a higher epoch: whatever an older flush still does is refused. None if fenced."""
    await db.execute(_LOCK)
    found = await db.fetchval(_ADVANCE, member_id, epoch)
    return None if found is None else int(found)


# Whoever holds the home's lock has proof that no other member of this home is alive. One that rests
# writes nothing and loses nothing: it is fenced late, to be forgotten.
# Nobody fences who is fenced, or may be at any moment: of two whose leases ran out together, as
# while the database was away, neither ends the other.
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
    """Fence members that are dead: by their lease, by their silence, or by proof on this host."""
    rows = await db.fetch(_FENCE_DEAD, member_id, host, silent_max_s, by_lease)
    return [row["id"] for row in rows]


_LOOK_IN: Final[LiteralString] = """
    UPDATE engine_members SET updated_at = clock_timestamp()
     WHERE id = $1 AND epoch = $2 AND state = 'idle'
"""


async def look_in(db: Db, member_id: UUID, epoch: int) -> None:
    """Say that a resting member is still here."""
    await db.execute(_LOOK_IN, member_id, epoch)


_RENEW: Final[LiteralString] = """
    UPDATE engine_members
       SET state = 'live', expires_at = clock_timestamp() + $3 * interval '1 second',
           updated_at = clock_timestamp()
     WHERE id = $1 AND epoch = $2 AND state IN ('live', 'idle')
 RETURNING true
"""


async def renew(db: Db, member_id: UUID, epoch: int, ttl_s: float) -> bool:
    """Hold the lease for another while; False when another member fenced this one."""
    return bool(await db.fetchval(_RENEW, member_id, epoch, ttl_s))


_REST: Final[LiteralString] = """
    UPDATE engine_members SET state = $3, expires_at = NULL, updated_at = clock_timestamp()
     WHERE id = $1 AND epoch = $2 AND state IN ('live', 'idle')
 RETURNING true
"""


async def rest(db: Db, member_id: UUID, epoch: int, *, state: str) -> bool:
    """Hold no lease: `idle` until there is work again, `gone` for good."""
    return bool(await db.fetchval(_REST, member_id, epoch, state))


_IS_FENCED: Final[LiteralString] = """
    SELECT state = 'fenced' FROM runner_members WHERE incarnation = $1
"""


async def is_fenced(db: Db, incarnation: UUID) -> bool:
    """Say whether a runner was fenced; one without a row was not."""
    return bool(await db.fetchval(_IS_FENCED, incarnation))


# `silent` are runners without a stream for longer than a lease: an idle one holds none to expire.
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
    """Fence the runners whose leases ran out; returns all of the given that are fenced or gone.

    With each whether it left in order: then what it has not answered never began.
    """
    await db.execute(_FENCE_RUNNERS, list(incarnations), list(silent))
    states = {
        row["incarnation"]: row["state"] for row in await db.fetch(_STATES, list(incarnations))
    }
    ended = [each for each in incarnations if states.get(each) not in ("live", "idle")]
    return {each: states.get(each) == "gone" for each in ended}
