"""Checks definitions: small ones at once, large ones in a bounded child of their own.

`python -m services.registry.gateways.graph_checker` is that child: one definition with the
signatures of its nodes on standard input, what was found on standard output.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import orjson
import structlog

from services.kit import child
from services.kit.errors import ResourceExhausted
from services.registry.domain.definition import Checked, Definition, Finding, Signature, Signatures
from services.registry.domain.graph import check
from services.registry.domain.stored import (
    definition_from_json,
    definition_to_json,
    signature_from_texts,
)
from services.registry.domain.type_size import type_size

log = structlog.get_logger()

# What is checked on the spot: each of these is some 20 ms of this process at most.
_INLINE_PARTS_MAX: Final = 1_000
_INLINE_SIGNATURES_CHARS_MAX: Final = 128 * 1024
_INLINE_VALUES_CHARS_MAX: Final = 16 * 1024
_INLINE_COMPARISONS_MAX: Final = 30_000
# The shortest value in a text, and what parts it from the next: each is compared with its type.
_VALUE_CHARS_MIN: Final = 2
_CHILDREN_MAX: Final = 2
_WALL_S: Final = 8.0
_OUTPUT_BYTES_MAX: Final = 16 * 1024 * 1024  # the largest graph, with all its findings
_CPU_S: Final = 8
_ADDRESS_SPACE_BYTES: Final = 2 << 30
_ROOT: Final = Path(__file__).parents[3]


class GraphChecker:
    """Decides where a definition is checked; two large ones at once at most."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(_CHILDREN_MAX)

    async def check(
        self, definition: Definition, stored: Mapping[tuple[UUID, int], Mapping[str, str] | None]
    ) -> Checked:
        """Check a definition; `stored` has the rows of the versions that its nodes ask for."""
        if _is_small(definition, stored):
            signatures = _signatures(stored)
            if _comparisons(definition, signatures) <= _INLINE_COMPARISONS_MAX:
                return check(definition, signatures)
        request = {
            "definition": definition_to_json(definition),
            "type_texts": [each.type_text for each in definition.inputs],
            "signatures": [
                [str(node_id), version, row] for (node_id, version), row in stored.items()
            ],
        }
        async with self._slots:
            answer = await _run(orjson.dumps(request))
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
    """Whether all texts may be read here; only then can anything be said of the types in them."""
    values = sum(len(text) for node in definition.nodes for _, text in node.literals)
    values += sum(len(each.type_text) + len(each.default_json or "") for each in definition.inputs)
    signatures = sum(len(text) for row in stored.values() if row for text in row.values())
    return (
        len(definition.nodes) + len(definition.connections) <= _INLINE_PARTS_MAX
        and values <= _INLINE_VALUES_CHARS_MAX
        and signatures <= _INLINE_SIGNATURES_CHARS_MAX
    )


def _signatures(stored: Mapping[tuple[UUID, int], Mapping[str, str] | None]) -> Signatures:
    return {key: None if row is None else signature_from_texts(row) for key, row in stored.items()}


@dataclass(frozen=True, slots=True, eq=False)
class _Sizes:
    """How many parts the types of one signature have; the largest stands for all outputs."""

    inputs: Mapping[str, int]
    output: int


_UNKNOWN: Final = _Sizes({}, 1)


def _sizes(signature: Signature | None) -> _Sizes:
    if signature is None:
        return _UNKNOWN
    inputs = {name: type_size(each.type) for name, each in signature.inputs.items()}
    return _Sizes(inputs, max(map(type_size, signature.outputs.values()), default=1))


def _comparisons(definition: Definition, signatures: Signatures) -> int:
    """Bound the work of a check: verdicts compare parts of types, values are held to each part."""
    known = {key: _sizes(signature) for key, signature in signatures.items()}
    nodes = {
        node.id: known.get((node.node_id, node.version), _UNKNOWN) for node in definition.nodes
    }
    # Types that one input of the workflow feeds are compared each with each.
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
    return count


def _taken(of: _Sizes, name: str) -> int:
    return of.inputs.get(name, 1)


async def _run(request: bytes) -> dict[str, Any]:
    try:
        done = await child.run(
            [sys.executable, "-m", __name__],
            stdin=request,
            env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "LC_ALL": "C.UTF-8"},
            cwd=_ROOT,
            timeout_s=_WALL_S,
            output_bytes_max=_OUTPUT_BYTES_MAX,
        )
    except (TimeoutError, child.OutputTooLargeError):
        done = None
    if done is None or done.code != 0 or not done.stdout:
        log.warning("graph_check_died", code=None if done is None else done.code)
        raise ResourceExhausted(
            "DEFINITION_TOO_COMPLEX",
            "the definition takes too long to check; use fewer edges or plainer types",
        )
    found: dict[str, Any] = orjson.loads(done.stdout)
    return found


def main() -> None:
    """Be the child."""
    for what, value in (
        (resource.RLIMIT_CPU, _CPU_S),
        (resource.RLIMIT_AS, _ADDRESS_SPACE_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(what)
        ceiling = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(what, (ceiling, ceiling))
    request = orjson.loads(sys.stdin.buffer.read())
    definition = definition_from_json(request["definition"])
    signatures = {(UUID(node_id), version): row for node_id, version, row in request["signatures"]}
    checked = check(_with_texts(definition, request["type_texts"]), _signatures(signatures))
    answer = {
        "definition": definition_to_json(checked.definition),
        "findings": [asdict(each) for each in checked.findings],
    }
    sys.stdout.buffer.write(orjson.dumps(answer))


def _with_texts(definition: Definition, texts: Sequence[str]) -> Definition:
    inputs = tuple(
        replace(each, type_text=text) for each, text in zip(definition.inputs, texts, strict=True)
    )
    return replace(definition, inputs=inputs)


if __name__ == "__main__":
    main()
