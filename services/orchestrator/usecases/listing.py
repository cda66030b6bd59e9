"""Lists executions by filter and order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from services.kit.caller import Caller
from services.kit.filter.fields import compile_filter, required
from services.kit.filter.language import And, Comparison, Expression, Or, parse
from services.kit.filter.order import Order, order_from
from services.kit.page import Found
from services.kit.pg import Pool, as_caller, transaction
from services.orchestrator.domain.plan import Plan
from services.orchestrator.storage import execution_lists as lists
from services.orchestrator.storage import executions
from services.orchestrator.storage.execution_lists import FIELDS, LABELS, NEWEST_FIRST, ORDERS
from services.orchestrator.storage.executions import Counts, Execution
from services.orchestrator.usecases.read import Reader


@dataclass(frozen=True, slots=True)
class Asked:
    """A validated filter and order."""

    expression: Expression | None
    order: Order


@dataclass(frozen=True, slots=True)
class Listed:
    """A listed run."""

    id: UUID
    execution: Execution
    plan: Plan


def asked_from(
    *,
    filter_text: str,
    order_by: str = "",
    workflow_id: UUID | None = None,
    statuses: Sequence[str] = (),
) -> Asked:
    """Parse a filter and an order; raises `InvalidArgument` for unknown fields."""
    terms: list[Expression] = []
    expression = parse(filter_text)
    if expression is not None:
        compile_filter(expression, FIELDS, first=1)
        terms.append(expression)
    if workflow_id is not None:
        terms.append(Comparison("workflow", "=", str(workflow_id)))
    if statuses:
        stands = tuple(Comparison("status", "=", each) for each in statuses)
        terms.append(stands[0] if len(stands) == 1 else Or(stands))
    asked = And(tuple(terms)) if len(terms) > 1 else terms[0] if terms else None
    return Asked(asked, order_from(order_by, ORDERS, default=NEWEST_FIRST))


async def find(
    reader: Reader,
    caller: Caller,
    asked: Asked,
    *,
    after: tuple[str | datetime, UUID] | None,
    limit: int,
    full: bool,
) -> list[Found]:
    """Find a page of what the caller can read; `full` if inputs and outputs will be read.

    If the filter requires labels, the runs that have them are looked up first. If those are too
    many, the list is scanned in its order instead, which then fills a page quickly.
    """
    question = lists.Question(
        expression=asked.expression, order=asked.order, after=after, limit=limit, full=full
    )
    ids = await _by_labels(reader.engine_pool, caller, asked.expression)
    # Planned per execution: one value may be in every row and another in none.
    by_value = asked.expression is not None
    async with as_caller(reader.api_pool, caller, plans_by_value=by_value) as db:
        return await lists.find(db, question, tenant_id=caller.tenant_id, ids=ids)


async def read(reader: Reader, caller: Caller, ids: Sequence[UUID], *, full: bool) -> list[Listed]:
    """Read found runs; those deleted meanwhile are left out."""
    async with as_caller(reader.api_pool, caller) as db:
        found = await executions.read(db, ids, full=full)
        counts = await executions.get_counts(db, [each.id for each in found])
    async with transaction(reader.engine_pool) as db:
        plans = await reader.plans.by_pins(db, {each.pins_id for each in found})
    return [
        Listed(each.id, _counted(each, counts.get(each.id)), plans[each.pins_id]) for each in found
    ]


async def _by_labels(
    pool: Pool, caller: Caller, expression: Expression | None
) -> list[UUID] | None:
    """Return the ids of runs with all required labels; None without labels or with too many."""
    wanted = {
        term.name.removeprefix(LABELS): term.value
        for term in required(expression)
        if isinstance(term, Comparison) and term.operator == "=" and term.name.startswith(LABELS)
    }
    if not wanted:
        return None
    return await lists.ids_by_labels(pool, json.dumps(wanted), tenant_id=caller.tenant_id)


def _counted(execution: Execution, counts: Counts | None) -> Execution:
    if counts is None:
        return execution
    return execution._replace(counts=counts.by_status, parts=counts.parts)
