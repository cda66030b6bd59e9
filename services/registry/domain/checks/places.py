"""Check the places of a graph: their nodes, their settings and their literals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from qflow.types import contains_named

from services.kit.graph_types import ANY_OR_NONE, lists_of, mapped_output
from services.registry.domain import builtins
from services.registry.domain.checks.state import Check
from services.registry.domain.constructs import Map, SubWorkflow
from services.registry.domain.definition import (
    ERROR,
    WARNING,
    InputSpec,
    Signature,
    WorkflowNode,
)
from services.registry.domain.setting_table import outside

_OPEN_INPUT: Final = InputSpec(type=ANY_OR_NONE, required=False)


def settings(check: Check) -> None:
    """Check all settings against the table, whatever the origin of the definition."""
    for setting, fault in outside(check.definition.settings()):
        check.error(setting.name, "SETTING_OUT_OF_BOUNDS", fault)
    within: set[tuple[object, ...]] = set()  # most nodes share their settings with another
    for index, node in enumerate(check.definition.nodes):
        if _settings_of(node) in within:
            continue
        _delays(check, node, f"nodes[{index}].retry")
        faults = list(outside(node.settings()))
        for setting, fault in faults:
            check.error(f"nodes[{index}].{setting.name}", "SETTING_OUT_OF_BOUNDS", fault)
        if not faults:
            within.add(_settings_of(node))


def _delays(check: Check, node: WorkflowNode, place: str) -> None:
    """Warn about an initial retry delay that exceeds the longest one."""
    retry = node.retry
    if retry is not None and retry.max_retries and retry.initial_delay_ms > retry.max_delay_ms:
        message = (
            f"{node.id} never waits its initial_delay of {retry.initial_delay_ms / 1000:g} s: "
            f"max_delay allows {retry.max_delay_ms / 1000:g} s"
        )
        check.add(WARNING, place, "RETRY_DELAYS_CROSSED", message, "raise max_delay")


def _settings_of(node: WorkflowNode) -> tuple[object, ...]:
    """Return a key for a node's settings; compares compound parts by identity, which is fast."""
    parts = (id(node.limits), id(node.runner), id(node.retry))
    spans = (node.timeout_ms, node.queue_timeout_ms, node.total_timeout_ms, node.cache_ttl_ms)
    rest = (node.heartbeat_timeout_ms, node.memory_bytes, node.network, node.egress_hosts)
    return (*parts, *spans, *rest, node.concurrency)


def places(check: Check) -> None:
    """Resolve the signature of each place, and check its literals."""
    made: dict[tuple[int, Map], Signature] = {}
    # Signatures of Python nodes without findings, since most are used at many places. Keyed by the
    # identity of the UUID, which is faster than its hash; definitions share one object per node.
    right: dict[tuple[int, int], Signature] = {}
    for index, node in enumerate(check.definition.nodes):
        place = f"nodes[{index}]"
        key = (id(node.node_id), node.version)
        inner = right.get(key) if node.construct is None else None
        is_right = inner is not None
        if inner is None:
            inner = _standing(check, node)
        seen = inner if node.mapped is None else _seen(inner, node.mapped, made)
        check.inner.append(inner)
        check.known.append(seen)
        first = check.places.setdefault(node.id, index)
        if first != index:
            message = f"{node.id} is the id of nodes[{first}] already"
            check.error(f"{place}.id", "DUPLICATE_NODE_ID", message)
        else:
            check.named[node.id], check.seen[node.id] = node, seen
        if not is_right:
            is_right = _stands(check, node, seen, place) and node.construct is None
            if is_right and inner is not None:
                right[key] = inner
        if seen is not None and (node.literals or node.variables or node.parameters):
            _written(check, node, seen, place, twin=first != index)


def _standing(check: Check, node: WorkflowNode) -> Signature | None:
    if node.construct is not None and not isinstance(node.construct, SubWorkflow):
        return builtins.signature_of(node.construct)
    found = check.signatures.get((node.node_id, node.version))
    if found is not None and found.is_workflow != isinstance(node.construct, SubWorkflow):
        return None
    return found


