"""Codec for the constructs, edge kinds and optional settings of a place."""

from __future__ import annotations

from typing import Any, Final

from google.protobuf.duration_pb2 import Duration
from qflow.isolation.v1 import isolation_pb2
from qflow.registry.v1 import workflow_pb2 as pb
from qflow.types import expression, to_text

from services.kit.rpc import codec
from services.registry.domain.constructs import (
    ALL,
    ALL_DONE,
    ANY_OF,
    BRANCH,
    CONTINUE,
    DATA,
    FAIL,
    FAILURE,
    FINALLY,
    FINISH,
    N_OF,
    ORDER,
    Approval,
    Branch,
    Choice,
    Construct,
    Join,
    Loop,
    Map,
    Requirements,
    Signal,
    Sleep,
    SubWorkflow,
)
from services.registry.domain.definition import WorkflowNode

Values = dict[str, Any]

_JOINS: Final = {
    ALL: pb.JOIN_KIND_ALL,
    ANY_OF: pb.JOIN_KIND_ANY,
    N_OF: pb.JOIN_KIND_N_OF,
    ALL_DONE: pb.JOIN_KIND_ALL_DONE,
}
_JOIN_WORDS: Final[dict[int, str]] = {number: word for word, number in _JOINS.items()}
CONNECTIONS: Final = {
    DATA: pb.CONNECTION_KIND_DATA,
    ORDER: pb.CONNECTION_KIND_ORDER,
    BRANCH: pb.CONNECTION_KIND_BRANCH,
    FAILURE: pb.CONNECTION_KIND_FAILURE,
}
_CONNECTION_WORDS: Final[dict[int, str]] = {number: word for word, number in CONNECTIONS.items()}
_SPANS: Final = ("queue_timeout", "total_timeout", "heartbeat_timeout", "cache_ttl")
_SPANS_MS: Final = tuple((name, f"{name}_ms") for name in _SPANS)


def connection_kind_from(number: int) -> str:
    """Decode the kind of an edge; unspecified means a data edge."""
    return _CONNECTION_WORDS.get(number, DATA)


def constructs_from_pb(message: pb.WorkflowNode, place: str) -> Values:
    """Decode the optional parts of a place into arguments of WorkflowNode."""
    found: Values = {
        "condition": message.condition,
        "compensates": message.compensates,
        "on_failure": CONTINUE if message.on_failure == pb.FAILURE_POLICY_CONTINUE else "",
        "phase": FINALLY if message.phase == pb.NODE_PHASE_FINALLY else "",
    }
    which = message.WhichOneof("construct")
    if which:
        found["construct"] = _construct_from_pb(getattr(message, which), f"{place}.{which}")
    if message.HasField("join"):
        policy = _JOIN_WORDS.get(message.join.kind, ALL)
        found["join"] = Join(policy=policy, count=message.join.count)
    if message.HasField("for_each"):
        found["mapped"] = _map_from_pb(message.for_each)
    if message.HasField("repeat"):
        found["loop"] = _loop_from_pb(message.repeat)
    for name in _SPANS:
        if message.HasField(name):
            found[f"{name}_ms"] = _span(getattr(message, name), f"{place}.{name}")
    if message.reuse:
        found["reuse"] = isolation_pb2.Reuse.Name(message.reuse).removeprefix("REUSE_").lower()
    if message.HasField("runner"):
        found["runner"] = _requirements_from_pb(message.runner)
    if message.network:
        name = isolation_pb2.Network.Name(message.network)
        found["network"] = name.removeprefix("NETWORK_").lower()
    found["egress_hosts"] = tuple(message.egress_hosts)
    found["concurrency"] = message.concurrency
    return found


def _requirements_from_pb(message: pb.RunnerRequirements) -> Requirements:
    tier = isolation_pb2.Tier.Name(message.isolation) if message.isolation else ""
    return Requirements(
        isolation=tier.removeprefix("TIER_"),
        labels=tuple(sorted(message.labels.items())),
        cpus=message.cpus,
        memory_bytes=message.memory_bytes,
        gpus=message.gpus,
    )


def _span(message: Duration, field: str) -> int:
    return max(1, codec.milliseconds_from(message, field=field))


def _construct_from_pb(message: Any, place: str) -> Construct:
    match message:
        case pb.NodeChoice():
            return Choice(
                branches=tuple(Branch(each.name, each.condition) for each in message.branches),
                default=message.default_branch or None,
            )
        case pb.NodeSignal():
            return Signal(
                name=message.name,
                type_text=message.type_json,
                timeout_ms=_wait(message, place),
                default_json=message.default_json or None,
            )
        case pb.NodeApproval():
            return Approval(
                name=message.name, type_text=message.type_json, timeout_ms=_wait(message, place)
            )
        case pb.NodeSubWorkflow():
            return SubWorkflow()
        case _:
            return Sleep()


