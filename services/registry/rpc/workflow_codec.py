"""Codec for workflows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple
from uuid import UUID

from google.protobuf.duration_pb2 import Duration
from qflow.registry.v1 import workflow_pb2 as pb
from qflow.types import Type

from services.kit.rpc import codec
from services.registry.domain.builtins import BY_KIND
from services.registry.domain.constructs import ABSENT_NULL
from services.registry.domain.definition import (
    MEMORY_BYTES_DEFAULT,
    TIMEOUT_MS_DEFAULT,
    Connection,
    Definition,
    Finding,
    Parameter,
    Retry,
    WorkflowInput,
    WorkflowNode,
    WorkflowOutput,
)
from services.registry.domain.node_limits import DEFAULT as DEFAULT_LIMITS
from services.registry.domain.node_limits import NAMES as LIMIT_NAMES
from services.registry.domain.node_limits import NodeLimits
from services.registry.rpc.construct_codec import (
    CONNECTIONS,
    add_constructs,
    connection_kind_from,
    constructs_from_pb,
)
from services.registry.rpc.tag_codec import attached_to_pb
from services.registry.rpc.type_texts import type_texts
from services.registry.rpc.unknown_settings import check_settings_known
from services.registry.storage.versions import Version
from services.registry.storage.workflows import Workflow

VERDICTS: Final = {
    "": pb.VERDICT_UNSPECIFIED,
    "exact": pb.VERDICT_EXACT,
    "widening": pb.VERDICT_WIDENING,
    "conversion": pb.VERDICT_CONVERSION,
    "refuted": pb.VERDICT_REFUTED,
}
_SEVERITIES: Final = {
    "info": pb.FINDING_SEVERITY_INFO,
    "warning": pb.FINDING_SEVERITY_WARNING,
    "error": pb.FINDING_SEVERITY_ERROR,
}


def definition_from_pb(message: pb.WorkflowDefinition) -> Definition:
    """Decode a graph without the fields that the server sets, which are computed again."""
    check_settings_known(message)
    timeout = message.settings.timeout if message.settings.HasField("timeout") else None
    ids: dict[str, UUID] = {}  # most nodes are used at many places
    return Definition(
        nodes=tuple([_node_from_pb(each, index, ids) for index, each in enumerate(message.nodes)]),
        connections=tuple(
            [
                Connection(
                    source=each.source_node,
                    source_output=each.source_output,
                    target=each.target_node,
                    target_input=each.target_input,
                    conversion=each.conversion,
                    kind=connection_kind_from(each.kind),
                    branch=each.branch,
                )
                for each in message.connections
            ]
        ),
        inputs=tuple(_input_from_pb(each) for each in message.inputs),
        outputs=tuple(
            WorkflowOutput(name=each.name, node=each.source_node, output=each.source_output)
            for each in message.outputs
        ),
        timeout_ms=None
        if timeout is None
        else codec.milliseconds_from(timeout, field="definition.settings.timeout"),
        parameters=tuple(
            Parameter(
                name=each.name,
                description=each.description,
                default_json=each.default_json or None,
                type_text=each.type_json,
            )
            for each in message.parameters
        ),
    )


def _node_from_pb(message: pb.WorkflowNode, index: int, ids: dict[str, UUID]) -> WorkflowNode:
    place = f"nodes[{index}]"
    text = message.node_id
    node_id = ids.get(text)
    literals = tuple([(each.input, each.value_json) for each in message.literals])
    if node_id is not None:
        name, version = message.id, message.version
        # A fast path for most places, which set only these fields.
        said = bool(name) + bool(text) + bool(version) + bool(literals)
        if len(message.ListFields()) == said:
            return WorkflowNode(id=name, node_id=node_id, version=version, literals=literals)
    constructs = constructs_from_pb(message, place)
    construct = constructs.get("construct")
    builtin = BY_KIND.get(construct.kind) if construct is not None else None
    if not text and builtin is not None:
        node_id = builtin.id
    elif node_id is None:
        node_id = ids[text] = codec.uuid_from(text, field=f"{place}.node_id")
    timeout_ms = TIMEOUT_MS_DEFAULT
    if message.HasField("timeout"):
        timeout_ms = max(1, codec.milliseconds_from(message.timeout, field=f"{place}.timeout"))
    return WorkflowNode(
        id=message.id,
        node_id=node_id,
        version=message.version,
        literals=literals,
        retry=_retry_from_pb(message.retry, place) if message.HasField("retry") else None,
        timeout_ms=timeout_ms,
        memory_bytes=message.memory_limit_bytes or MEMORY_BYTES_DEFAULT,
        variables=tuple((each.input, each.variable) for each in message.variables),
        parameters=tuple((each.input, each.parameter) for each in message.parameters),
        limits=NodeLimits.from_json({name: getattr(message.limits, name) for name in LIMIT_NAMES})
        if message.HasField("limits")
        else DEFAULT_LIMITS,
        **constructs,
    )


def _retry_from_pb(message: pb.RetryPolicy, place: str) -> Retry:
    default = Retry()
    initial, longest = default.initial_delay_ms, default.max_delay_ms
    if message.HasField("initial_delay"):
        field = f"{place}.retry.initial_delay"
        initial = codec.milliseconds_from(message.initial_delay, field=field)
    if message.HasField("max_delay"):
        field = f"{place}.retry.max_delay"
        longest = codec.milliseconds_from(message.max_delay, field=field)
    return Retry(
        max_retries=message.max_retries if message.HasField("max_retries") else default.max_retries,
        initial_delay_ms=initial,
        factor=message.factor if message.HasField("factor") else default.factor,
        max_delay_ms=longest,
        jitter=message.jitter if message.HasField("jitter") else default.jitter,
        retryable=tuple(message.retryable_errors),
        non_retryable=tuple(message.non_retryable_errors),
    )


def _input_from_pb(message: pb.WorkflowInput) -> WorkflowInput:
    return WorkflowInput(
        name=message.name,
        default_json=message.default_json or None,
        type_text=message.type_json,
    )


def definition_to_pb(definition: Definition, *, with_graph: bool = True) -> pb.WorkflowDefinition:
    """Encode a graph; without `with_graph`, only its inputs, outputs, parameters and settings."""
    message = pb.WorkflowDefinition(
        inputs=[
            pb.WorkflowInput(
                name=each.name,
                type_json=_text(each.type),
                type_expression=_expression(each.type),
                default_json=each.default_json or "",
            )
            for each in definition.inputs
        ],
        outputs=[
            pb.WorkflowOutput(
                name=each.name,
                source_node=each.node,
                source_output=each.output,
                type_expression=_expression(each.type),
                type_json=_text(each.type),
            )
            for each in definition.outputs
        ],
        settings=pb.WorkflowSettings(timeout=codec.duration_ms(definition.timeout_ms)),
        parameters=[
            pb.WorkflowParameter(
                name=each.name,
                type_json=_text(each.type),
                type_expression=_expression(each.type),
                description=each.description,
                default_json=each.default_json or "",
            )
            for each in definition.parameters
        ],
    )
    if with_graph:
        texts = _Texts({}, {})
        for node in definition.nodes:
            _add_node(message, node, texts)
        for edge in definition.connections:
            _add_connection(message, edge)
    return message


class _Texts(NamedTuple):
    """Encoded values that many places share: node ids by identity, and timeouts."""

    ids: dict[int, str]
    spans: dict[int, Duration]


def _add_node(definition: pb.WorkflowDefinition, node: WorkflowNode, texts: _Texts) -> None:
    # Added in place, since appending a finished message would copy it.
    shown = texts.ids.get(id(node.node_id))
    if shown is None:
        shown = texts.ids[id(node.node_id)] = str(node.node_id)
    span = texts.spans.get(node.timeout_ms)
    if span is None:
        span = texts.spans[node.timeout_ms] = Duration()
        span.FromMilliseconds(node.timeout_ms)
    message = definition.nodes.add(
        id=node.id,
        node_id=shown,
        version=node.version,
        memory_limit_bytes=node.memory_bytes,
    )
    for name, variable in node.variables:
        message.variables.add(input=name, variable=variable)
    for name, parameter in node.parameters:
        message.parameters.add(input=name, parameter=parameter)
    message.timeout.CopyFrom(span)
    if node.limits is not DEFAULT_LIMITS:
        for name, value in node.limits.as_json().items():
            setattr(message.limits, name, value)
    for name, value_json in node.literals:
        message.literals.add(input=name, value_json=value_json)
    if node.retry is not None:
        retry = message.retry
        retry.max_retries = node.retry.max_retries
        retry.initial_delay.FromMilliseconds(node.retry.initial_delay_ms)
        retry.factor = node.retry.factor
        retry.max_delay.FromMilliseconds(node.retry.max_delay_ms)
        retry.jitter = node.retry.jitter
        retry.retryable_errors.extend(node.retry.retryable)
        retry.non_retryable_errors.extend(node.retry.non_retryable)
    add_constructs(message, node)


def _add_connection(definition: pb.WorkflowDefinition, edge: Connection) -> None:
    # Optional fields are set only if needed, since nearly all edges carry a value unchanged.
    message = definition.connections.add(
        source_node=edge.source,
        source_output=edge.source_output,
        target_node=edge.target,
        target_input=edge.target_input,
        verdict=VERDICTS[edge.verdict],
        kind=CONNECTIONS[edge.kind],
    )
    if edge.conversion:
        message.conversion = edge.conversion
        message.lossy = not edge.is_lossless
    if edge.branch:
        message.branch = edge.branch
    if edge.counter_example:
        message.counter_example_json = edge.counter_example
    if edge.absent == ABSENT_NULL:
        message.null_when_absent = True


def connection_to_pb(edge: Connection) -> pb.Connection:
    """Encode an edge with its verdict."""
    alone = pb.WorkflowDefinition()
    _add_connection(alone, edge)
    return alone.connections[0]


def findings_to_pb(findings: Sequence[Finding]) -> list[pb.Finding]:
    """Encode findings."""
    return [
        pb.Finding(
            severity=_SEVERITIES[each.severity],
            place=each.place,
            code=each.code,
            message=each.message,
            hint=each.hint,
            counter_example_json=each.counter_example,
            conversions=each.mended_by,
        )
        for each in findings
    ]


def workflow_to_pb(
    workflow: Workflow, findings: Sequence[Finding] = (), *, with_graph: bool = True
) -> pb.Workflow:
    """Encode a workflow; a validated-only one has no id."""
    exists = workflow.id.int != 0
    return pb.Workflow(
        id=str(workflow.id) if exists else "",
        name=workflow.name,
        description=workflow.description,
        definition=definition_to_pb(workflow.definition, with_graph=with_graph),
        active=workflow.is_active,
        version=workflow.version,
        etag=workflow.etag if exists else "",
        findings=findings_to_pb(findings),
        created_by=str(workflow.created_by),
        create_time=codec.timestamp(workflow.created_at) if exists else None,
        update_time=codec.timestamp(workflow.updated_at) if exists else None,
        delete_time=codec.timestamp(workflow.deleted_at) if workflow.deleted_at else None,
        is_template=workflow.is_template,
        tags=attached_to_pb(workflow.tags),
        cloned_from=_origin(workflow.cloned_from),
    )


def _origin(model: tuple[UUID, int] | None) -> pb.WorkflowOrigin | None:
    if model is None:
        return None
    return pb.WorkflowOrigin(workflow_id=str(model[0]), version=model[1])


def workflow_version_to_pb(version: Version[Workflow], *, with_graph: bool) -> pb.WorkflowVersion:
    """Encode one version of a workflow."""
    return pb.WorkflowVersion(
        workflow=workflow_to_pb(version.shown, with_graph=with_graph),
        author=str(version.author),
        create_time=codec.timestamp(version.made_at),
    )


def _text(of: Type | None) -> str:
    return "" if of is None else type_texts(of)[0]


def _expression(of: Type | None) -> str:
    return "" if of is None else type_texts(of)[1]
