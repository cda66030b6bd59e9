"""Reads executions and their nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace as replaced
from typing import NamedTuple
from uuid import UUID

from services.kit.caller import Caller
from services.kit.errors import NotFound
from services.kit.pg import Db, Pool, as_caller, transaction
from services.orchestrator.domain.plan import Place, Plan
from services.orchestrator.domain.status import NodeStatus
from services.orchestrator.storage import executions, node_executions
from services.orchestrator.storage.executions import Execution
from services.orchestrator.storage.node_executions import NodeExecution
from services.orchestrator.usecases.plans import Plans


class Shown(NamedTuple):
    """A position in a list of nodes: places, and the order of the last one's parts."""

    places: int
    order: int


@dataclass(frozen=True, slots=True)
class Reader:
    """The dependencies of these use cases."""

    api_pool: Pool
    engine_pool: Pool
    plans: Plans

    async def plan(self, execution: Execution) -> Plan:
        """Return the plan of an execution that the caller has been allowed to read."""
        known = self.plans.known(execution.pins_id)
        if known is not None:
            return known
        async with transaction(self.engine_pool) as db:
            return (await self.plans.by_pins(db, [execution.pins_id]))[execution.pins_id]

    async def get(
        self, caller: Caller, execution_id: UUID, *, full: bool, with_input: bool = True
    ) -> tuple[Execution, Plan]:
        """Return an execution; raises `NotFound` for those of other tenants as for unknown ones."""
        async with as_caller(self.api_pool, caller) as db:
            found = await executions.get(
                db, execution_id, with_input=full and with_input, with_output=full
            )
        if found is None:
            raise missing(execution_id)
        return found, await self.plan(found)

    async def again(self, caller: Caller, found: Execution) -> tuple[Execution, Plan]:
        """Return an execution found by its row, as `get` does, in the BASIC view.

        If retention is deleting it at this moment, the found row is returned.
        """
        async with as_caller(self.api_pool, caller) as db:
            whole = await executions.get(db, found.id)
        return whole or found, await self.plan(found)

    async def list_nodes(
        self, caller: Caller, execution_id: UUID, *, after: Shown, limit: int, full: bool
    ) -> list[tuple[Shown, NodeExecution]]:
        """Return nodes of an execution with their positions, in the order of the definition.

        The parts of a map or loop follow it, in the order in which they began.
        """
        execution, plan = await self.get(caller, execution_id, full=False)
        end = after.places + limit
        ids = [place.id for place in plan.places[after.places : end]]
        found: list[tuple[Shown, NodeExecution]] = []
        async with as_caller(self.api_pool, caller) as db:
            rows = await node_executions.list_nodes(db, execution_id, node_ids=ids, full=full)
            wholes = rendered(execution, plan, rows, after.places, end)
            if after.places and plan.places[after.places - 1].grouped:
                found += await self._parts(db, execution_id, plan, after, limit, full=full)
            for at, whole in enumerate(wholes, after.places + 1):
                if len(found) >= limit:
                    break
                here = Shown(at, 0)
                found.append((here, whole))
                if plan.places[at - 1].grouped:
                    left = limit - len(found)
                    found += await self._parts(db, execution_id, plan, here, left, full=full)
        return found[:limit]

    async def _parts(
        self, db: Db, execution_id: UUID, plan: Plan, after: Shown, limit: int, *, full: bool
    ) -> list[tuple[Shown, NodeExecution]]:
        parts = await node_executions.list_parts(
            db,
            execution_id,
            plan.places[after.places - 1].id,
            after_order=after.order,
            limit=limit,
            full=full,
        )
        return [(Shown(after.places, each.execution_order), each) for each in parts]


def rendered(
    execution: Execution, plan: Plan, rows: Sequence[NodeExecution], begin: int, end: int
) -> list[NodeExecution]:
    """Return the nodes of a range of places; those without a row with a derived status."""
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
    # It could not begin, which ended the run: it has the run's error.
    return replaced(
        node,
        status=NodeStatus.FAILED,
        error_type=execution.error_type,
        error_message=execution.error_message,
    )


def unbegun(execution: Execution) -> NodeStatus:
    """Return the status of a node without a row."""
    if not execution.final:
        return NodeStatus.PENDING
    cancelled = execution.status == "cancelled"
    return NodeStatus.CANCELLED if cancelled else NodeStatus.SKIPPED


def missing(execution_id: UUID) -> NotFound:
    """Return the error for an execution that the caller cannot read, existing or not."""
    return NotFound(
        "EXECUTION_NOT_FOUND",
        "no such execution; ListExecutions shows those you may see",
        resource=("execution", str(execution_id)),
    )
