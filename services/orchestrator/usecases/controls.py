"""Steering a run that is under way: pausing it or one of its nodes, ending a node by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import structlog
from qflow.types import Collection, Type, ValueTextError, check_value, from_json, parse_strict

from services.kit.caller import Caller
from services.kit.errors import (
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from services.kit.pg import as_caller, transaction
from services.orchestrator.domain.plan import Kind, Place, Plan
from services.orchestrator.domain.rows import Transition
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import NODE_FINAL, NodeStatus, RunStatus
from services.orchestrator.engine.engine import Engine
from services.orchestrator.storage import definitions, executions
from services.orchestrator.storage.executions import Execution, NodeExecution
from services.orchestrator.storage.recovery import split_object
from services.orchestrator.usecases.read import Reader, rendered

log = structlog.get_logger()

_FIELD: Final = "output_json"
_NOT_BEGUN: Final = frozenset({NodeStatus.PENDING, NodeStatus.RETRYING, NodeStatus.PAUSED})


@dataclass(frozen=True, slots=True)
class Controls:
    """What steering needs."""

    reader: Reader
    engine: Engine

    async def pause(self, caller: Caller, execution_id: UUID) -> tuple[Execution, Plan]:
        """Let nothing new begin in a run."""
        run = await self.open_run(caller, execution_id)
        if run.status is not RunStatus.PAUSED:
            await self._change(run, self.engine.core.pause(execution_id))
            log.info("execution_paused", execution_id=str(execution_id))
        return await self.reader.get(caller, execution_id, full=False)

    async def resume(self, caller: Caller, execution_id: UUID) -> tuple[Execution, Plan]:
        """Let a paused run go on."""
        run = await self.open_run(caller, execution_id)
        if run.status is RunStatus.PAUSED:
            resumed = self.engine.core.resume(execution_id, now=self.engine.now())
            await self._change(run, resumed)
            log.info("execution_resumed", execution_id=str(execution_id))
        return await self.reader.get(caller, execution_id, full=False)

    async def pause_node(self, caller: Caller, execution_id: UUID, node_id: str) -> NodeExecution:
        """Hold up a node that has not begun."""
        run = await self.open_run(caller, execution_id)
        place = _place(run, node_id)
        record = run.records[place]
        if record is None or record.status is not NodeStatus.PAUSED:
            if (record is not None and record.status not in _NOT_BEGUN) or not run.is_open(place):
                raise _refused("NODE_STARTED", node_id, "has begun already, or never will")
            await self._change(run, self.engine.core.pause_node(execution_id, place))
        return await self._node(caller, execution_id, node_id)

    async def resume_node(self, caller: Caller, execution_id: UUID, node_id: str) -> NodeExecution:
        """Let a node go that was held up."""
        run = await self.open_run(caller, execution_id)
        place = _place(run, node_id)
        record = run.records[place]
        if record is not None and record.status is NodeStatus.PAUSED:
            await self._change(run, self.engine.core.resume_node(execution_id, place))
        return await self._node(caller, execution_id, node_id)

    async def skip_node(
        self, caller: Caller, execution_id: UUID, node_id: str, output_json: str
    ) -> NodeExecution:
        """End a node by hand that does not run."""
        run = await self.open_run(caller, execution_id)
        place = _place(run, node_id)
        output = await self._output(run.plan.places[place], output_json) if output_json else None
        _check_ends(run, place, node_id)  # after the last wait: no event comes between
        await self._change(run, self.engine.core.skip_node(execution_id, place, output))
        log.info("node_skipped", execution_id=str(execution_id), node_id=node_id)
        return await self._node(caller, execution_id, node_id)

    async def open_run(self, caller: Caller, execution_id: UUID) -> Run:
        """Give a run that the caller may see and that is not over, as memory has it."""
        execution, _ = await self.reader.get(caller, execution_id, full=False)
        if execution.final:
            raise FailedPrecondition(
                "EXECUTION_FINISHED",
                f"the execution is {execution.status} already; nothing of it can be changed",
                resource=("execution", str(execution_id)),
            )
        run = self.engine.core.runs.get(execution_id)
        if run is None or run.created_at is None or self.engine.recovering:
            raise Unavailable(
                "ENGINE_RECOVERING",
                "the engine is reading the run anew; repeat the call",
                retry_after_s=0.5,
            )
        if run.cancelling or run.completed_at is not None:
            raise FailedPrecondition(
                "EXECUTION_STOPPING",
                "the execution is being cancelled, or is over in this moment",
                resource=("execution", str(execution_id)),
            )
        return run

    async def _change(self, run: Run, transitions: Iterable[Transition]) -> None:
        await self.engine.change(run.id, transitions)

    async def _node(self, caller: Caller, execution_id: UUID, node_id: str) -> NodeExecution:
        execution, plan = await self.reader.get(caller, execution_id, full=False)
        async with as_caller(self.reader.api_pool, caller) as db:
            rows = await executions.list_nodes(db, execution_id, node_ids=[node_id])
        at = plan.index[node_id]
        return rendered(execution, plan, rows, at, at + 1)[0]

    async def _output(self, place: Place, text: str) -> tuple[bytes, ...]:
        """Read the outputs that a caller gives in a node's stead."""
        try:
            values = parse_strict(text)
        except ValueTextError as error:
            raise _invalid("VALUE_INVALID", error.path, error.message) from None
        if not isinstance(values, dict) or set(values) != set(place.outputs):
            names = ", ".join(place.outputs)
            raise _invalid("OUTPUTS_WRONG", "", f"must be an object of all its outputs: {names}")
        types = await self._types(place)
        for name, of in types.items():
            wrong = check_value(of, values[name], name)
            if wrong is not None:
                raise _invalid("TYPE_MISMATCH", wrong.path, wrong.message)
        texts = split_object(text)
        return tuple(texts[name] for name in place.outputs)

    async def _types(self, place: Place) -> dict[str, Type]:
        if place.wait is not None and place.kind is Kind.SIGNAL and place.wait.type is not None:
            return {place.outputs[0]: place.wait.type}
        if place.kind is not Kind.PYTHON:
            return {}
        async with transaction(self.reader.engine_pool) as db:
            versions = await definitions.get_versions(db, [place.node_version_id])
        declared = versions[place.node_version_id].output_types
        wrap = _lists_of(place.map.depth if place.map is not None else 0)
        return {str(each["name"]): wrap(from_json(each["type"])) for each in declared}


