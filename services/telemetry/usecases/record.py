"""Record metrics measured by callers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.kit.caller import Caller
from services.kit.errors import InvalidArgument
from services.kit.idempotency import Replayed, RequestKey, do_once
from services.kit.pg import Db, Pool, as_caller
from services.telemetry.domain.points import POINTS_MAX, Refusal, Series, checked, sums_of
from services.telemetry.storage import metric_points


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """The result of a call; lists the first refusals only."""

    count: int
    refused_count: int
    refusals: Sequence[Refusal]


async def record_points(
    pool: Pool,
    caller: Caller,
    given: Sequence[Series],
    *,
    now_us: int,
    key: RequestKey[Recorded] | None,
) -> Recorded | Replayed:
    """Record the valid points; with a key, once per request id and durably."""
    if sum(len(each.values) for each in given) > POINTS_MAX:
        raise InvalidArgument(
            "TOO_MANY_POINTS", f"a call records at most {POINTS_MAX:,} points", field="series"
        )

    async def write(db: Db) -> Recorded:
        about = {each.execution_id for each in given if each.execution_id is not None}
        workflows = await metric_points.workflows_of(db, [*about]) if about else {}
        found = checked(given, workflows, now_us=now_us)
        kept = [each for each in found.series if each.keeps_points]
        if kept:
            await metric_points.insert_points(db, kept)
        sums = [
            every
            for each in found.series
            for every in sums_of(
                each, None if each.execution_id is None else workflows[each.execution_id]
            )
        ]
        if sums:
            await metric_points.add_sums(db, sums)
        return Recorded(
            count=found.count, refused_count=found.refused_count, refusals=found.refusals
        )

    if key is not None:
        return await do_once(pool, caller, key, write)
    async with as_caller(pool, caller, durable=False) as db:
        return await write(db)