def _seen(
    inner: Signature | None, mapped: Map, made: dict[tuple[int, Map], Signature]
) -> Signature | None:
    """Return the signature as edges see it: a map takes lists of elements and returns lists."""
    if inner is None:
        return None
    key = (id(inner), mapped)
    if key not in made:
        inputs = dict(inner.inputs)
        if mapped.input in inputs:
            of = lists_of(inputs[mapped.input].type, mapped.depth)
            inputs[mapped.input] = InputSpec(type=of, required=True)
        outputs = {
            name: mapped_output(of, mapped.depth, tolerates=mapped.tolerates)
            for name, of in inner.outputs.items()
        }
        made[key] = replace(inner, inputs=inputs, outputs=outputs)
    return made[key]


def input_of(signature: Signature, name: str) -> InputSpec | None:
    """Return the spec of an input, also for a node that accepts any."""
    if signature.is_open:
        return _OPEN_INPUT
    return signature.inputs.get(name)


def _stands(check: Check, node: WorkflowNode, signature: Signature | None, place: str) -> bool:
    """Check that a node exists and that its outputs can be carried; returns whether both hold."""
    before = len(check.findings)
    _identity(check, node, place)
    if signature is None:
        _absent(check, node, place)
        return False
    for name, of in signature.outputs.items():
        opaque = contains_named(of)
        if opaque is not None:
            message = f"the output {name} holds {opaque}, which cannot leave a node"
            check.add(WARNING, place, "OUTPUT_NOT_CARRIED", message, "return plain values")
    return len(check.findings) == before


def _written(
    check: Check, node: WorkflowNode, signature: Signature, place: str, *, twin: bool
) -> None:
    """Check the literals, variables and parameters of a place."""
    for index, (name, text) in enumerate(node.literals):
        here = f"{place}.literals[{index}]"
        spec = input_of(signature, name)
        if spec is None:
            check.unknown(f"{here}.input", "UNKNOWN_INPUT", node.id, name, signature.inputs)
        # A place with a duplicate id is reported as such, not as a second writer.
        elif twin or check.feed(node.id, name, here):
            check.value(f"{here}.value_json", spec.type, text)
    _bound(check, node, signature, place, twin=twin)


def _identity(check: Check, node: WorkflowNode, place: str) -> None:
    """Check that a built-in node has both its construct and its own id."""
    described = builtins.BY_KIND.get(node.kind)
    if described is None:
        if node.node_id in builtins.BY_ID:
            name = builtins.BY_ID[node.node_id].name
            message = f"{name} is a built-in node, and the place does not say what it does there"
            kind = builtins.BY_ID[node.node_id].kind
            check.error(f"{place}.node_id", "CONSTRUCT_MISSING", message, f"set {kind}")
    elif node.node_id != described.id:
        message = f"the id of the built-in node {described.name} is {described.id}"
        check.error(f"{place}.node_id", "BUILTIN_MISMATCH", message, "leave node_id empty")
    elif node.version > 1:
        message = f"the built-in node {described.name} has one version"
        check.error(f"{place}.version", "NODE_VERSION_NOT_FOUND", message)


def _absent(check: Check, node: WorkflowNode, place: str) -> None:
    if node.node_id in builtins.BY_ID:
        return  # already reported
    is_workflow = isinstance(node.construct, SubWorkflow)
    what, code = ("workflow", "SUB_WORKFLOW") if is_workflow else ("node", "NODE")
    message = f"there is no {what} {node.node_id}"
    code, part = f"{code}_NOT_FOUND", "node_id"
    if node.version:
        code, part = code.replace("_NOT", "_VERSION_NOT"), "version"
        message += f" with a version {node.version}"
    check.add(ERROR, f"{place}.{part}", code, f"{message} that you may read")


def _bound(
    check: Check, node: WorkflowNode, signature: Signature, place: str, *, twin: bool
) -> None:
    inputs: Mapping[str, InputSpec] = signature.inputs
    for kind, pairs, fit in (
        ("variables", node.variables, check.bindings.variable),
        ("parameters", node.parameters, check.bindings.parameter),
    ):
        for index, (name, source) in enumerate(pairs):
            here = f"{place}.{kind}[{index}]"
            spec = input_of(signature, name)
            if spec is None:
                check.unknown(f"{here}.input", "UNKNOWN_INPUT", node.id, name, inputs)
            elif twin or check.feed(node.id, name, here):
                fit(here, source, spec.type)
