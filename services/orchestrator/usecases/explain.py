"""Explains a run, from its rows and from runners and queues in memory."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from itertools import islice
from typing import Final
from uuid import UUID

from services.kit.caller import Caller
from services.kit.pg import as_caller
from services.orchestrator.domain.ends import Verdict, decide
from services.orchestrator.domain.explain import (
    NAMES_MAX,
    FailedParts,
    NodeState,
    Ready,
    Reason,
    RunState,
    Situation,
    explain,
)
from services.orchestrator.domain.explain_kept import Kept
from services.orchestrator.domain.plan import Kind, Phase, Place, Plan
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import NODE_FINAL, NodeStatus, RunStatus
from services.orchestrator.domain.waits import SUB_WORKFLOW
from services.orchestrator.engine.engine import Engine
from services.orchestrator.storage import node_executions
from services.orchestrator.storage.executions import Execution
from services.orchestrator.storage.node_executions import NodeExecution
from services.orchestrator.usecases.explain_limits import limited_parts
from services.orchestrator.usecases.read import Reader

_CALLS: Final = {Kind.SIGNAL: "SendSignal", Kind.APPROVAL: "AnswerApproval"}


async def explain_execution(
    reader: Reader, engine: Engine, caller: Caller, execution_id: UUID
) -> tuple[Execution, list[Reason]]:
    """Return a run with the reasons why it is in its current state."""
    execution, plan = await reader.get(caller, execution_id, full=False)
    now = datetime.now(UTC)
    run = engine.core.runs.get(execution_id)
    nodes = await _open_nodes(reader, engine, caller, execution, plan, run)
    parts, child = await _broken(reader, caller, execution, plan)
    state = _state(execution, run, parts, child)
    due = {
        each.node_id
        for each in nodes
        if each.status is NodeStatus.RETRYING and each.due_at is not None and each.due_at <= now
    }
    situation = await _situation(reader, engine, run, due)
    return execution, explain(state, nodes, situation, now=now)


async def _open_nodes(
    reader: Reader,
    engine: Engine,
    caller: Caller,
    execution: Execution,
    plan: Plan,
    run: Run | None,
) -> list[NodeState]:
    if execution.final:
        return []
    async with as_caller(reader.api_pool, caller) as db:
        rows = await node_executions.list_nodes(db, execution.id)
    silent = _silent_places(engine, run)
    return [
        NodeState(
            node_id=row.node_id,
            status=row.status,
            started_at=row.started_at,
            due_at=row.due_at,
            error_type=row.error_type,
            silent=row.node_id in silent,
            waits_for=_waits_for(engine, plan, row, paused=execution.status is RunStatus.PAUSED),
            is_child=row.status is NodeStatus.WAITING and row.child_execution_id is not None,
            is_part=row.node_id != row.definition_node_id,
            closes=_phase_of(plan, row) is not Phase.MAIN,
        )
        for row in rows
        if row.status not in NODE_FINAL
    ]


def _state(
    execution: Execution, run: Run | None, parts: FailedParts | None, child: UUID | None
) -> RunState:
    failed_node_id, failure = execution.failed_node_id, None
    if not execution.final and run is not None and run.failure is not None:
        failed_node_id, failure = run.failure  # not in its row until it closes
    return RunState(
        status=execution.status,
        cancel_requested_at=execution.cancel_requested_at,
        start_at=execution.start_at,
        completed_at=execution.completed_at,
        error_type=failure.error_type if failure else execution.error_type,
        error_message=failure.message if failure else execution.error_message,
        failed_node_id=failed_node_id,
        failed_parts=parts,
        failed_child=child,
        alone=execution.workflow_id is None,
        part_of=execution.parent_execution_id if execution.relation == SUB_WORKFLOW else None,
    )


async def _situation(
    reader: Reader, engine: Engine, run: Run | None, due: AbstractSet[str]
) -> Situation:
    """Return what the engine knows of a run; `due` are its nodes whose retry is due."""
    offers = [each.offer for each in engine.core.runners.values() if each.connected]
    coming, machines_come = engine.placements.offers(), engine.placements.machines_come
    if run is None:
        return Situation(ready=None, offers=offers, coming=coming, machines_come=machines_come)
    limited = await limited_parts(reader.engine_pool, engine, run)
    asked = [run.node_id(at) for at in engine.core.cache.asked_of(run.id)]
    held_up = {name for each in limited for name in each.nodes}.union(asked)
    return Situation(
        ready=[each for each in _ready(engine, run, due) if each.node_id not in held_up],
        kept=_kept(engine, run),
        limited=limited,
        asked=asked,
        offers=offers,
        coming=coming,
        machines_come=machines_come,
    )


async def _broken(
    reader: Reader, caller: Caller, execution: Execution, plan: Plan
) -> tuple[FailedParts | None, UUID | None]:
    """Return what failed within the failed node: elements of a map, or its sub-workflow."""
    at = plan.index.get(execution.failed_node_id or "")
    if at is None:
        return None, None
    place = plan.places[at]
    names, count = [place.id], 0
    async with as_caller(reader.api_pool, caller) as db:
        if place.grouped:
            names, count = await node_executions.failed_parts(
                db, execution.id, place.id, limit=NAMES_MAX
            )
        rows = (
            []
            if place.sub is None
            else await node_executions.list_nodes(db, execution.id, node_ids=names)
        )
    child = next((row.child_execution_id for row in rows if row.child_execution_id), None)
    if place.map is None or not count:
        return None, child
    return FailedParts(
        names=names,
        count=count,
        max_failed=place.map.max_failed,
        max_failed_ratio=place.map.max_failed_ratio,
    ), child


def _kept(engine: Engine, run: Run) -> Kept:
    """Return what runners are reserved for; other tenants' runs are not named."""
    core = engine.core
    waiting = [place for run_id, place, _ in core.ready.alone() if run_id == run.id]
    others = [each.id for each in core.runs_alone() if each.tenant_id == run.tenant_id]
    return Kept(
        offers=[each.offer for each in core.kept()],
        suspects={run.node_id(place) for place in waiting},
        executions=[each for each in others if each != run.id][:NAMES_MAX],
    )


