"""PlanService: shows what a start would do, without running anything."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Final

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from qflow.orchestrator.v1 import execution_service_pb2, plan_service_pb2_grpc
from qflow.orchestrator.v1 import plan_service_pb2 as pb

from services.kit.caller import current_caller
from services.kit.rpc import codec as kit
from services.kit.rpc.sizes import ANSWER_BYTES_MAX, FRAME_BYTES
from services.orchestrator.domain.cautions import Caution, CautionCause, Environment
from services.orchestrator.domain.forecast import Past, Role, Times
from services.orchestrator.domain.options import Wishes
from services.orchestrator.domain.plan import Kind, Place
from services.orchestrator.engine.engine import Engine
from services.orchestrator.rpc import starting
from services.orchestrator.usecases.planning import (
    Planned,
    PlannedVersion,
    PlannedWorkflow,
    plan_execution,
)
from services.orchestrator.usecases.read import Reader
from services.orchestrator.usecases.start import Starter

Context = grpc.aio.ServicerContext[Any, Any]

_ERROR_CHARS_MAX: Final = 200
_CAUSES: Final = {
    cause: pb.PlanWarningCause.Value(f"PLAN_WARNING_CAUSE_{cause.name}") for cause in CautionCause
}
_ENVIRONMENTS: Final = {
    each: pb.PlannedEnvironment.Value(f"PLANNED_ENVIRONMENT_{each.name}") for each in Environment
}
_KINDS: Final = {kind: pb.PlannedNodeKind.Value(f"PLANNED_NODE_KIND_{kind.name}") for kind in Kind}
_ROLES: Final = {role: pb.PlannedNodeRole.Value(f"PLANNED_NODE_ROLE_{role.name}") for role in Role}


class PlanServicer(plan_service_pb2_grpc.PlanServiceServicer):
    """Decodes, calls the use cases, encodes."""

    def __init__(self, starter: Starter, reader: Reader, engine: Engine) -> None:
        self._starter = starter
        self._reader = reader
        self._engine = engine

    async def PlanExecution(
        self, request: pb.PlanExecutionRequest, context: Context
    ) -> pb.PlanExecutionResponse:
        """Plan a start."""
        asked = execution_service_pb2.StartExecutionRequest()
        asked.CopyFrom(request.start)
        asked.validate_only = True
        started = await starting.start(self._starter, asked)
        timeout_ms = Wishes(timeout_ms=starting.timeout_ms(asked)).timeout_within(
            started.plan.timeout_ms
        )
        planned = await plan_execution(
            self._reader,
            self._engine,
            current_caller(),
            started,
            timeout_ms,
            input_json=asked.input_json,
        )
        answer = pb.PlanExecutionResponse(
            execution=starting.execution(started, validate_only=True),
            existing=started.existing,
            time=_time(planned.total),
            past_runs=_past(planned.past_runs),
            work=_duration(planned.workflows[0].expected.work.median_us),
            unknown_node_count=planned.workflows[0].expected.unknown,
            pythons=[
                pb.PlannedPython(
                    python_version=each.python_version,
                    runner_count=each.runners,
                    slot_count=each.slots,
                    free_slot_count=each.free,
                )
                for each in planned.pythons
            ],
            queued_node_count=planned.queued,
            warnings=map(_warning, planned.cautions),
        )
        # In a thread: ten thousand nodes take a while, and the event loop must renew leases.
        return (await asyncio.to_thread(_Answer, answer, planned)).message


class _Answer:
    """A response filled up to its size limit; what the rest refers to comes first."""

    def __init__(self, answer: pb.PlanExecutionResponse, planned: Planned) -> None:
        self.message = answer
        self._left = ANSWER_BYTES_MAX - answer.ByteSize()
        self._versions: dict[object, int] = {}
        self._workflows: dict[object, int] = {}
        for version in planned.versions:
            self._add_version(version)
        for workflow in planned.workflows:
            self._add_workflow(workflow)
        for workflow, shown in zip(planned.workflows, answer.workflows, strict=False):
            self._fill(workflow, shown)

    def _takes(self, message: Message) -> bool:
        """Return whether a message still fits; after the first that does not, none does."""
        self._left -= message.ByteSize() + FRAME_BYTES
        if self._left < 0:
            self.message.truncated = True
        return not self.message.truncated

    def _add_version(self, version: PlannedVersion) -> None:
        message = _version(version)
        if self._takes(message):
            self._versions[version.id] = len(self._versions)
            self.message.node_versions.append(message)

    def _add_workflow(self, workflow: PlannedWorkflow) -> None:
        plan = workflow.plan
        head = pb.PlannedWorkflow(
            workflow_id=str(plan.workflow_id),
            version=plan.workflow_version or 0,
            connection_count=len(workflow.definition.connections),
        )
        if self._takes(head):
            self._workflows[plan.workflow_id, plan.workflow_version] = len(self._workflows)
            self.message.workflows.append(head)

    def _fill(self, workflow: PlannedWorkflow, shown: pb.PlannedWorkflow) -> None:
        places = workflow.plan.places
        for at, place in enumerate(places):
            node = _node(workflow, at, place)
            index = self._index(place)
            if index is not None:
                node.index = index
            if self._takes(node):
                shown.nodes.append(node)
        for conversion in _conversions(workflow):
            if self._takes(conversion):
                shown.conversions.append(conversion)
        names = [places[at].id for at in workflow.expected.path]
        if self._takes(pb.PlannedWorkflow(longest_path=names)):
            shown.longest_path.extend(names)

    def _index(self, place: Place) -> int | None:
        """Return the index of what a place runs in the response's versions or workflows."""
        if place.sub is not None:
            return self._workflows.get((place.sub.workflow_id, place.sub.workflow_version))
        return self._versions.get(place.node_version_id)


