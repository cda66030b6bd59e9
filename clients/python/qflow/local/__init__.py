"""A workflow without any server: the same types, checks and conversions, in this process.

Nodes run one after the other, in the order in which they can. Waits take no time; signals and
approvals are answered by what `Local` was given. What needs a sandbox or a clock does not hold
here: limits of memory and time, retries' delays, caches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qflow.authoring.workflow import Workflow
from qflow.local.edges import EdgeRefusedError, check
from qflow.local.execution import Local, LocalRun

__all__ = ["EdgeRefusedError", "Local", "check", "run", "shaped"]


def run(workflow: Workflow[..., Any], given: Mapping[str, Any], world: Local | None = None) -> Any:
    """Run a workflow here and give its result; ExecutionFailedError where a node fails."""
    return shaped(workflow, LocalRun(workflow, world or Local()).run(given))


def shaped(workflow: Workflow[..., Any], outputs: dict[str, Any]) -> Any:
    """Make of the outputs by name what the workflow's function is annotated to give."""
    if set(outputs) == {"result"}:
        return outputs["result"]
    of: Any = workflow.hints.get("return")
    if isinstance(of, type) and (hasattr(of, "_fields") or hasattr(of, "__dataclass_fields__")):
        return of(**outputs)
    return outputs
