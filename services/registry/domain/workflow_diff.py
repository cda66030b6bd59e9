"""Differences between two versions of a workflow, by part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeVar

from qflow.types import Type, expression, from_json

from services.registry.domain.definition import (
    Connection,
    Definition,
    Parameter,
    Retry,
    WorkflowInput,
    WorkflowNode,
    WorkflowOutput,
)
from services.registry.domain.node_diff import Change, changed, cut
from services.registry.domain.stored_constructs import constructs_to_json

CHANGES_MAX: Final = 10_000

T = TypeVar("T")


def workflow_diff(before: Definition, after: Definition) -> Iterator[Change]:
    """Compare two definitions: nodes, inputs and outputs by name, connections by their ends."""
    yield from changed("settings.timeout_ms", _span(before.timeout_ms), _span(after.timeout_ms))
    yield from _each("inputs", _by_name(before.inputs), _by_name(after.inputs), _input_text, _input)
    parameters = _by_name(before.parameters), _by_name(after.parameters)
    yield from _each("parameters", *parameters, _input_text, _parameter)
    yield from _each("nodes", _nodes(before), _nodes(after), _node_text, _node)
    yield from _each("connections", _edges(before), _edges(after), _edge_text, _edge)
    yield from _each(
        "outputs", _by_name(before.outputs), _by_name(after.outputs), _output_text, _output
    )


Compare = Callable[[str, T, T], Iterator[Change]]


def _each(
    kind: str,
    old: Mapping[str, T],
    new: Mapping[str, T],
    shown: Callable[[T], str],
    compare: Compare[T],
) -> Iterator[Change]:
    for name in dict.fromkeys([*old, *new]):
        place = f"{kind}.{name}"
        if name not in new:
            yield Change("removed", place, cut(shown(old[name])))
        elif name not in old:
            yield Change("added", place, after=cut(shown(new[name])))
        elif old[name] != new[name]:
            yield from compare(place, old[name], new[name])


Named = TypeVar("Named", WorkflowInput, WorkflowOutput, Parameter)


def _by_name(parts: tuple[Named, ...]) -> dict[str, Named]:
    return {each.name: each for each in parts}


def _nodes(of: Definition) -> dict[str, WorkflowNode]:
    return {each.id: each for each in of.nodes}


def _edges(of: Definition) -> dict[str, Connection]:
    return {_ends(each): each for each in of.connections}


def _ends(edge: Connection) -> str:
    """Return the name of an edge: `a.result>b.x`, `.n>a.x` from an input, `a>b (branch yes)`."""
    kind = f" ({edge.kind} {edge.branch}".rstrip() + ")" if edge.kind else ""
    return f"{_end(edge.source, edge.source_output)}>{_end(edge.target, edge.target_input)}{kind}"


def _end(node: str, port: str) -> str:
    return f"{node}.{port}" if port else node


def _input_text(of: WorkflowInput | Parameter) -> str:
    default = "" if of.default_json is None else f" = {of.default_json}"
    return f"{_type(of.type)}{default}"


def _input(
    place: str, old: WorkflowInput | Parameter, new: WorkflowInput | Parameter
) -> Iterator[Change]:
    yield from changed(f"{place}.type", _type(old.type), _type(new.type))
    yield from changed(f"{place}.default", old.default_json or "none", new.default_json or "none")


def _parameter(place: str, old: Parameter, new: Parameter) -> Iterator[Change]:
    yield from _input(place, old, new)
    yield from changed(f"{place}.description", old.description, new.description)


def _node_text(of: WorkflowNode) -> str:
    kind = "" if of.construct is None else f"{of.kind} "
    return f"{kind}{of.node_id} {_version(of)}"


def _node(place: str, old: WorkflowNode, new: WorkflowNode) -> Iterator[Change]:
    yield from changed(f"{place}.node_id", str(old.node_id), str(new.node_id))
    yield from changed(f"{place}.version", _version(old), _version(new))
    literals = dict(old.literals), dict(new.literals)
    yield from _each(f"{place}.literals", *literals, str, changed)
    variables = dict(old.variables), dict(new.variables)
    yield from _each(f"{place}.variables", *variables, str, changed)
    parameters = dict(old.parameters), dict(new.parameters)
    yield from _each(f"{place}.parameters", *parameters, str, changed)
    yield from changed(f"{place}.retry", _retry(old.retry), _retry(new.retry))
    yield from changed(f"{place}.timeout_ms", str(old.timeout_ms), str(new.timeout_ms))
    yield from changed(f"{place}.memory_bytes", str(old.memory_bytes), str(new.memory_bytes))
    caps = flat(old.limits.as_json()), flat(new.limits.as_json())
    yield from _each(f"{place}.limits", *caps, str, changed)
    parts = flat(constructs_to_json(old)), flat(constructs_to_json(new))
    yield from _each(place, *parts, str, changed)


def flat(stored: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten stored JSON to texts by path; a type is one part."""
    found: dict[str, str] = {}
    for key, value in stored.items():
        if key == "type" and isinstance(value, dict):
            found[f"{prefix}{key}"] = expression(from_json(value))
        elif isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.") or {f"{prefix}{key}": "yes"}
        elif isinstance(value, list):
            rows = {str(at): each for at, each in enumerate(value)}
            found |= flat(rows, f"{prefix}{key}.")
        elif value is not None:
            found[f"{prefix}{key}"] = str(value)
    return found


def _version(of: WorkflowNode) -> str:
    return f"version {of.version}" if of.version else "current version"


def _retry(of: Retry | None) -> str:
    if of is None:
        return "never"
    return (
        f"{of.max_retries} times, {of.initial_delay_ms} ms growing by {of.factor:g}"
        f" to {of.max_delay_ms} ms, {of.jitter:g} of it drawn{_errors(of)}"
    )


def _errors(of: Retry) -> str:
    only = f", only after {', '.join(of.retryable)}" if of.retryable else ""
    return only + (f", never after {', '.join(of.non_retryable)}" if of.non_retryable else "")


def _edge_text(of: Connection) -> str:
    return of.conversion or of.verdict


def _edge(place: str, old: Connection, new: Connection) -> Iterator[Change]:
    yield from changed(f"{place}.conversion", old.conversion or "none", new.conversion or "none")
    yield from changed(f"{place}.verdict", old.verdict, new.verdict)
    yield from changed(f"{place}.absent", old.absent or "default", new.absent or "default")


def _output_text(of: WorkflowOutput) -> str:
    return f"{of.node}.{of.output}"


def _output(place: str, old: WorkflowOutput, new: WorkflowOutput) -> Iterator[Change]:
    yield from changed(f"{place}.source", _output_text(old), _output_text(new))
    yield from changed(f"{place}.type", _type(old.type), _type(new.type))


def _type(of: Type | None) -> str:
    return "unknown" if of is None else expression(of)


def _span(of: int | None) -> str:
    return "none" if of is None else str(of)