def _node(workflow: PlannedWorkflow, at: int, place: Place) -> pb.PlannedNode:
    return pb.PlannedNode(
        node=place.id,
        kind=_KINDS[place.kind],
        role=_ROLES[workflow.expected.roles[at]],
        time=None if place.wait is not None else _past(workflow.expected.past[at]),
        cache_hit=at in workflow.cache_hits,
    )


def _conversions(workflow: PlannedWorkflow) -> Iterator[pb.PlannedConversion]:
    for each in workflow.definition.connections:
        if each.get("conversion"):
            yield pb.PlannedConversion(
                source=str(each["source"]),
                source_output=str(each["source_output"]),
                target=str(each["target"]),
                target_input=str(each["target_input"]),
                conversion=str(each["conversion"]),
            )


def _version(version: PlannedVersion) -> pb.PlannedNodeVersion:
    failed = version.environment is Environment.FAILED
    return pb.PlannedNodeVersion(
        node_id=str(version.facts.node_id),
        version=version.facts.version,
        name=version.facts.name,
        python_version=version.facts.python_version,
        environment=_ENVIRONMENTS[version.environment],
        environment_error=(version.facts.error or "")[:_ERROR_CHARS_MAX] if failed else "",
        attempt=_past(version.attempts),
        recent_count=version.attempts.ended,
        recent_failed_count=version.attempts.failed,
    )


def _warning(caution: Caution) -> pb.PlanWarning:
    return pb.PlanWarning(
        cause=_CAUSES[caution.cause],
        message=caution.message,
        action=caution.action,
        nodes=caution.nodes,
        node_count=caution.node_count,
    )


def _past(past: Past) -> pb.PlannedTime | None:
    return _time(past.times, past.samples)


def _time(times: Times | None, samples: int = 0) -> pb.PlannedTime | None:
    if times is None:
        return None
    return pb.PlannedTime(
        median=_duration(times.median_us), p90=_duration(times.p90_us), samples=samples
    )


def _duration(microseconds: float) -> Duration | None:
    return kit.duration_ms(microseconds / 1000)
