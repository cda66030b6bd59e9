"""What helps a failed run, by the kind of failure and of run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from uuid import UUID

TOTAL_TIMEOUT: Final = "total_timeout"
# A rerun keeps the settings of its workflow: changing those requires a new start. Changing a node's
# code or requirements makes a new version, which a rerun can use.
_OF_WORKFLOW: Final = {
    "newer": "RerunExecution from it with node_version 0",
    "again": "RerunExecution",
    "anew": "StartExecution with the changed workflow",
}
# A run of a single node has no results to keep and no other version to use.
_OF_NODE: Final = {
    "newer": "RunNode",
    "again": "RetryExecution",
    "anew": "StartExecution with a workflow of it",
}
_WAITS: Final = (
    "{again} waits for it as long again; or let it wait longer (its wait_timeout), then {anew}"
)
_REMEDIES: Final[Mapping[str, str]] = {
    "timeout": "have the node do less, then {newer}; or let it take longer (its timeout), "
    "then {anew}",
    "heartbeat_timeout": "have the code beat more often, then {newer}; or let it be silent for "
    "longer (its heartbeat_timeout), then {anew}",
    "oom": "have the node hold less at once, then {newer}; or give it more memory, then {anew}",
    "dependency_error": "correct the node's requirements, then {newer}",
    "conversion_error": "correct what gives the value, then {newer}; or the conversion on the "
    "edge that the message names, then {anew}",
    "environment_error": "see the runner's log: the environment could not be built; then {again}",
    "runner_lost": "see the runner's log: it was lost with this node, more than once; then {again}",
    "deadline_exceeded": "{again} has as long again for what is left; for more, give the workflow "
    "or the start a longer timeout, then {anew}",
    "budget_exceeded": "start it with a larger budget, or have it consume less",
    "quota_exceeded": "wait until midnight UTC, or ask an administrator for a larger quota; then "
    "{again}",
    "output_too_large": "let the workflow declare fewer outputs, then {anew}",
    "parent_failed": "see why the execution failed that it was a part of, and go on from that one",
    "condition_error": "correct what gives the values that the expression reads, then "
    "RerunExecution from there; or the expression, then {anew}",
    "sleep_invalid": "RerunExecution from it with another time; or correct what gives it one, then "
    "RerunExecution from there",
    "input_too_large": "have what gives its values give less, then RerunExecution from there",
    "map_too_large": "have what gives the list give a shorter one, then RerunExecution from there",
    "signal_timeout": _WAITS,
    "approval_timeout": _WAITS,
    "loop_exhausted": "mend the node, then {newer}; or let it have more turns (its max_turns), "
    "then {anew}",
    "queue_timeout": "add a runner, or let more go on under the limit that held it, then {again}; "
    "or let it wait longer (its queue_timeout), then {anew}",
    TOTAL_TIMEOUT: "{again} has as long again; or let all attempts take longer (its "
    "total_timeout), then {anew}",
    "engine_error": "see the orchestrator's log; then RetryExecution",
}
_MEND: Final = "mend the node, then {newer}; where the fault was outside of it, {again} alone"


def remedy(kind: str, *, alone: bool, child: UUID | None) -> str:
    """Describe what helps; `alone`: a run of a single node, `child`: the failed sub-workflow."""
    if child is not None and kind != TOTAL_TIMEOUT:  # that one belongs to the place
        return (
            f"ExplainExecution of execution {child}, which ran it, says what helps there; then "
            "RerunExecution, or StartExecution where its workflow had to be changed"
        )
    return _REMEDIES.get(kind, _MEND).format_map(_OF_NODE if alone else _OF_WORKFLOW)


def go_on(*, alone: bool) -> str:
    """Describe what helps a cancelled run."""
    if alone:
        return "RetryExecution runs it again"
    return "RerunExecution goes on from where it was stopped; what was compensated runs again"
