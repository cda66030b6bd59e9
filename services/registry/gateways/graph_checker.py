"""Check definitions: small ones in this process, large ones in a bounded child process.

The child is `python -m services.registry.gateways.graph_checker`. It reads one definition with its
signatures from standard input, and writes the result to standard output.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Final
from uuid import UUID

from qflow.types import Type, from_json, to_json

from services.kit.errors import ResourceExhausted
from services.registry.domain.constructs import Approval, Choice, Signal
from services.registry.domain.definition import (
    Checked,
    Definition,
    Finding,
    Signature,
    Signatures,
    WorkflowNode,
)
from services.registry.domain.graph import check
from services.registry.domain.stored import (
    definition_from_json,
    definition_to_json,
    signature_from_texts,
    with_texts,
)
from services.registry.domain.type_size import type_size
from services.registry.gateways import bounded

# Bounds for a check in the event loop: each takes up to about 20 ms. With more parts but types of
# bounded size, the check runs in a thread so that other calls proceed; starting a child takes
# longer.
_INLINE_PARTS_MAX: Final = 1_000
_THREAD_PARTS_MAX: Final = 4_000
_INLINE_SIGNATURES_CHARS_MAX: Final = 128 * 1024
_INLINE_VALUES_CHARS_MAX: Final = 16 * 1024
_INLINE_COMPARISONS_MAX: Final = 30_000
# The shortest value in a JSON text with its separator; each value is compared with its type.
_VALUE_CHARS_MIN: Final = 2


class GraphChecker:
    """Decides where a definition is checked; at most two child processes at once."""

    def __init__(self) -> None:
        self._child = bounded.Bounded(__name__)

    async def check(
        self,
        definition: Definition,
        stored: Mapping[tuple[UUID, int], Mapping[str, str] | None],
        variables: Mapping[str, Type] = MappingProxyType({}),
    ) -> Checked:
        """Check a definition; `stored` has the rows of the node versions that it refers to."""
        if _is_small(definition, stored):
            signatures = _signatures(stored)
            if _comparisons(definition, signatures, variables) <= _INLINE_COMPARISONS_MAX:
                if len(definition.nodes) + len(definition.connections) <= _INLINE_PARTS_MAX:
                    return check(definition, signatures, variables)
                return await asyncio.to_thread(check, definition, signatures, variables)
        request = {
            "definition": definition_to_json(definition),
            "type_texts": [each.type_text for each in definition.inputs],
            "parameter_texts": [each.type_text for each in definition.parameters],
            "variables": {name: to_json(of) for name, of in variables.items()},
            "signatures": [
                [str(node_id), version, row] for (node_id, version), row in stored.items()
            ],
        }
        answer = await self._child.ask(request)
        if answer is None:
            raise ResourceExhausted(
                "DEFINITION_TOO_COMPLEX",
                "the definition takes too long to check; use fewer edges or plainer types",
            )
        return Checked(
            definition_from_json(answer["definition"]),
            tuple(
                Finding(**{**each, "mended_by": tuple(each["mended_by"])})
                for each in answer["findings"]
            ),
        )


def _is_small(
    definition: Definition, stored: Mapping[tuple[UUID, int], Mapping[str, str] | None]
) -> bool:
    """Return whether all texts are short enough to parse here; only then types can be measured."""
    values = sum(len(text) for node in definition.nodes for _, text in node.literals)
    values += sum(len(each.type_text) + len(each.default_json or "") for each in definition.inputs)
    values += sum(
        len(each.type_text) + len(each.default_json or "") for each in definition.parameters
    )
    values += sum(map(_construct_chars, definition.nodes))
    signatures = sum(len(text) for row in stored.values() if row for text in row.values())
    return (
        len(definition.nodes) + len(definition.connections) <= _THREAD_PARTS_MAX
        and values <= _INLINE_VALUES_CHARS_MAX
        and signatures <= _INLINE_SIGNATURES_CHARS_MAX
    )


def _construct_chars(node: WorkflowNode) -> int:
    """Count the characters of a place's conditions and stated types."""
    chars = len(node.condition) + (len(node.loop.condition) if node.loop else 0)
    match node.construct:
        case Choice(branches=branches):
            chars += sum(len(each.condition) for each in branches)
        case Signal(type_text=text, default_json=default):
            chars += len(text) + len(default or "")
        case Approval(type_text=text):
            chars += len(text)
        case _:
            pass
    return chars


