"""Check that places with concurrent calls can share one interpreter."""

from __future__ import annotations

from qflow.types import Scalar
from qflow.types.model import CARRIED, walk

from services.registry.domain.checks.state import Check
from services.registry.domain.definition import Signature, WorkflowNode


def together(check: Check) -> None:
    """Report concurrency where calls would still run one after another."""
    for index, node in enumerate(check.definition.nodes):
        if node.concurrency > 1:
            fault = _fault(node, check.inner[index])
            if fault:
                message = f"{node.id} cannot serve several calls at once: {fault}"
                check.error(f"nodes[{index}].concurrency", "CALLS_NOT_TOGETHER", message)


def _fault(node: WorkflowNode, signature: Signature | None) -> str:
    if node.construct is not None:
        return "it is run by the engine itself"
    if node.reuse not in {"", "warm"}:
        return f"its reuse is {node.reuse}, where each call is apart"
    if signature is None:
        return ""
    if not signature.is_async:
        return "its function is no async def"
    types = [*(each.type for each in signature.inputs.values()), *signature.outputs.values()]
    for of in types:
        for part in walk(of):
            if isinstance(part, Scalar) and part.name in CARRIED:
                return f"it carries files ({part.name}), which have one place in a sandbox"
    return ""
