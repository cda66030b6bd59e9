"""Check edges: which ends each kind may connect, and whether their values fit."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import replace
from typing import Final

from qflow.types import LOSSLESS, Type, VerdictKind, expression

from services.kit.graph_types import ERROR_TYPE, element_of
from services.registry.domain.checks.places import input_of
from services.registry.domain.checks.state import Check
from services.registry.domain.constructs import (
    BRANCH,
    DATA,
    ERROR_OUTPUT,
    FAILURE,
    FINALLY,
    ORDER,
    Choice,
    SubWorkflow,
)
from services.registry.domain.definition import (
    ERROR,
    INFO,
    Connection,
    Finding,
    InputSpec,
    WorkflowNode,
)

_AS_IT_STANDS: Final = frozenset({VerdictKind.EXACT, VerdictKind.WIDENING})
_COUNTER_EXAMPLE_CHARS_MAX: Final = 256
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def ends(check: Check) -> None:
    """Collect the edges whose ends exist; they form the graph."""
    seen: dict[tuple[str, ...], int] = {}
    apart = {each.id for each in check.definition.nodes if each.phase or each.compensates}
    for index, edge in enumerate(check.definition.connections):
        place = f"connections[{index}]"
        first = seen.setdefault(edge.ends, index)
        if first != index:
            message = f"is the same edge as connections[{first}]"
            check.error(place, "DUPLICATE_EDGE", message)
        elif _is_plain(check, edge, apart):
            if check.feed(edge.target, edge.target_input, place):
                check.join(index, edge)
        elif _joins(check, edge, place):
            check.join(index, edge)


def _is_plain(check: Check, edge: Connection, apart: Container[str]) -> bool:
    """Return whether an edge carries a value between two existing ports, as nearly all do.

    This is a fast path; `_joins` checks all other edges and reports what is wrong with them.
    """
    if edge.kind or edge.branch or edge.source == edge.target or edge.target in apart:
        return False
    target = check.seen.get(edge.target)
    if target is None or target.is_open or edge.target_input not in target.inputs:
        return False
    if not edge.source:
        return bool(edge.source_output)
    source = check.seen.get(edge.source)
    return source is not None and edge.source_output in source.outputs and edge.source not in apart


def _joins(check: Check, edge: Connection, place: str) -> bool:
    sound = True
    if edge.target not in check.places or (edge.source and edge.source not in check.places):
        for part, name in (("source_node", edge.source), ("target_node", edge.target)):
            if name not in check.places and (name or part == "target_node"):
                message = f"there is no node {name} in this workflow"
                check.error(f"{place}.{part}", "UNKNOWN_NODE", message)
                sound = False
    if sound and edge.source == edge.target:
        message = f"{edge.source} feeds itself"
        check.error(place, "SELF_EDGE", message, "a node runs once, when its inputs are there")
        return False
    if not sound:
        return False
    return _shape(check, edge, place) and _phases(check, edge, place) and _ports(check, edge, place)


def _shape(check: Check, edge: Connection, place: str) -> bool:
    """Check that an edge has exactly the parts that its kind requires."""
    sound = True
    if edge.kind != DATA and not edge.source:
        message = "an edge that carries no value comes from a node"
        check.error(f"{place}.source_node", "UNKNOWN_NODE", message)
        return False
    with_ports = edge.source_output or edge.target_input
    if edge.kind in (ORDER, BRANCH) and with_ports:
        message = f"an edge of the kind {edge.kind} carries nothing and has no ports"
        check.error(place, "EDGE_WITH_PORTS", message, "leave source_output and target_input empty")
        sound = False
    if edge.kind == FAILURE and with_ports:
        if edge.source_output != ERROR_OUTPUT:
            message = f"a failure carries {ERROR_OUTPUT} alone, or nothing"
            check.error(f"{place}.source_output", "UNKNOWN_OUTPUT", message)
            sound = False
        elif not edge.target_input:
            check.error(f"{place}.target_input", "PORT_MISSING", "names no input of the target")
            sound = False
    if edge.kind == DATA:
        for part in ("source_output", "target_input"):
            if not getattr(edge, part):
                message = "is empty, and the edge carries a value"
                check.error(f"{place}.{part}", "PORT_MISSING", message)
                sound = False
    if edge.conversion and not edge.is_value:
        message = "stands on an edge that carries nothing"
        check.error(f"{place}.conversion", "CONVERSION_UNUSED", message)
        sound = False
    return _branch(check, edge, place) and sound


def _branch(check: Check, edge: Connection, place: str) -> bool:
    if not edge.is_branch:
        if edge.branch:
            message = "names a branch, and is no edge of the kind branch"
            check.error(f"{place}.branch", "UNKNOWN_BRANCH", message)
        return not edge.branch
    construct = _node(check, edge.source).construct
    if not isinstance(construct, Choice):
        message = f"{edge.source} is no choice, and has no branches"
        check.error(f"{place}.source_node", "NOT_A_CHOICE", message)
        return False
    names = dict.fromkeys(each.name for each in construct.branches)
    if construct.default:
        names[construct.default] = None
    if edge.branch not in names:
        message = f"{edge.source} has no branch {edge.branch}"
        hint = f"it has {', '.join(list(names)[:10])}" if names else "it has no branches"
        check.error(f"{place}.branch", "UNKNOWN_BRANCH", message, hint)
    return edge.branch in names


def _phases(check: Check, edge: Connection, place: str) -> bool:
    """Check that finally places and compensations neither delay nor wait for main places."""
    if not edge.source:
        return True
    source, target = _node(check, edge.source), _node(check, edge.target)
    if not (source.phase or target.phase or source.compensates or target.compensates):
        return True
    code = message = hint = ""
    if source.phase == FINALLY and target.phase != FINALLY:
        code = "FINALLY_FEEDS_MAIN"
        message = f"{edge.source} runs after everything else, and {edge.target} waits for it"
        hint = "remove the edge, or let both run in the phase finally"
    elif target.phase == FINALLY and source.is_main and edge.kind in (BRANCH, FAILURE):
        code = "FINALLY_CONDITIONAL"
        message = f"{edge.target} runs whatever happened, and this edge says when"
        hint = "use an edge that carries a value or an order, and a condition"
    elif source.compensates:
        code = "COMPENSATION_FEEDS"
        message = f"{edge.source} runs only to undo {source.compensates}; nothing waits for it"
    elif target.compensates and (edge.source != target.compensates or edge.kind != DATA):
        code = "COMPENSATION_SOURCE"
        message = f"{edge.target} undoes {target.compensates}, and reads its outputs alone"
        hint = "feed it by inputs of the workflow besides"
    if code:
        check.error(place, code, message, hint)
    return not code


def _node(check: Check, name: str) -> WorkflowNode:
    return check.named[name]


def _ports(check: Check, edge: Connection, place: str) -> bool:
    if not edge.is_value:
        return True
    sound = True
    source = check.signature_of(edge.source) if edge.source and edge.kind == DATA else None
    if source is not None and edge.source_output not in source.outputs:
        where = f"{place}.source_output"
        check.unknown(where, "UNKNOWN_OUTPUT", edge.source, edge.source_output, source.outputs)
        sound = False
    target = check.signature_of(edge.target)
    if target is not None and input_of(target, edge.target_input) is None:
        where = f"{place}.target_input"
        check.unknown(where, "UNKNOWN_INPUT", edge.target, edge.target_input, target.inputs)
        sound = False
    elif target is not None and target.is_open and not _NAME.fullmatch(edge.target_input):
        message = f"{edge.target_input} is no name that a condition can read"
        hint = "use letters, digits and underscores"
        check.error(f"{place}.target_input", "INPUT_NAME_INVALID", message, hint)
        sound = False
    return check.feed(edge.target, edge.target_input, place) and sound


def verdicts(check: Check, inputs: Mapping[str, Type]) -> tuple[Connection, ...]:
    """Compute the verdict of every edge that carries a value, and insert lossless conversions."""
    connections = list(check.definition.connections)
    for index in check.sound:
        edge = connections[index]
        if edge.kind and not edge.is_value:
            continue
        source = source_type(check, edge, inputs)
        target = check.seen[edge.target]
        spec = input_of(target, edge.target_input) if target is not None else None
        if source is not None and spec is not None:
            connections[index] = _typed(check, edge, index, source, spec)
    return tuple(connections)


def source_type(check: Check, edge: Connection, inputs: Mapping[str, Type]) -> Type | None:
    """Return the type that an edge takes from its source; None if it is not known."""
    if not edge.source:
        return inputs.get(edge.source_output)
    if edge.kind == FAILURE:
        return ERROR_TYPE
    signature = check.seen[edge.source]
    return signature.outputs.get(edge.source_output) if signature is not None else None


def _typed(check: Check, edge: Connection, index: int, source: Type, spec: InputSpec) -> Connection:
    """Compute the verdict of an edge; for a mapped input, the list's elements are compared."""
    target = spec.type
    mapped = check.named[edge.target].mapped
    of = source
    if mapped is not None and mapped.input == edge.target_input:
        element = element_of(source, mapped.depth)
        wanted = element_of(target, mapped.depth)
        if element is not None and wanted is not None:
            of, target = element, wanted
        elif edge.conversion or check.judge(source, target, "").kind not in _AS_IT_STANDS:
            levels = f"{mapped.depth} levels of lists" if mapped.depth > 1 else "a list"
            message = f"{edge.target} goes through {levels}, and is fed {expression(source)}"
            place = f"connections[{index}]"
            check.error(place, "MAP_NOT_A_LIST", message, "feed it a list, or remove for_each")
            return replace(edge, verdict=VerdictKind.REFUTED.value)
    judged = _judged(check, edge, index, of, target)
    if judged.conversion and (of is not source or not _is_stored(check, edge)):
        return replace(judged, source_type=of)
    return judged