def _lists_of(depth: int) -> Callable[[Type], Type]:
    def wrap(of: Type) -> Type:
        for _ in range(depth):
            of = Collection("list", of)
        return of

    return wrap


def _check_ends(run: Run, place: int, node_id: str) -> None:
    record = run.records[place]
    if not run.is_open(place):
        raise _refused("NODE_FINISHED", node_id, "begins no more: the run is ending")
    if record is None or record.status in _NOT_BEGUN:
        return
    if record.status in NODE_FINAL:
        raise _refused("NODE_FINISHED", node_id, f"is {record.status} already")
    if record.status is NodeStatus.WAITING and record.child is None and place not in run.groups:
        return
    raise _refused("NODE_RUNNING", node_id, "is running; cancel the run, or wait for the node")


def _place(run: Run, node_id: str) -> int:
    place = run.plan.index.get(node_id)
    if place is None:
        raise NotFound(
            "NODE_NOT_FOUND",
            f"node {node_id}: the run has no such node; ListNodeExecutions shows those it has",
            fields=[FieldViolation("node", "is no node of the run", "NODE_NOT_FOUND")],
        )
    return place


def _refused(reason: str, node_id: str, why: str) -> FailedPrecondition:
    return FailedPrecondition(
        reason,
        f"node {node_id}: {why}",
        fields=[FieldViolation("node", why, reason)],
    )


def _invalid(reason: str, path: str, fault: str) -> InvalidArgument:
    place = f"{_FIELD}.{path}" if path else _FIELD
    return InvalidArgument(
        reason, f"{place}: {fault}", fields=[FieldViolation(place, fault, reason)]
    )
