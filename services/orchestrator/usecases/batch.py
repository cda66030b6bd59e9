"""Bulk operations: each run is handled by itself, with its own status."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple
from uuid import UUID, uuid5

from services.kit.caller import Caller
from services.kit.errors import QflowError, invalid
from services.kit.filter.language import And, Comparison, Expression, Or
from services.kit.idempotency import Replayed, RequestKey, replay, write_once
from services.kit.pg import Db, as_caller
from services.orchestrator.domain.status import RUN_FINAL, RunStatus
from services.orchestrator.domain.waits import SUB_WORKFLOW
from services.orchestrator.storage import execution_lists
from services.orchestrator.usecases import listing
from services.orchestrator.usecases.cancel import cancel_execution
from services.orchestrator.usecases.read import Reader
from services.orchestrator.usecases.rerun import Again, Checked, Rerunner

ITEMS_MAX: Final = 1000
# Concurrency: so many share a flush, and leave connections to other calls.
_AT_ONCE: Final = 16


def _one_of(statuses: Sequence[RunStatus]) -> Expression:
    return Or(tuple(Comparison("status", "=", each) for each in statuses))


_OPEN: Final = _one_of([each for each in RunStatus if each not in RUN_FINAL])
# Sub-workflows are rerun with their parent, which a filter also matches: alone they would run
# twice.
_WHOLE: Final = Comparison("relation", "!=", SUB_WORKFLOW)
# What a filter matches for each operation: others could only be refused.
CANCELLABLE: Final = _OPEN
FINISHED: Final = And((_WHOLE, _one_of(sorted(RUN_FINAL))))
BROKEN: Final = And((_WHOLE, _one_of([RunStatus.FAILED, RunStatus.CANCELLED])))


@dataclass(frozen=True, slots=True)
class Item:
    """The result for one run."""

    execution_id: UUID
    new_execution_id: UUID | None = None
    error: QflowError | None = None


class Chosen(NamedTuple):
    """The runs of a batch, and whether the filter matches more."""

    ids: Sequence[UUID]
    more: bool = False


async def choose(
    reader: Reader,
    caller: Caller,
    *,
    execution_ids: Sequence[UUID],
    filter_text: str,
    among: Expression,
) -> Chosen:
    """Return the named or matching runs; a blank filter, which matches all, is refused."""
    if not filter_text:
        return Chosen(execution_ids)
    asked = listing.asked_from(filter_text=filter_text)
    if asked.expression is None:
        raise invalid(
            "filter", "FILTER_EMPTY", "must not be blank: select runs, for example status = failed"
        )
    found = await listing.find(
        reader,
        caller,
        listing.Asked(And((asked.expression, among)), asked.order),
        after=None,
        limit=ITEMS_MAX + 1,
        full=False,
    )
    return Chosen([each.id for each in found[:ITEMS_MAX]], len(found) > ITEMS_MAX)


async def choose_once(
    reader: Reader,
    caller: Caller,
    key: RequestKey[Chosen] | None,
    afresh: Callable[[], Awaitable[Chosen]],
) -> Chosen | Replayed:
    """Return the runs chosen by the first call with this request id, stored before any is changed.

    By a second call the filter may match runs that the first one made. A call that repeats an
    interrupted one completes the same set of runs.
    """
    earlier = await replay(reader.api_pool, caller, key)
    if earlier is not None:
        return earlier
    found = await afresh()

    async def keep(_db: Db) -> Chosen:
        return found

    return await write_once(reader.api_pool, caller, key, keep)


async def each_of(ids: Sequence[UUID], act: Callable[[UUID], Awaitable[UUID | None]]) -> list[Item]:
    """Call `act` for each run; an error becomes the item of that run and stops no other."""
    room = asyncio.Semaphore(_AT_ONCE)

    async def one(execution_id: UUID) -> Item:
        async with room:
            try:
                return Item(execution_id, await act(execution_id))
            except QflowError as error:
                return Item(execution_id, error=error)

    async with asyncio.TaskGroup() as tasks:
        begun = [tasks.create_task(one(each)) for each in ids]
    return [each.result() for each in begun]


async def cancel_many(
    rerunner: Rerunner, caller: Caller, ids: Sequence[UUID], *, validate_only: bool
) -> list[Item]:
    """Request cancellation of runs, parents before their sub-workflows, which end with them.

    In the other order, the sub-workflow would count as a failed node of its parent.
    """

    async def cancel(execution_id: UUID) -> None:
        if validate_only:
            await rerunner.reader.get(caller, execution_id, full=False)
        else:
            await cancel_execution(rerunner.reader, rerunner.router, caller, execution_id)

    async with as_caller(rerunner.reader.api_pool, caller) as db:
        depths = await execution_lists.depths(db, ids)
    items: dict[UUID, Item] = {}
    for depth in sorted({depths.get(each, 0) for each in ids}):
        level = [each for each in ids if depths.get(each, 0) == depth]
        items |= {item.execution_id: item for item in await each_of(level, cancel)}
    return [items[each] for each in ids]


async def make_many(
    rerunner: Rerunner,
    caller: Caller,
    ids: Sequence[UUID],
    *,
    relation: str,
    request_id: UUID | None,
    validate_only: bool,
) -> list[Item]:
    """Make a new run of each; repeated with the same request id, only once."""
    checked = Checked()

    async def make(execution_id: UUID) -> UUID | None:
        again = Again(
            execution_id=execution_id,
            relation=relation,
            request_id=uuid5(request_id, str(execution_id)) if request_id else None,
            validate_only=validate_only,
        )
        started, _ = await rerunner.make(caller, again, checked)
        return None if validate_only else started.run.id

    return await each_of(ids, make)
