"""Limits as the engine reads them, and the slots that it acquires and releases."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString, NamedTuple
from uuid import UUID

import structlog

from services.kit.cel import ExpressionError
from services.kit.pg import Db
from services.orchestrator.domain.explain_limits import Holder
from services.orchestrator.domain.limits import Claim, Demand, Limit, compile_key

log = structlog.get_logger()

CHANNEL: Final = "qflow_limits"
# A notification holds 8,000 bytes; one that names no limit makes members reread all.
_TOLD_MAX: Final = 100

_LIMITS: Final[LiteralString] = """
    SELECT id, tenant_id, name, revision, workflow_id, node_id, owner_id, per_owner, key_expression
      FROM execution_limits ORDER BY id
"""


async def get_limits(db: Db) -> list[Limit]:
    """Return the limits of all tenants."""
    return [_to_limit(**row) for row in await db.fetch(_LIMITS)]


def _to_limit(*, key_expression: str, name: str, **fields: object) -> Limit:
    try:
        key = compile_key(key_expression)
    except ExpressionError as error:  # accepted by an earlier release
        log.warning("limit_key_refused", limit=name, error=str(error))
        key = None
    return Limit(name=name, key=key, **fields)  # type: ignore[arg-type]


_HELD: Final[LiteralString] = """
    SELECT id, limit_id, key, COALESCE(node_execution_id, execution_id) AS row_id
      FROM limit_slots WHERE execution_id = ANY($1)
     ORDER BY limit_id
"""


async def get_held(db: Db, run_ids: Collection[UUID]) -> dict[UUID, Claim]:
    """Return the slots held by runs and their attempts, by the row that holds them."""
    found: dict[UUID, Claim] = {}
    for row in await db.fetch(_HELD, list(run_ids)):
        before = found.get(row["row_id"], Claim((), ()))
        demand = Demand(row["limit_id"], row["key"])
        found[row["row_id"]] = Claim((*before.lane, demand), (*before.slots, row["id"]))
    return found


class Answer(NamedTuple):
    """The result of a claim: the limit that refused it, if any, and how long a rate limit will."""

    refused_by: UUID | None
    wait_ms: int | None


_TAKE: Final[LiteralString] = """
    SELECT claim, refused_by, wait_ms
      FROM engine_take_slots($1, $2, $3::int[], $4::uuid[], $5::text[], $6::uuid[])
"""


async def take(db: Db, member_id: UUID, epoch: int, claims: Sequence[Claim]) -> list[Answer]:
    """Acquire the slots of each claim in order, all or none of a claim; fenced like a flush."""
    asked = [
        (number, demand.limit_id, demand.key, slot)
        for number, claim in enumerate(claims)
        for demand, slot in zip(claim.lane, claim.slots, strict=True)
    ]
    columns = [list(column) for column in zip(*asked, strict=True)]
    rows = await db.fetch(_TAKE, member_id, epoch, *columns)
    return [Answer(row["refused_by"], row["wait_ms"]) for row in rows]


_GIVE_BACK: Final[LiteralString] = """
    DELETE FROM limit_slots WHERE id = ANY($1) AND execution_id IS NULL RETURNING limit_id
"""


async def give_back(db: Db, slots: Iterable[UUID]) -> set[UUID]:
    """Release unused slots; returns their limits."""
    return {row["limit_id"] for row in await db.fetch(_GIVE_BACK, list(slots))}


# A slot must belong to a live member's claim, an open run or a running attempt.
_SWEEP: Final[LiteralString] = """
    DELETE FROM limit_slots AS slot
     WHERE (slot.execution_id IS NULL AND NOT EXISTS (
                SELECT FROM engine_members AS member
                 WHERE member.id = slot.member_id AND member.epoch = slot.epoch
                   AND member.state IN ('live', 'idle')))
        OR (slot.execution_id IS NOT NULL AND EXISTS (
                SELECT FROM workflow_executions AS run
                 WHERE run.id = slot.execution_id AND run.completed_at IS NOT NULL))
        OR (slot.node_execution_id IS NOT NULL AND EXISTS (
                SELECT FROM node_executions AS node
                 WHERE node.id = slot.node_execution_id AND node.status <> 'running'))
 RETURNING limit_id
"""
_SWEEP_BUCKETS: Final[LiteralString] = """
    DELETE FROM limit_buckets AS bucket USING execution_limits AS l
     WHERE l.id = bucket.limit_id
       AND (l.period_ms IS NULL
            OR bucket.updated_at < clock_timestamp() - l.period_ms * interval '1 millisecond')
