"""Loops whose turns give more than the engine reads: only what a condition names is looked at."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from services.orchestrator.domain.status import RunStatus
from services.orchestrator.domain.values import FileValue
from tests.unit.orchestrator.test_core import start
from tests.unit.orchestrator.test_found_by_worlds import answer, plan_of
from tests.unit.orchestrator.test_holding_what_closes import a_core, statuses

LARGE = FileValue(file_id=UUID(int=1), size_bytes=100_000, sha256=b"")


def looping(condition: str) -> dict[str, Any]:
    return {"loop": {"condition": condition, "max_turns": 5, "carry": {"x": "result"}}}


def test_a_loop_over_large_values_goes_on_where_its_condition_does_not_read_them() -> None:
    core = a_core()
    run = start(core, plan_of(looping("turn < 2")))
    answer(core, run, 1, LARGE)
    assert ["waiting", "completed", "running"] == statuses(run)
    answer(core, run, 2, LARGE)
    assert RunStatus.COMPLETED == run.status


@pytest.mark.parametrize("read", ["x", "result"])
def test_a_loop_says_which_value_its_condition_cannot_read(read: str) -> None:
    core = a_core()
    run = start(core, plan_of(looping(f"{read} < 2")))
    answer(core, run, 1, LARGE)
    assert run.failure is not None
    assert "condition_error" == run.failure[1].error_type
    assert f"its condition reads {read}" in run.failure[1].message
