"""Reading executions: one, a page, the nodes of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace as replaced
from datetime import datetime
from typing import Final, cast
from uuid import UUID

from services.kit import page
from services.kit.caller import Caller
from services.kit.errors import NotFound
from services.kit.pg import Pool, as_caller, transaction
from services.orchestrator.domain.plan import Place, Plan
from services.orchestrator.domain.status import NodeStatus
from services.orchestrator.storage import executions
from services.orchestrator.storage.executions import Execution, NodeExecution
from services.orchestrator.usecases.plans import Plans

_LIST: Final = "ListExecutions"
_LIST_NODES: Final = "ListNodeExecutions"


@dataclass(frozen=True, slots=True)
class Reader:
    """What reading needs."""

    api_pool: Pool
    engine_pool: Pool
    plans: Plans

    async def plan(self, execution: Execution) -> Plan:
        """Give the plan of an execution that the caller was allowed to see."""
        known = self.plans.known(execution.pins_id)
        if known is not None:
            return known
        async with transaction(self.engine_pool) as db:
            return (await self.plans.by_pins(db, [execution.pins_id]))[execution.pins_id]

    async def get(
        self, caller: Caller, execution_id: UUID, *, full: bool
    ) -> tuple[Execution, Plan]:
        """Give one execution; what another tenant has is not found, like what nobody has."""
        async with as_caller(self.api_pool, caller) as db:
            found = await executions.get(db, execution_id, with_input=full, with_output=full)
        if found is None:
            raise missing(execution_id)
        return found, await self.plan(found)

    async def list_page(
        self,
        caller: Caller,
        *,
        size: int,
        token: str,
        workflow_id: UUID | None,
        statuses: Sequence[str],
    ) -> tuple[list[tuple[Execution, Plan]], str]:
        """Give a page of executions, newest first, and the token of the next."""
        limit = page.page_size(size)
        asked = page.filter_digest(str(workflow_id), *sorted(statuses))
        key = page.decode_token(token, _LIST, asked, caller.tenant_id)
        before = None if key is None else cast("tuple[datetime, UUID]", tuple(key))
        async with as_caller(self.api_pool, caller) as db:
            found = await executions.list_page(
                db,
                workflow_id=workflow_id,
                statuses=statuses,
                before=before,
                limit=limit + 1,
            )
            shown = found[:limit]
            counts = await executions.get_counts(db, [each.id for each in shown])
        async with transaction(self.engine_pool) as db:
            plans = await self.plans.by_pins(db, {each.pins_id for each in shown})
        following = ""
        if len(found) > limit:
            last = shown[-1]
            assert last.created_at is not None
            following = page.encode_token(
                _LIST, asked, caller.tenant_id, (last.created_at, last.id)
            )
        listed = [replaced(each, counts=counts.get(each.id, {})) for each in shown]
        return [(each, plans[each.pins_id]) for each in listed], following

    async def list_nodes(
        self, caller: Caller, execution_id: UUID, *, size: int, token: str, full: bool
    ) -> tuple[list[NodeExecution], str]:
        """Give a page of an execution's nodes in the order of the definition."""
        limit = page.page_size(size)
        asked = page.filter_digest(str(execution_id))
        key = page.decode_token(token, _LIST_NODES, asked, caller.tenant_id)
        begin = 0 if key is None else cast("int", key[0])
        execution, plan = await self.get(caller, execution_id, full=False)
        ids = [place.id for place in plan.places[begin : begin + limit]]
        async with as_caller(self.api_pool, caller) as db:
            rows = await executions.list_nodes(db, execution_id, node_ids=ids, full=full)
        end = begin + limit
        following = ""
        if end < len(plan.places):
            following = page.encode_token(_LIST_NODES, asked, caller.tenant_id, (end,))
        return rendered(execution, plan, rows, begin, end), following


def rendered(
    execution: Execution, plan: Plan, rows: Sequence[NodeExecution], begin: int, end: int
) -> list[NodeExecution]:
    """Give the nodes of a part of the definition; those without a row as what they stand for."""
    by_id = {row.node_id: row for row in rows}
    return [by_id.get(place.id) or _unbegun(execution, place) for place in plan.places[begin:end]]


def _unbegun(execution: Execution, place: Place) -> NodeExecution:
    node = NodeExecution(
        node_id=place.id,
        status=unbegun(execution),
        revision=execution.revision if execution.final else 0,
        node_version_id=place.node_version_id,
        max_retries=place.retry.max_retries,
    )
    if execution.failed_node_id != place.id:
        return node
    # It could not even begin, and that ended the run: the run's error is its own.
    return replaced(
        node,
        status=NodeStatus.FAILED,
        error_type=execution.error_type,
        error_message=execution.error_message,
    )


def unbegun(execution: Execution) -> NodeStatus:
    """Say what a node without a row stands for."""
    if not execution.final:
        return NodeStatus.PENDING
    cancelled = execution.status == "cancelled"
    return NodeStatus.CANCELLED if cancelled else NodeStatus.SKIPPED


def missing(execution_id: UUID) -> NotFound:
    """Make the answer for an execution the caller cannot see, existing or not."""
    return NotFound(
        "EXECUTION_NOT_FOUND",
        "no such execution; ListExecutions shows those you may see",
        resource=("execution", str(execution_id)),
    )