"""


async def sweep(db: Db) -> set[UUID]:
    """Release slots whose holder is gone; returns their limits."""
    found = {row["limit_id"] for row in await db.fetch(_SWEEP)}
    await db.execute(_SWEEP_BUCKETS)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """How many slots of a limit are taken, and when its rate allows the next start."""

    max_running: int | None
    taken: int
    holders: int  # executions that hold any
    free_at: datetime | None


# Counted in the same way as by engine_take_slots.
_TAKEN: Final[LiteralString] = """
    SELECT l.id AS limit_id, wanted.key, l.max_running, held.taken, held.holders,
           CASE WHEN free.at > clock_timestamp() THEN free.at END AS free_at
      FROM unnest($1::uuid[], $2::text[]) AS wanted (limit_id, key)
      JOIN execution_limits AS l ON l.id = wanted.limit_id
      LEFT JOIN limit_buckets AS bucket
        ON bucket.limit_id = wanted.limit_id AND bucket.key = wanted.key
     CROSS JOIN LATERAL (
           SELECT bucket.updated_at + (1 - bucket.tokens) * l.period_ms / l.max_starts
                                      * interval '1 millisecond' AS at) AS free
     CROSS JOIN LATERAL (
           SELECT count(*)::int AS taken, count(DISTINCT slot.execution_id)::int AS holders
             FROM limit_slots AS slot
            WHERE slot.limit_id = wanted.limit_id AND slot.key = wanted.key) AS held
"""


async def get_taken(db: Db, demands: Collection[Demand]) -> dict[Demand, Taken]:
    """Return how many slots are taken; deleted limits are left out."""
    rows = await db.fetch(_TAKEN, *_columns(demands))
    return {
        Demand(row["limit_id"], row["key"]): Taken(
            max_running=row["max_running"],
            taken=row["taken"],
            holders=row["holders"],
            free_at=row["free_at"],
        )
        for row in rows
    }


# Paused runs that keep a slot first, then those that have held one for longest.
_HOLDERS: Final[LiteralString] = """
    SELECT wanted.limit_id, wanted.key, holder.execution_id, holder.is_paused
      FROM unnest($1::uuid[], $2::text[]) AS wanted (limit_id, key)
     CROSS JOIN LATERAL (
           SELECT slot.execution_id, min(slot.taken_at) AS since,
                  bool_or(slot.node_execution_id IS NULL AND run.status = 'paused') AS is_paused
             FROM limit_slots AS slot
             JOIN workflow_executions AS run ON run.id = slot.execution_id
            WHERE slot.limit_id = wanted.limit_id AND slot.key = wanted.key
            GROUP BY slot.execution_id
            ORDER BY is_paused DESC, since, slot.execution_id
            LIMIT $3) AS holder
     ORDER BY holder.is_paused DESC, holder.since, holder.execution_id
"""


async def get_holders(
    db: Db, demands: Collection[Demand], *, limit: int
) -> dict[Demand, list[Holder]]:
    """Return some of the executions that hold slots, by demand."""
    found: dict[Demand, list[Holder]] = {}
    for row in await db.fetch(_HOLDERS, *_columns(demands), limit):
        holder = Holder(row["execution_id"], is_paused=row["is_paused"])
        found.setdefault(Demand(row["limit_id"], row["key"]), []).append(holder)
    return found


def _columns(demands: Collection[Demand]) -> tuple[list[UUID], list[str]]:
    return [each.limit_id for each in demands], [each.key for each in demands]


_TELL: Final[LiteralString] = "SELECT pg_notify('qflow_limits', $1)"


async def tell_freed(db: Db, member_id: UUID, limit_ids: Collection[UUID]) -> None:
    """Notify other members of released slots."""
    if len(limit_ids) > _TOLD_MAX:
        await tell_changed(db)
    else:
        await db.execute(_TELL, " ".join(map(str, (member_id, *sorted(limit_ids)))))


async def tell_changed(db: Db) -> None:
    """Notify all members that limits have changed."""
    await db.execute(_TELL, "")


def freed_by(told: str) -> tuple[UUID | None, list[UUID]]:
    """Decode a notification: the member that released slots, if any, and their limits."""
    words = [UUID(each) for each in told.split()]
    return (words[0], words[1:]) if words else (None, [])