def _signatures(stored: Mapping[tuple[UUID, int], Mapping[str, str] | None]) -> Signatures:
    return {key: None if row is None else signature_from_texts(row) for key, row in stored.items()}


@dataclass(frozen=True, slots=True, eq=False)
class _Sizes:
    """The sizes of a signature's types; the largest output stands for all outputs."""

    inputs: Mapping[str, int]
    output: int


_UNKNOWN: Final = _Sizes({}, 1)


def _sizes(signature: Signature | None) -> _Sizes:
    if signature is None:
        return _UNKNOWN
    inputs = {name: type_size(each.type) for name, each in signature.inputs.items()}
    return _Sizes(inputs, max(map(type_size, signature.outputs.values()), default=1))


def _comparisons(
    definition: Definition, signatures: Signatures, variables: Mapping[str, Type]
) -> int:
    """Estimate the work of a check: verdicts compare parts of types, values are checked by part."""
    known = {key: _sizes(signature) for key, signature in signatures.items()}
    nodes = {
        node.id: known.get((node.node_id, node.version), _UNKNOWN) for node in definition.nodes
    }
    # Types fed by one input of the workflow are compared pairwise.
    fed: dict[str, dict[tuple[_Sizes, str], int]] = defaultdict(dict)
    for edge in definition.connections:
        if not edge.source:
            target = nodes.get(edge.target, _UNKNOWN)
            fed[edge.source_output][target, edge.target_input] = _taken(target, edge.target_input)
    count = sum(sum(each.values()) ** 2 for each in fed.values())
    given = {name: max(each.values()) for name, each in fed.items()}
    for each in definition.inputs:
        declared = type_size(each.type) if each.type else len(each.type_text) // _VALUE_CHARS_MIN
        given[each.name] = max(given.get(each.name, 1), declared)
        count += given[each.name] * len(each.default_json or "") // _VALUE_CHARS_MIN
    for edge in definition.connections:
        source = nodes.get(edge.source, _UNKNOWN).output
        source = source if edge.source else given[edge.source_output]
        count += source * _taken(nodes.get(edge.target, _UNKNOWN), edge.target_input)
    for node in definition.nodes:
        for name, text in node.literals:
            count += _taken(nodes[node.id], name) * len(text) // _VALUE_CHARS_MIN
    return count + _bound_comparisons(definition, nodes, variables)


def _bound_comparisons(
    definition: Definition, nodes: Mapping[str, _Sizes], variables: Mapping[str, Type]
) -> int:
    """Estimate the work of comparing variables and parameters with inputs, and of defaults."""
    count = 0
    known = {name: type_size(of) for name, of in variables.items()}
    declared = {}
    for each in definition.parameters:
        size = type_size(each.type) if each.type else len(each.type_text) // _VALUE_CHARS_MIN
        declared[each.name] = size
        count += size * len(each.default_json or "") // _VALUE_CHARS_MIN
    for node in definition.nodes:
        for sizes, pairs in ((known, node.variables), (declared, node.parameters)):
            for name, source in pairs:
                count += sizes.get(source, 1) * _taken(nodes[node.id], name)
    return count


def _taken(of: _Sizes, name: str) -> int:
    return of.inputs.get(name, 1)


def main() -> None:
    """Run the child process."""
    request = bounded.request()
    definition = definition_from_json(request["definition"])
    signatures = {(UUID(node_id), version): row for node_id, version, row in request["signatures"]}
    definition = with_texts(definition, request["type_texts"], request["parameter_texts"])
    variables = {name: from_json(of) for name, of in request["variables"].items()}
    checked = check(definition, _signatures(signatures), variables)
    bounded.respond(
        {
            "definition": definition_to_json(checked.definition),
            "findings": [asdict(each) for each in checked.findings],
        }
    )


if __name__ == "__main__":
    main()
