"""Limits as the engine reads them, and the places under them that it takes and gives back."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final, LiteralString, NamedTuple
from uuid import UUID

import structlog

from services.kit.cel import ExpressionError
from services.kit.pg import Db
from services.orchestrator.domain.limits import Claim, Demand, Limit, compile_key

log = structlog.get_logger()

CHANNEL: Final = "qflow_limits"
# A notification holds 8,000 bytes; whoever hears of none in particular looks at all.
_TOLD_MAX: Final = 100

_LIMITS: Final[LiteralString] = """
    SELECT id, tenant_id, name, revision, workflow_id, node_id, owner_id, per_owner, key_expression
      FROM execution_limits ORDER BY id
"""


async def get_limits(db: Db) -> list[Limit]:
    """Give the limits of all tenants."""
    return [_to_limit(**row) for row in await db.fetch(_LIMITS)]


def _to_limit(*, key_expression: str, name: str, **fields: object) -> Limit:
    try:
        key = compile_key(key_expression)
    except ExpressionError as error:  # it was accepted once, by another release
        log.warning("limit_key_refused", limit=name, error=str(error))
        key = None
    return Limit(name=name, key=key, **fields)  # type: ignore[arg-type]


_HELD: Final[LiteralString] = """
    SELECT id, limit_id, key, COALESCE(node_execution_id, execution_id) AS row_id
      FROM limit_slots WHERE execution_id = ANY($1)
     ORDER BY limit_id
"""


async def get_held(db: Db, run_ids: Collection[UUID]) -> dict[UUID, Claim]:
    """Give the places that runs and their attempts have, by the row that has them."""
    found: dict[UUID, Claim] = {}
    for row in await db.fetch(_HELD, list(run_ids)):
        before = found.get(row["row_id"], Claim((), ()))
        demand = Demand(row["limit_id"], row["key"])
        found[row["row_id"]] = Claim((*before.lane, demand), (*before.slots, row["id"]))
    return found


class Answer(NamedTuple):
    """What came of a claim: the limit that refused it, and for how long if a rate did."""

    refused_by: UUID | None
    wait_ms: int | None


_TAKE: Final[LiteralString] = """
    SELECT claim, refused_by, wait_ms
      FROM engine_take_slots($1, $2, $3::int[], $4::uuid[], $5::text[], $6::uuid[])
"""


async def take(db: Db, member_id: UUID, epoch: int, claims: Sequence[Claim]) -> list[Answer]:
    """Take the places of each claim, or none of it, in their order; fenced like a flush."""
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
    """Give back places that were made use of by nothing; returns the limits that they were of."""
    return {row["limit_id"] for row in await db.fetch(_GIVE_BACK, list(slots))}


# A place stands for something that goes on: a member's word of a moment ago, a run, an attempt.
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
    """Free what is held by nothing any more; returns the limits of which that was."""
    found = {row["limit_id"] for row in await db.fetch(_SWEEP)}
    await db.execute(_SWEEP_BUCKETS)
    return found


_TELL: Final[LiteralString] = "SELECT pg_notify('qflow_limits', $1)"


async def tell_freed(db: Db, member_id: UUID, limit_ids: Collection[UUID]) -> None:
    """Tell the other members that places were given back."""
    if len(limit_ids) > _TOLD_MAX:
        await tell_changed(db)
    else:
        await db.execute(_TELL, " ".join(map(str, (member_id, *sorted(limit_ids)))))


async def tell_changed(db: Db) -> None:
    """Tell all members that limits are not what they were."""
    await db.execute(_TELL, "")


def freed_by(told: str) -> tuple[UUID | None, list[UUID]]:
    """Read what was told: who gave places of which limits back; nobody where limits changed."""
    words = [UUID(each) for each in told.split()]
    return (words[0], words[1:]) if words else (None, [])
