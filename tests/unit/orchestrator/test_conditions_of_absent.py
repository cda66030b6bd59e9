"""Conditions over inputs whose sources end without a value."""

from __future__ import annotations

from typing import Any

import pytest

from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import NodeStatus
from tests.unit.orchestrator.test_core import ONE, new_core, start
from tests.unit.orchestrator.test_found_by_worlds import answer, plan_of

LOOP = {"max_turns": 3, "carry": [], "at_max": "finish"}


def run_of(node: dict[str, Any]) -> Run:
    """Start a node that reads x of one which is skipped, and has no value but its own default."""
    skipped = {"condition": "x > 100"}
    reader = {"parameters": {}, "join": {"policy": "all_done"}, **node}
    core = new_core((ONE, 4))
    run = start(core, plan_of(skipped, reader, edges=((0, 1, "x"),)))
    for record in run.records[2:] or run.records[1:]:
        if record is not None and record.status is NodeStatus.RUNNING:
            answer(core, run, run.records.index(record))
    return run


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ({"condition": "x == null || x > 0"}, NodeStatus.COMPLETED),
        ({"condition": "x != null && x > 0"}, NodeStatus.SKIPPED),
        ({"condition": "x > 0"}, NodeStatus.FAILED),
        ({"loop": {**LOOP, "condition": "x != null"}}, NodeStatus.COMPLETED),
    ],
)
def test_what_has_no_value_is_null_to_a_condition(
    node: dict[str, Any], expected: NodeStatus
) -> None:
    run = run_of(node)
    record = run.records[1]
    assert record is not None
    assert expected == record.status, run.failure
