"""Names the edge that carried a value which a node could not take."""

from __future__ import annotations

import json
from dataclasses import replace

from services.orchestrator.domain.plan import FROM_LITERAL, FROM_TURN, Binding
from services.orchestrator.domain.records import Failure
from services.orchestrator.domain.state import Run


def named(run: Run, slot: int, failure: Failure) -> Failure:
    """Add the edge to the failure of an input: to its message, and to its detail as data.

    A literal came over no edge: such a failure stays unchanged.
    """
    if not failure.input:
        return failure
    for binding in run.bindings(slot):
        if binding.name == failure.input and binding.source != FROM_LITERAL:
            return _with(failure, edge_of(run, slot, binding))
    return failure


def edge_of(run: Run, slot: int, binding: Binding) -> dict[str, str]:
    """Return the edge of a binding, with the names of its ends in the workflow."""
    target = run.place(slot).id
    if binding.source == FROM_TURN:
        source = target
    else:
        source = run.plan.places[binding.source].id if binding.source >= 0 else ""
    return {
        "source": source,
        "source_output": binding.key,
        "target": target,
        "target_input": binding.name,
        "conversion": binding.conversion,
    }


def _with(failure: Failure, edge: dict[str, str]) -> Failure:
    source = (
        f"{edge['source']}.{edge['source_output']}"
        if edge["source"]
        else (f"the run's input {edge['source_output']}")
    )
    way = f"{source} \u2192 {edge['target']}.{edge['target_input']}"
    told = json.loads(failure.detail) if failure.detail else {"exception": "", "causes": []}
    detail = json.dumps({**told, "edge": edge}, ensure_ascii=False)
    return replace(failure, message=f"{failure.message} (edge {way})", detail=detail)
