"""means that the place is pinned, 0 that it floats."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from qflow.types import to_text

from services.registry.domain.definition import (
    MEMORY_BYTES_DEFAULT,
    TIMEOUT_MS_DEFAULT,
    Connection,
    Definition,
    Parameter,
    Retry,
    WorkflowInput,
    WorkflowNode,
)
from services.registry.domain.document import (
    Number,
    Plain,
)
from services.registry.domain.exact_values import exact
from services.registry.domain.exchange_constructs import written_constructs
from services.registry.domain.yaml_text import Inline

FORMAT: Final = "qflow.workflow/1"
_DIGEST: Final = "sha256:"
_NOT_IN_KEYS: Final = re.compile(r"[^A-Za-z0-9]+")
_KEY_CHARS_MAX: Final = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A Python node as described in a document; `digest` is that of its code.

    A description of None means the one from the code.
    """

    name: str
    description: str | None = None
    python_version: str
    main_function: str
    digest: str
    code: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A workflow with its nodes by key.

    A place's `node_id` in the definition is the `placeholder` of its key's index in `sources`;
    version
    """

    name: str
    description: str
    definition: Definition
    sources: Mapping[str, Source]


def placeholder(index: int) -> UUID:
    """Return the id that stands for the node with this index in a bundle."""
    return UUID(int=index + 1)


def digest_of(code: str) -> str:
    """Return the digest that identifies a source."""
    return _DIGEST + hashlib.sha256(code.encode()).hexdigest()


def bundled(
    name: str,
    description: str,
    definition: Definition,
    found: Mapping[tuple[UUID, int], Source],
) -> Bundle:
    """Bundle a workflow with its nodes; nodes with equal content share one key."""
    keys: dict[Source, tuple[str, int]] = {}
    taken: set[str] = set()
    nodes = []
    for node in definition.nodes:
        if node.construct is not None:
            nodes.append(node)  # has no source, so it stays as it is
            continue
        source = found[node.node_id, node.version]
        if source not in keys:
            keys[source] = _key(source, taken), len(keys)
        version = 1 if node.version else 0
        nodes.append(replace(node, node_id=placeholder(keys[source][1]), version=version))
    return Bundle(
        name=name,
        description=description,
        definition=replace(definition, nodes=tuple(nodes)),
        sources={key: source for source, (key, _) in keys.items()},
    )


def _key(source: Source, taken: set[str]) -> str:
    plain_name = _NOT_IN_KEYS.sub("_", source.name).strip("_").lower()[:_KEY_CHARS_MAX]
    stem = plain_name or source.main_function[:_KEY_CHARS_MAX]
    key, number = stem, 1
    while key in taken:
        number += 1
        key = f"{stem}_{number}"
    taken.add(key)
    return key


def written(bundle: Bundle) -> Plain:
    """Return the document of a bundle, in canonical order."""
    definition = bundle.definition
    keys = list(bundle.sources)
    document: dict[str, Plain] = {"format": FORMAT, "name": bundle.name}
    if bundle.description:
        document["description"] = bundle.description
    if definition.timeout_ms is not None:
        document["settings"] = {"timeout_ms": definition.timeout_ms}
    if definition.inputs:
        document["inputs"] = {each.name: _input(each) for each in definition.inputs}
    if definition.parameters:
        document["parameters"] = {each.name: _input(each) for each in definition.parameters}
    document["nodes"] = {each.id: _node(each, keys) for each in definition.nodes}
    if definition.connections:
        document["connections"] = [_connection(each) for each in definition.connections]
    if definition.outputs:
        document["outputs"] = {
            each.name: f"{each.node}.{each.output}" for each in definition.outputs
        }
    if bundle.sources:
        document["sources"] = {key: _source(each) for key, each in bundle.sources.items()}
    return document


def _input(each: WorkflowInput | Parameter) -> Plain:
    shown = Inline()
    if each.type is not None:
        shown["type"] = exact(to_text(each.type))
    if isinstance(each, Parameter) and each.description:
        shown["description"] = each.description
    if each.default_json is not None:
        shown["default"] = exact(each.default_json)
    return shown


def _node(node: WorkflowNode, keys: Sequence[str]) -> Plain:
    shown: dict[str, Plain] = {}
    if node.construct is None:
        shown["source"] = keys[node.node_id.int - 1]
        if node.version:
            shown["pinned"] = True
    if node.literals:
        shown["literals"] = {name: exact(text) for name, text in sorted(node.literals)}
    for kind, names in (("variables", node.variables), ("parameters", node.parameters)):
        if names:
            shown[kind] = Inline(sorted(names))
    if node.retry is not None:
        shown["retry"] = _retry(node.retry)
    shown |= written_constructs(node)
    if node.timeout_ms != TIMEOUT_MS_DEFAULT:
        shown["timeout_ms"] = node.timeout_ms
    if node.memory_bytes != MEMORY_BYTES_DEFAULT:
        shown["memory_bytes"] = node.memory_bytes
    if limits := node.limits.as_json():
        shown["limits"] = Inline(limits)
    fits_a_line = len(shown) == 1 and all(isinstance(each, str | Inline) for each in shown.values())
    return Inline(shown) if fits_a_line else shown


def _retry(retry: Retry) -> Plain:
    shown = Inline(
        max_retries=retry.max_retries,
        initial_delay_ms=retry.initial_delay_ms,
        factor=Number(_real(retry.factor)),
        max_delay_ms=retry.max_delay_ms,
        jitter=Number(_real(retry.jitter)),
    )
    if retry.retryable:
        shown["retryable"] = list(retry.retryable)
    if retry.non_retryable:
        shown["non_retryable"] = list(retry.non_retryable)
    return shown


def _real(value: float) -> str:
    """Return a number's text as a float's: the tables store 2 or 2.0 as given."""
    return repr(float(value))


def _connection(edge: Connection) -> Plain:
    shown = Inline()
    if edge.source:
        shown["from"] = _end(edge.source, edge.source_output)
    else:
        shown["input"] = edge.source_output
    shown["to"] = _end(edge.target, edge.target_input)
    if edge.conversion:
        shown["conversion"] = edge.conversion
    if edge.is_branch:
        shown["branch"] = edge.branch
    elif edge.kind:
        shown["kind"] = edge.kind
    return shown


def _end(node: str, port: str) -> str:
    return f"{node}.{port}" if port else node


def _source(source: Source) -> Plain:
    shown: dict[str, Plain] = {"name": source.name}
    if source.description is not None:
        shown["description"] = source.description
    shown["python_version"] = source.python_version
    shown["main_function"] = source.main_function
    if source.code is None:
        shown["digest"] = source.digest
    else:
        shown["code"] = source.code
    return shown
