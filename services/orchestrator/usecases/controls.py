"""Controls of an open run: pause, resume and skip."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import structlog

from services.kit.caller import Caller
from services.kit.errors import FailedPrecondition, FieldViolation, Unavailable, no_such
from services.kit.pg import as_caller
from services.orchestrator.domain.plan import Phase, Plan
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import NODE_FINAL, NodeStatus, RunStatus
from services.orchestrator.domain.transition import Transition
from services.orchestrator.engine.engine import Engine
from services.orchestrator.storage import node_executions
from services.orchestrator.storage.executions import Execution
from services.orchestrator.storage.node_executions import NodeExecution
from services.orchestrator.usecases.by_hand import read_outputs
from services.orchestrator.usecases.read import Reader, rendered

log = structlog.get_logger()

_NOT_BEGUN: Final = frozenset({NodeStatus.PENDING, NodeStatus.RETRYING, NodeStatus.PAUSED})


@dataclass(frozen=True, slots=True)
class Controls:
    """The dependencies of the controls."""

    reader: Reader
    engine: Engine

    async def pause(self, caller: Caller, execution_id: UUID) -> tuple[Execution, Plan]:
        """Pause a run."""
        run = await self.open_run(caller, execution_id)
        if run.cancelling:
            raise _stopping(execution_id)
        if run.status is not RunStatus.PAUSED:
            await self._change(run, self.engine.core.pause(execution_id))
            log.info("execution_paused", execution_id=str(execution_id))
        return await self.reader.get(caller, execution_id, full=False)

    async def resume(self, caller: Caller, execution_id: UUID) -> tuple[Execution, Plan]:
        """Resume a paused run."""
        run = await self.open_run(caller, execution_id)
        if run.status is RunStatus.PAUSED:
            resumed = self.engine.core.resume(execution_id, now=self.engine.now())
            await self._change(run, resumed)
            log.info("execution_resumed", execution_id=str(execution_id))
        return await self.reader.get(caller, execution_id, full=False)

    async def pause_node(self, caller: Caller, execution_id: UUID, node_id: str) -> NodeExecution:
        """Pause a node that has not begun."""
        run = await self.open_run(caller, execution_id)
        place = _place(run, node_id)
        record = run.records[place]
        if record is None or record.status is not NodeStatus.PAUSED:
            if (record is not None and record.status not in _NOT_BEGUN) or not run.is_open(place):
                _check_turn(run, place, node_id)
                raise _refused("NODE_STARTED", node_id, _why_not_held(run, place))
            await self._change(run, self.engine.core.pause_node(execution_id, place))
        return await self._node(caller, execution_id, node_id)

    async def resume_node(self, caller: Caller, execution_id: UUID, node_id: str) -> NodeExecution:
        """Resume a paused node."""
        run = await self.open_run(caller, execution_id)
        place = _place(run, node_id)
        record = run.records[place]
        if record is not None and record.status is NodeStatus.PAUSED:
            await self._change(run, self.engine.core.resume_node(execution_id, place))
        return await self._node(caller, execution_id, node_id)

    async def skip_node(
        self, caller: Caller, execution_id: UUID, node_id: str, output_json: str
    ) -> NodeExecution:
        """Skip a node that is not running, with an output if given."""
        run = await self.open_run(caller, execution_id)
        place = _place(run, node_id)
        output: tuple[bytes, ...] | None = None
        if output_json:
            output = read_outputs(run.plan.places[place], output_json, caller.user_id)
        _check_ends(run, place, node_id)
        await self._change(run, self.engine.core.skip_node(execution_id, place, output))
        log.info("node_skipped", execution_id=str(execution_id), node_id=node_id)
        return await self._node(caller, execution_id, node_id)

    async def open_run(self, caller: Caller, execution_id: UUID) -> Run:
        """Return an open run that the caller can read, from memory.

        Compensations and finally nodes of a run that is being cancelled can be controlled, too.
        """
        execution, run = await self.find_run(caller, execution_id)
        if run is None:
            raise FailedPrecondition(
                "EXECUTION_FINISHED",
                f"the execution is already {execution.status}; it can no longer be changed",
                resource=("execution", str(execution_id)),
            )
        closes = bool(run.plan.compensations or run.plan.finals) and not run.abandoned
        if run.completed_at is not None or (run.cancelling and not closes):
            raise _stopping(execution_id)
        return run

    async def find_run(self, caller: Caller, execution_id: UUID) -> tuple[Execution, Run | None]:
        """Return an execution that the caller can read, and its run in memory if it is open.

        Raises `Unavailable` while the engine is reloading it.
        """
        execution, _ = await self.reader.get(caller, execution_id, full=False)
        run = self.engine.core.runs.get(execution_id)
        if run is None and not self.engine.recovering and not execution.final:
            # It may just have ended.
            execution, _ = await self.reader.get(caller, execution_id, full=False)
        if execution.final:
            return execution, None
        if run is None or run.created_at is None or self.engine.recovering:
            raise Unavailable(
                "ENGINE_RECOVERING",
                "the engine is reloading the run; retry",
                retry_after_s=0.5,
            )
        return execution, run

    async def _change(self, run: Run, transitions: Iterable[Transition]) -> None:
        await self.engine.change(run.id, transitions)

    async def _node(self, caller: Caller, execution_id: UUID, node_id: str) -> NodeExecution:
        execution, plan = await self.reader.get(caller, execution_id, full=False)
        async with as_caller(self.reader.api_pool, caller) as db:
            rows = await node_executions.list_nodes(db, execution_id, node_ids=[node_id])
        at = plan.index[node_id]
        return rendered(execution, plan, rows, at, at + 1)[0]


def _stopping(execution_id: UUID) -> FailedPrecondition:
    return FailedPrecondition(
        "EXECUTION_STOPPING",
        "the execution is being cancelled or is just ending",
        resource=("execution", str(execution_id)),
    )


def _check_ends(run: Run, place: int, node_id: str) -> None:
    record = run.records[place]
    if not run.is_open(place):
        _check_turn(run, place, node_id)
        raise _refused("NODE_FINISHED", node_id, _why_closed(run, place))
    if record is None or record.status in _NOT_BEGUN:
        return
    if record.status in NODE_FINAL:
        raise _refused("NODE_FINISHED", node_id, f"is {record.status} already")
    if record.status is NodeStatus.WAITING and record.child is None and place not in run.groups:
        return
    raise _refused("NODE_RUNNING", node_id, "is running; cancel the run, or wait for the node")


def _place(run: Run, node_id: str) -> int:
    place = run.plan.index.get(node_id)
    if place is not None:
        return place
    whole = run.plan.index.get(re.split(r"[\[#]", node_id)[0])
    if whole is None or not run.plan.places[whole].grouped:
        what = "is no node of the run; ListNodeExecutions shows those it has"
    else:
        what = (
            f"names a part of {run.plan.places[whole].id}, and parts are not steered one by one:"
            " name the whole before it begins, or the run"
        )
    raise no_such("node", node_id, "NODE_NOT_FOUND", what)


def _check_turn(run: Run, place: int, node_id: str) -> None:
    """Refuse to control compensations and finally nodes before the run closes."""
    phase = run.plan.places[place].phase
    if phase is Phase.MAIN or run.closing:
        return
    what, when = "is a finally node", "whose turn comes when the run's other nodes are over"
    if phase is Phase.COMPENSATION:
        what, when = "is a compensation", "which runs if the run fails or is cancelled"
    raise _refused("NODE_NOT_REACHED", node_id, f"{what}, {when}: call again once it closes")


def _why_not_held(run: Run, place: int) -> str:
    record = run.records[place]
    if place in run.groups:
        return "has begun; PauseExecution holds up those of its parts that have not"
    if record is not None and record.status in NODE_FINAL:
        return f"is {record.status} already"
    if record is not None and record.status not in _NOT_BEGUN:
        return "has begun already"
    return _why_closed(run, place)


def _why_closed(run: Run, place: int) -> str:
    """Describe why a place cannot begin any more."""
    rule = run.plan.places[place]
    if rule.phase is Phase.COMPENSATION and place not in run.undo and rule.compensates is not None:
        undone = run.plan.places[rule.compensates].id
        return f"never begins: there is nothing of {undone} to be undone"
    return "begins no more: the run is ending"


def _refused(reason: str, node_id: str, why: str) -> FailedPrecondition:
    return FailedPrecondition(
        reason,
        f"node {node_id}: {why}",
        fields=[FieldViolation("node", why, reason)],
    )