def _is_stored(check: Check, edge: Connection) -> bool:
    """Return whether the source's own version declares the type that the conversion reads."""
    if not edge.source:
        return True
    node = _node(check, edge.source)
    plain = node.construct is None or isinstance(node.construct, SubWorkflow)
    return plain and node.mapped is None and edge.kind == DATA


def _judged(check: Check, edge: Connection, index: int, source: Type, target: Type) -> Connection:
    said, opaque, kind, is_plain = check.judge_known(source, target, edge.conversion)
    if is_plain:
        return Connection(
            source=edge.source,
            source_output=edge.source_output,
            target=edge.target,
            target_input=edge.target_input,
            conversion=said.method,
            verdict=kind,
            kind=edge.kind,
        )
    place = f"connections[{index}]"
    if opaque is not None:
        message = f"values of {opaque} are not carried between nodes"
        hint = "pass plain values or records, or join the two nodes into one"
        check.error(place, "TYPE_NOT_CARRIED", message, hint)
        return replace(edge, verdict=VerdictKind.REFUTED.value)
    if not said.fits and edge.conversion in LOSSLESS:
        # It was inserted when the nodes had other types: choose a conversion again.
        said, _, kind, _ = check.judge_known(source, target, "")
    if not said.fits:
        message = said.reason
        if said.counter_example is not None:
            message += f" (for example {said.counter_example[:200]})"
        example = _shown_whole(said.counter_example)
        check.findings.append(
            Finding(ERROR, place, "TYPE_REFUTED", message, "", example, said.mended_by)
        )
    elif not said.lossless:
        message = f"{said.method} may lose something or fail at run time"
        check.add(INFO, place, "CONVERSION_LOSSY", message)
    return replace(
        edge,
        conversion=said.method,
        verdict=kind,
        branch="",
        absent="",
        source_type=None,
        counter_example=_shown_whole(said.counter_example),
    )


def _shown_whole(counter_example: str | None) -> str:
    """Return a counter-example short enough for a response; a part of it would not be JSON."""
    if counter_example is None or len(counter_example) > _COUNTER_EXAMPLE_CHARS_MAX:
        return ""
    return counter_example
