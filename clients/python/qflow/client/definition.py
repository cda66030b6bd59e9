"""Converts a graph written in Python to a definition for the registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

from google.protobuf.duration_pb2 import Duration

from qflow import values
from qflow.authoring.called import Called
from qflow.authoring.constructs import ApprovalSpec, ChoiceSpec, SignalSpec, SleepSpec
from qflow.authoring.graph import Options, Place, Retry, Runner
from qflow.authoring.workflow import Workflow
from qflow.exceptions import AuthoringError
from qflow.isolation.v1 import isolation_pb2
from qflow.registry.v1 import workflow_pb2
from qflow.types import ANY, Collection, Type, to_text

T = TypeVar("T")
# Id and version of a node or a sub-workflow.
Stored = tuple[str, int]

_REUSE: Final = {
    "warm": isolation_pb2.REUSE_WARM,
    "fork": isolation_pb2.REUSE_FORK,
    "fresh": isolation_pb2.REUSE_FRESH,
    "container": isolation_pb2.REUSE_CONTAINER,
}
_NETWORK: Final = {
    "none": isolation_pb2.NETWORK_NONE,
    "egress": isolation_pb2.NETWORK_EGRESS,
    "host": isolation_pb2.NETWORK_HOST,
}
_TIER: Final = {
    "T0": isolation_pb2.TIER_T0,
    "T1": isolation_pb2.TIER_T1,
    "T2": isolation_pb2.TIER_T2,
    "T3": isolation_pb2.TIER_T3,
    "T4": isolation_pb2.TIER_T4,
}
_DURATIONS: Final = ("timeout", "queue_timeout", "total_timeout", "heartbeat_timeout", "cache_ttl")
_LIMITS: Final = ("cpu_millicores", "processes", "open_files", "temporary_bytes", "output_bytes")
_JOIN: Final = {
    "any": workflow_pb2.JOIN_KIND_ANY,
    "all_done": workflow_pb2.JOIN_KIND_ALL_DONE,
}
_EDGE: Final = {
    "order": workflow_pb2.CONNECTION_KIND_ORDER,
    "branch": workflow_pb2.CONNECTION_KIND_BRANCH,
    "failure": workflow_pb2.CONNECTION_KIND_FAILURE,
}


def definition(
    workflow: Workflow[..., Any], stored: Callable[[Any], Stored]
) -> workflow_pb2.WorkflowDefinition:
    """Return the definition of a workflow; `stored` gives the ids of nodes and sub-workflows."""
    graph = workflow.graph
    made = workflow_pb2.WorkflowDefinition(
        nodes=[_node(place, stored) for place in graph.places],
        connections=[each for place in graph.places for each in _connections(place)],
        inputs=[_input(workflow, index) for index in range(len(graph.inputs))],
        outputs=[
            workflow_pb2.WorkflowOutput(
                name=name, source_node=_place_id(workflow, name), source_output=source.output
            )
            for name, source in graph.outputs.items()
        ],
    )
    if workflow.settings.timeout is not None:
        made.settings.timeout.CopyFrom(_duration(workflow.settings.timeout))
    return made


def _place_id(workflow: Workflow[..., Any], output: str) -> str:
    place = workflow.graph.outputs[output].place
    if place is None:
        raise AuthoringError(f"{workflow.name}: the output {output} is an input of the workflow")
    return place.id


def _input(workflow: Workflow[..., Any], index: int) -> workflow_pb2.WorkflowInput:
    given = workflow.graph.inputs[index]
    made = workflow_pb2.WorkflowInput(name=given.name)
    if given.type != ANY:
        made.type_json = to_text(given.type)
    if not given.required:
        classes = values.classes_in(workflow.hints.get(given.name))
        made.default_json = values.encode(
            given.default, given.type, name=f"input {given.name}", classes=classes
        )
    return made


def _node(place: Place, stored: Callable[[Any], Stored]) -> workflow_pb2.WorkflowNode:
    made = workflow_pb2.WorkflowNode(id=place.id)
    try:
        _write(made, place, stored)
    except (TypeError, ValueError) as error:  # of options with a wrong type
        raise AuthoringError(f"{place.id}: {error}") from error
    return made


def _write(made: workflow_pb2.WorkflowNode, place: Place, stored: Callable[[Any], Stored]) -> None:
    _construct(made, place, stored)
    for name in place.literals:
        made.literals.add(input=name, value_json=_literal(place, name))
    _options(made, place.options)
    if place.finally_:
        made.phase = workflow_pb2.NODE_PHASE_FINALLY
    if place.compensates is not None:
        made.compensates = place.compensates.id
    if place.each is not None:
        made.for_each.input = place.each.input
        if place.each.max_in_flight is not None:
            made.for_each.max_in_flight = place.each.max_in_flight
        if place.each.max_failed is not None:
            made.for_each.max_failed = place.each.max_failed
    if place.repeat is not None:
        made.repeat.condition = place.repeat.condition
        made.repeat.max_turns = place.repeat.max_turns
        for name, output in place.repeat.carry.items():
            made.repeat.carry.add(input=name, output=output)
        if place.repeat.fail_at_max:
            made.repeat.at_max = workflow_pb2.LOOP_END_FAIL


def _construct(  # noqa: C901  # one table
    made: workflow_pb2.WorkflowNode, place: Place, stored: Callable[[Any], Stored]
) -> None:
    match place.runs:
        case Called():
            made.node_id, made.version = stored(place.runs)
            if isinstance(place.runs, Workflow):
                made.sub_workflow.SetInParent()
        case ChoiceSpec(branches=branches, default=default):
            for name, condition in branches.items():
                made.choice.branches.add(name=name, condition=condition)
            made.choice.default_branch = default
        case SleepSpec():
            made.sleep.SetInParent()
        case SignalSpec() as spec:
            made.signal.name = spec.name
            made.signal.type_json = to_text(spec.type)
            if spec.timeout is not None:
                made.signal.wait_timeout.CopyFrom(_duration(spec.timeout))
            if spec.has_default:
                name = f"the default of {spec.name}"
                made.signal.default_json = values.encode(spec.default, spec.type, name=name)
        case ApprovalSpec() as spec:
            made.approval.name = spec.name
            if spec.timeout is not None:
                made.approval.wait_timeout.CopyFrom(_duration(spec.timeout))


def _options(made: workflow_pb2.WorkflowNode, options: Options) -> None:
    if options.retry is not None:
        made.retry.CopyFrom(_retry(options.retry))
    for name in _DURATIONS:
        given: timedelta | None = getattr(options, name)
        if given is not None:
            getattr(made, name).CopyFrom(_duration(given))
    _resources(made, options)
    if options.reuse is not None:
        made.reuse = _one_of(_REUSE, options.reuse, "reuse")
    made.concurrency = options.concurrency
    made.condition = options.condition
    if isinstance(options.join, int):
        made.join.kind, made.join.count = workflow_pb2.JOIN_KIND_N_OF, options.join
    elif options.join in _JOIN:
        made.join.kind = _JOIN[options.join]
    if options.continue_on_failure:
        made.on_failure = workflow_pb2.FAILURE_POLICY_CONTINUE


def _resources(made: workflow_pb2.WorkflowNode, options: Options) -> None:
    """Set the limits, network and requirements of a place."""
    made.memory_limit_bytes = options.memory_bytes
    for name in _LIMITS:
        if limit := getattr(options, name):
            setattr(made.limits, name, limit)
    if options.network is not None:
        made.network = _one_of(_NETWORK, options.network, "network")
    made.egress_hosts.extend(options.egress_hosts)
    if options.runner is not None:
        made.runner.CopyFrom(_runner(options.runner))


def _runner(runner: Runner) -> workflow_pb2.RunnerRequirements:
    made = workflow_pb2.RunnerRequirements(
        labels=runner.labels,
        cpus=runner.cpus,
        memory_bytes=runner.memory_bytes,
        gpus=runner.gpus,
    )
    if runner.isolation is not None:
        made.isolation = _one_of(_TIER, runner.isolation, "runner.isolation")
    return made


def _one_of(known: Mapping[str, T], given: str, name: str) -> T:
    if given not in known:
        raise AuthoringError(f"{name}: {given!r} is none of {', '.join(known)}")
    return known[given]


def _retry(retry: Retry) -> workflow_pb2.RetryPolicy:
    return workflow_pb2.RetryPolicy(
        max_retries=retry.max_retries,
        initial_delay=_duration(retry.initial_delay),
        factor=retry.factor,
        max_delay=_duration(retry.max_delay),
        jitter=retry.jitter,
        retryable_errors=retry.on,
        non_retryable_errors=retry.never_on,
    )


def _connections(place: Place) -> Iterator[workflow_pb2.Connection]:
    carried = set()
    for name, source in place.fed.items():
        made = workflow_pb2.Connection(
            source_node=source.place.id if source.place else "",
            source_output=source.output,
            target_node=place.id,
            target_input=name,
            conversion=place.options.conversions.get(name, ""),
        )
        if source.place is not None and source.output not in source.place.outputs:
            made.kind = workflow_pb2.CONNECTION_KIND_FAILURE  # what it failed with
            carried.add(source.place.id)
        yield made
    for edge in place.edges:
        if edge.kind == "failure" and edge.source.id in carried:
            continue
        yield workflow_pb2.Connection(
            source_node=edge.source.id,
            target_node=place.id,
            kind=_EDGE[edge.kind],
            branch=edge.branch,
        )


def _literal(place: Place, name: str) -> str:
    value = place.literals[name]
    of: Type = ANY
    classes: values.Classes = {}
    if isinstance(place.runs, Called):
        of = place.runs.inputs[name].type
        classes = values.classes_in(place.runs.hints.get(name))
        if place.each is not None and place.each.input == name:
            of = Collection("list", of)
    elif isinstance(value, datetime):
        value = value.isoformat()
    return values.encode(value, of, name=f"{place.id}.{name}", classes=classes)


def _duration(given: timedelta) -> Duration:
    made = Duration()
    made.FromTimedelta(given)
    return made
