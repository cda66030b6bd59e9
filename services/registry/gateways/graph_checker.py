"""Checks definitions: small ones at once, large ones in a bounded child of their own.

`python -m services.registry.gateways.graph_checker` is that child: one definition with the
signatures of its nodes on standard input, what was found on standard output.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import orjson
import structlog
from qflow.types import Type
from qflow.types.model import parts

from services.kit import child
from services.kit.errors import ResourceExhausted
from services.registry.domain.definition import Checked, Definition, Finding, Signatures
from services.registry.domain.graph import check
from services.registry.domain.stored import (
    definition_from_json,
    definition_to_json,
    signature_from_json,
)

log = structlog.get_logger()

# What is checked on the spot: some 20 ms of this process at most.
_INLINE_PARTS_MAX: Final = 3_000
_INLINE_COMPARISONS_MAX: Final = 30_000
_CHILDREN_MAX: Final = 2
_WALL_S: Final = 8.0
_OUTPUT_BYTES_MAX: Final = 64 * 1024 * 1024  # a finding for every edge of the largest graph
_CPU_S: Final = 8
_ADDRESS_SPACE_BYTES: Final = 2 << 30
_ROOT: Final = Path(__file__).parents[3]


class GraphChecker:
    """Decides where a definition is checked; two large ones at once at most."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(_CHILDREN_MAX)

    async def check(
        self, definition: Definition, stored: Mapping[tuple[UUID, int], Mapping[str, Any] | None]
    ) -> Checked:
        """Check a definition; `stored` has the rows of the versions that its nodes ask for."""
        if len(definition.nodes) + len(definition.connections) <= _INLINE_PARTS_MAX:
            signatures = _signatures(stored)
            if _comparisons(definition, signatures) <= _INLINE_COMPARISONS_MAX:
                return check(definition, signatures)
        faults = {
            index: each.type_fault
            for index, each in enumerate(definition.inputs)
            if each.type_fault
        }
        request = {
            "definition": definition_to_json(definition),
            "faults": faults,
            "signatures": [
                [str(node_id), version, row] for (node_id, version), row in stored.items()
            ],
        }
        async with self._slots:
            answer = await _run(orjson.dumps(request, option=orjson.OPT_NON_STR_KEYS))
        return Checked(
            definition_from_json(answer["definition"]),
            tuple(Finding(**each) for each in answer["findings"]),
        )


def _signatures(stored: Mapping[tuple[UUID, int], Mapping[str, Any] | None]) -> Signatures:
    return {key: None if row is None else signature_from_json(row) for key, row in stored.items()}


def _comparisons(definition: Definition, signatures: Signatures) -> int:
    """Bound the work of the verdicts: each compares the parts of one type with the other's."""
    sizes = {
        key: (
            max(map(_size, signature.outputs.values()), default=1),
            max((_size(each.type) for each in signature.inputs.values()), default=1),
        )
        for key, signature in signatures.items()
        if signature is not None
    }
    places = {node.id: sizes.get((node.node_id, node.version), (1, 1)) for node in definition.nodes}
    return sum(
        places.get(edge.source, (1, 1))[0] * places.get(edge.target, (1, 1))[1]
        for edge in definition.connections
    )


def _size(of: Type) -> int:
    count, stack = 0, [of]
    while stack:
        count += 1
        stack.extend(parts(stack.pop()))
    return count


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
    checked = check(_with_faults(definition, request["faults"]), _signatures(signatures))
    answer = {
        "definition": definition_to_json(checked.definition),
        "findings": [asdict(each) for each in checked.findings],
    }
    sys.stdout.buffer.write(orjson.dumps(answer))


def _with_faults(definition: Definition, faults: Mapping[str, str]) -> Definition:
    inputs = tuple(
        replace(each, type_fault=faults.get(str(index), ""))
        for index, each in enumerate(definition.inputs)
    )
    return replace(definition, inputs=inputs)


if __name__ == "__main__":
    main()