def _ready(engine: Engine, run: Run, due: AbstractSet[str]) -> list[Ready]:
    """Return what is ready without a runner: places, maps with elements to begin, and retries."""
    return [
        Ready(
            node_id=run.node_id(slot),
            wanted=run.place(slot).wanted,
            locked=run.place(slot).node_version_id not in engine.core.unlocked,
        )
        for slot, record in enumerate(run.records)
        if run.place(slot).kind is Kind.PYTHON
        and run.may_begin(slot)
        and (
            run.node_id(slot) in due
            if record is not None and record.status is NodeStatus.RETRYING
            else slot < len(run.plan.places) and _wants_runner(run, slot)
        )
    ]


def _wants_runner(run: Run, place: int) -> bool:
    group, record = run.groups.get(place), run.records[place]
    if group is not None:
        return group.queued
    if record is not None and record.status is not NodeStatus.PENDING:
        return False
    later = run.plan.places[place].phase is not Phase.MAIN
    return place in run.seeded if later else decide(run, place) is Verdict.RUN


def _phase_of(plan: Plan, row: NodeExecution) -> Phase:
    return plan.places[plan.index[row.definition_node_id]].phase


def _waits_for(engine: Engine, plan: Plan, row: NodeExecution, *, paused: bool) -> str:
    """Describe what ends a node's wait, as an action; `paused`: its run is."""
    if row.status is NodeStatus.PAUSED:
        return "ResumeNode: it was held up by hand"
    if row.status is not NodeStatus.WAITING:
        return ""
    place = plan.places[plan.index[row.definition_node_id]]
    if row.child_execution_id is not None:
        ways = islice(_ways_within(engine, row.child_execution_id, paused=paused), NAMES_MAX)
        return " and ".join(ways) or (
            f"execution {row.child_execution_id}, which runs it; "
            "ExplainExecution says how that stands"
        )
    return _word_for(place) or ("its time" if place.kind is Kind.SLEEP else "")


def _ways_within(
    engine: Engine, execution_id: UUID, *, paused: bool, whose: str = "which runs it"
) -> Iterator[str]:
    """Yield what ends the waits of a sub-workflow and those within it, if they are known here.

    `paused`: its parent is, and resuming that resumes its sub-workflows.
    """
    child = engine.core.runs.get(execution_id)
    if child is None:
        return
    if child.status is RunStatus.PAUSED and not paused:
        yield f"ResumeExecution of execution {execution_id}, {whose} and is paused"
        return
    # In a failing one only closing nodes really wait.
    slots = [each[0] for each in child.waiting.values() if each and child.is_open(each[0])]
    words = list(dict.fromkeys(_word_for(child.place(slot)) for slot in slots))
    if words:
        yield f"{' and '.join(words[:NAMES_MAX])} to execution {execution_id}, {whose}"
    for record in child.records:
        if record is not None and record.child is not None and record.status is NodeStatus.WAITING:
            yield from _ways_within(
                engine, record.child, paused=paused, whose="which is in what runs it"
            )


def _word_for(place: Place) -> str:
    """Describe the call that delivers what a place waits for; empty if it waits for none."""
    if place.wait is None or place.kind not in _CALLS:
        return ""
    return f"{_CALLS[place.kind]} with the name {place.wait.name}"


def _silent_places(engine: Engine, run: Run | None) -> set[str]:
    if run is None:
        return set()
    return {
        run.node_id(slot)
        for slot, record in enumerate(run.records)
        if record is not None and record.runner in engine.silent_since
    }
