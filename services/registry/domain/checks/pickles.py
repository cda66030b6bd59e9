"""Check edges that carry pickles against the isolation of runs and sandboxes.

Unpickling runs code, so a runner hands a pickle only to nodes of the run that made it. This reports
what would be refused in every run.
"""

from __future__ import annotations

from typing import Final

from qflow.types import SCALARS, Type, check_value
from qflow.types.model import walk

from services.registry.domain.checks.state import Check
from services.registry.domain.definition import INFO, WARNING, Connection, Signature

_PICKLE: Final = SCALARS["pickle"]


def pickles(check: Check) -> None:
    """Report pickles from outside the run, and pickles made by another Python version."""
    carrying: dict[int, bool] = {}  # by id of the signature, since many places share one
    for index in check.sound:
        edge = check.definition.connections[index]
        if not edge.is_value:
            continue
        target = check.seen[edge.target]
        if target is None:
            continue
        key = id(target)
        if key not in carrying:
            carrying[key] = any(_has_pickle(each.type) for each in target.inputs.values())
        if carrying[key]:
            _edge(check, edge, f"connections[{index}]", target)


def _has_pickle(of: Type) -> bool:
    return any(part is _PICKLE or part == _PICKLE for part in walk(of))


def _edge(check: Check, edge: Connection, place: str, target: Signature) -> None:
    spec = target.inputs.get(edge.target_input)
    if spec is None or not _has_pickle(spec.type):
        return
    source = check.seen[edge.source] if edge.source else None
    if not edge.source:
        # The run can still start if the input accepts None.
        severity = INFO if check_value(spec.type, None) is None else WARNING
        message = f"{edge.target} opens a pickle, and what a caller brings is none"
        hint = "take plain values, or a file, and let a node of this workflow make the object"
        check.add(severity, place, "PICKLE_FROM_OUTSIDE", message, hint)
    elif target.is_workflow or (source is not None and source.is_workflow):
        message = f"a pickle stays in its run, and {edge.source} and {edge.target} have a run each"
        hint = "pass plain values or files between workflows"
        check.add(WARNING, place, "PICKLE_BETWEEN_RUNS", message, hint)
    elif source is not None and source.python_version != target.python_version:
        made, opened = source.python_version, target.python_version
        message = f"pickled by Python {made} and opened by {opened}, which may not know all of it"
        check.add(INFO, place, "PICKLE_OTHER_PYTHON", message, "let both nodes have one Python")
