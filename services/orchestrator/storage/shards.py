"""Shards and their owners.

An owner changes in three ways only: the owner hands a shard over, another member takes it from a
fenced one, or another member takes it from an idle one under a lock of that one's row.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db, Row
from services.orchestrator.domain.shares import MemberState

CHANNEL: Final = "qflow_members"

_TELL: Final[LiteralString] = "SELECT pg_notify('qflow_members', $1::uuid::text)"


async def tell(db: Db, member_id: UUID) -> None:
    """Notify the other members that this one has changed."""
    await db.execute(_TELL, member_id)


# One statement, so that its snapshot shows each shard with exactly one owner.
_SURVEY: Final[LiteralString] = """
    SELECT member.id, member.state, member.address,
           EXTRACT(epoch FROM member.expires_at - clock_timestamp())::float8 AS left_s,
           member.state = 'idle'
               AND member.updated_at < clock_timestamp() - $1 * interval '1 second' AS silent,
           ARRAY(SELECT shard FROM engine_shards WHERE member_id = member.id
                  ORDER BY moved_at NULLS FIRST, shard) AS shards
      FROM engine_members AS member
     WHERE member.state IN ('live', 'idle')
     ORDER BY member.id
"""


async def survey(db: Db, *, silent_after_s: float) -> list[MemberState]:
    """Return the members that may be alive, each with its shards, longest held first."""
    return [_to_member(row) for row in await db.fetch(_SURVEY, silent_after_s)]


_OWNED: Final[LiteralString] = "SELECT shard FROM engine_shards WHERE member_id = $1"


async def owned(db: Db, member_id: UUID) -> frozenset[int]:
    """Return a member's shards."""
    return frozenset(row["shard"] for row in await db.fetch(_OWNED, member_id))


# Serializes takers: each sees what the previous one left.
_LOCK: Final[LiteralString] = "LOCK TABLE engine_shards IN SHARE ROW EXCLUSIVE MODE"
_HOLDS: Final[LiteralString] = """
    SELECT true FROM engine_members WHERE id = $1 AND epoch = $2 AND state = 'live' FOR UPDATE
"""
# A shard with runs in a format that the taker does not know is left to another member.
_TAKE_ORPHANS: Final[LiteralString] = """
    UPDATE engine_shards SET member_id = $1, moved_at = clock_timestamp()
     WHERE shard IN (
           SELECT orphan.shard FROM engine_shards AS orphan
            WHERE NOT EXISTS (
                  SELECT FROM engine_members AS owner
                   WHERE owner.id = orphan.member_id AND owner.state IN ('live', 'idle'))
              AND NOT EXISTS (
                  SELECT FROM workflow_executions AS run
                   WHERE run.shard = orphan.shard AND run.status IN ('pending', 'running', 'paused')
                     AND run.engine_format <> ALL($3))
            ORDER BY orphan.shard LIMIT $2)
 RETURNING shard
"""


async def take_orphans(
    db: Db, member_id: UUID, epoch: int, *, count: int, formats: Sequence[int]
) -> list[int]:
    """Take shards of members that are fenced or gone; none if this member is fenced itself."""
    await db.execute(_LOCK)
    if not await db.fetchval(_HOLDS, member_id, epoch):
        return []
    rows = await db.fetch(_TAKE_ORPHANS, member_id, count, list(formats))
    return [row["shard"] for row in rows]


# While locked, it cannot begin to write; when it wakes it reads which shards it still has.
_RESTS: Final[LiteralString] = """
    SELECT true FROM engine_members WHERE id = $1 AND state = 'idle' FOR UPDATE
"""
_TAKE_OF: Final[LiteralString] = """
    UPDATE engine_shards SET member_id = $1, moved_at = clock_timestamp()
     WHERE shard IN (SELECT shard FROM engine_shards WHERE member_id = $2
                      ORDER BY shard DESC LIMIT $3)
 RETURNING shard
"""