def _wait(message: pb.NodeSignal | pb.NodeApproval, place: str) -> int | None:
    if not message.HasField("wait_timeout"):
        return None
    return _span(message.wait_timeout, f"{place}.wait_timeout")


def _map_from_pb(message: pb.MapPolicy) -> Map:
    return Map(
        input=message.input,
        depth=message.depth or 1,
        max_in_flight=message.max_in_flight if message.HasField("max_in_flight") else None,
        max_failed=message.max_failed if message.HasField("max_failed") else None,
        max_failed_ratio=message.max_failed_ratio if message.HasField("max_failed_ratio") else None,
    )


def _loop_from_pb(message: pb.LoopPolicy) -> Loop:
    return Loop(
        condition=message.condition,
        max_turns=message.max_turns,
        carry=tuple((each.input, each.output) for each in message.carry),
        at_max=FAIL if message.at_max == pb.LOOP_END_FAIL else FINISH,
    )


def add_constructs(message: pb.WorkflowNode, node: WorkflowNode) -> None:
    """Encode the optional parts of a place that are set."""
    if node.condition:
        message.condition = node.condition
    if node.compensates:
        message.compensates = node.compensates
    if node.continues:
        message.on_failure = pb.FAILURE_POLICY_CONTINUE
    if node.phase == FINALLY:
        message.phase = pb.NODE_PHASE_FINALLY
    if node.construct is not None:
        _add_construct(message, node.construct)
    if node.join is not None:
        message.join.kind = _JOINS[node.join.policy]
        message.join.count = node.join.count
    if node.mapped is not None:
        _add_map(message.for_each, node.mapped)
    if node.loop is not None:
        _add_loop(message.repeat, node.loop)
    _add_how(message, node)


def _add_how(message: pb.WorkflowNode, node: WorkflowNode) -> None:
    for name, attribute in _SPANS_MS:
        span_ms = getattr(node, attribute)
        if span_ms is not None:
            getattr(message, name).FromMilliseconds(span_ms)
    if node.reuse:
        message.reuse = isolation_pb2.Reuse.Value(f"REUSE_{node.reuse.upper()}")
    if node.runner is not None:
        message.runner.SetInParent()
        _add_requirements(message.runner, node.runner)
    if node.network:
        message.network = isolation_pb2.Network.Value(f"NETWORK_{node.network.upper()}")
    message.egress_hosts.extend(node.egress_hosts)
    message.concurrency = node.concurrency


def _add_requirements(message: pb.RunnerRequirements, of: Requirements) -> None:
    if of.isolation:
        message.isolation = isolation_pb2.Tier.Value(f"TIER_{of.isolation}")
    message.labels.update(of.labels)
    message.cpus, message.memory_bytes, message.gpus = of.cpus, of.memory_bytes, of.gpus


def _add_construct(message: pb.WorkflowNode, construct: Construct) -> None:
    match construct:
        case Choice():
            message.choice.default_branch = construct.default or ""
            for each in construct.branches:
                message.choice.branches.add(name=each.name, condition=each.condition)
        case Sleep():
            message.sleep.SetInParent()
        case SubWorkflow():
            message.sub_workflow.SetInParent()
        case Signal():
            _add_wait(message.signal, construct)
            message.signal.default_json = construct.default_json or ""
        case Approval():
            _add_wait(message.approval, construct)


def _add_wait(message: pb.NodeSignal | pb.NodeApproval, of: Signal | Approval) -> None:
    message.name = of.name
    message.type_json, message.type_expression = _type(of)
    if of.timeout_ms is not None:
        message.wait_timeout.FromMilliseconds(of.timeout_ms)


def _type(of: Signal | Approval) -> tuple[str, str]:
    # A type that is not parsed yet is encoded as written, for the contract's rules.
    return (of.type_text, "") if of.type is None else (to_text(of.type), expression(of.type))


def _add_map(message: pb.MapPolicy, of: Map) -> None:
    message.input = of.input
    message.depth = of.depth
    for name in ("max_in_flight", "max_failed", "max_failed_ratio"):
        if getattr(of, name) is not None:
            setattr(message, name, getattr(of, name))


def _add_loop(message: pb.LoopPolicy, of: Loop) -> None:
    message.condition = of.condition
    message.max_turns = of.max_turns
    message.at_max = pb.LOOP_END_FAIL if of.at_max == FAIL else pb.LOOP_END_FINISH
    for name, output in of.carry:
        message.carry.add(input=name, output=output)