async def take_of_resting(
    db: Db, member_id: UUID, epoch: int, *, owner: UUID, count: int
) -> list[int]:
    """Take shards of an idle member; none if it woke meanwhile."""
    await db.execute(_LOCK)
    if not await db.fetchval(_HOLDS, member_id, epoch) or not await db.fetchval(_RESTS, owner):
        return []
    return [row["shard"] for row in await db.fetch(_TAKE_OF, member_id, owner, count)]


# By the owner only, after its last flush of the shard, and only to a member that can use it.
_GIVE: Final[LiteralString] = """
    WITH me AS MATERIALIZED (
        SELECT 1 FROM engine_members
         WHERE id = $1 AND epoch = $2 AND state = 'live'
           FOR UPDATE
    ), taker AS (
        SELECT id, formats FROM engine_members
         WHERE id = $4 AND state = 'live' AND expires_at > clock_timestamp()
           AND address IS NOT NULL
    )
    UPDATE engine_shards SET member_id = taker.id, moved_at = clock_timestamp()
      FROM me, taker
     WHERE shard = $3 AND member_id = $1
       AND NOT EXISTS (
           SELECT FROM workflow_executions AS run
            WHERE run.shard = $3 AND run.status IN ('pending', 'running', 'paused')
              AND run.engine_format <> ALL(taker.formats))
 RETURNING true
"""


async def give(db: Db, member_id: UUID, epoch: int, *, shard: int, taker: UUID) -> bool:
    """Hand a shard to another live member; False if that is not possible."""
    return bool(await db.fetchval(_GIVE, member_id, epoch, shard, taker))


_LEAVE: Final[LiteralString] = """
    UPDATE engine_members SET address = NULL, updated_at = clock_timestamp()
     WHERE id = $1 AND epoch = $2
"""


async def leave(db: Db, member_id: UUID, epoch: int) -> None:
    """Clear this member's address, which marks it as leaving: it is given no more shards."""
    await db.execute(_LEAVE, member_id, epoch)


@dataclass(frozen=True, slots=True)
class Owner:
    """The owner of a run."""

    member_id: UUID
    address: str
    alive: bool  # not fenced; its lease may have expired


_OWNER_OF: Final[LiteralString] = """
    SELECT member.id, member.address, member.state IN ('live', 'idle') AS alive
      FROM workflow_executions AS run
      JOIN engine_shards AS shard ON shard.shard = run.shard
      JOIN engine_members AS member ON member.id = shard.member_id
     WHERE run.id = $1 AND run.status IN ('pending', 'running', 'paused')
"""


async def owner_of(db: Db, execution_id: UUID) -> Owner | None:
    """Return the owner of an open run; None if it has ended or does not exist."""
    row = await db.fetchrow(_OWNER_OF, execution_id)
    return None if row is None else Owner(row["id"], row["address"] or "", row["alive"])


@dataclass(frozen=True, slots=True)
class Held:
    """An open attempt: its runner, and the member that owns its run."""

    runner: UUID | None
    owner: UUID | None


_HELD: Final[LiteralString] = """
    SELECT node.id, node.runner_incarnation, shard.member_id
      FROM node_executions AS node
      JOIN workflow_executions AS run ON run.id = node.workflow_execution_id
      LEFT JOIN engine_shards AS shard ON shard.shard = run.shard
     WHERE node.id = ANY($1) AND node.status = 'running'
       AND run.status IN ('pending', 'running', 'paused')
"""


async def held(db: Db, attempt_refs: Collection[UUID]) -> dict[UUID, Held]:
    """Return those of the attempts that are still open."""
    rows = await db.fetch(_HELD, list(attempt_refs))
    return {row["id"]: Held(row["runner_incarnation"], row["member_id"]) for row in rows}


def _to_member(row: Row) -> MemberState:
    return MemberState(
        id=row["id"],
        live=row["state"] == "live",
        address=row["address"] or "",
        shards=tuple(row["shards"]),
        left_s=row["left_s"] or 0.0,
        silent=row["silent"],
    )
