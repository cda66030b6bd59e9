"""Nodes that are held up or ended by hand while they wait in a line: they take no place there."""

from __future__ import annotations

from uuid import UUID

import pytest

from services.orchestrator.domain.core import Core
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import NodeStatus, RunStatus
from tests.unit.orchestrator.test_core import ONE, new_core, start
from tests.unit.orchestrator.test_found_by_worlds import plan_of
from tests.unit.orchestrator.test_limits import limited, statuses, taken


def a_core(*runners: tuple[UUID, int]) -> Core:
    core = new_core(*runners)
    core.unlocked = {UUID(int=at) for at in range(9)}
    return core


def hold_up(core: Core, run: Run) -> None:
    core.pause_node(run.id, 0)


def end(core: Core, run: Run) -> None:
    core.skip_node(run.id, 0, (b"1",))


@pytest.mark.parametrize("steer", [hold_up, end])
def test_a_place_goes_to_the_next_that_has_a_use_for_it(steer: object) -> None:
    """A rate would have counted it as a beginning, and let the next one wait for its time."""
    core = a_core((ONE, 4))
    plan = plan_of({}, {})
    limited(core, plan, runs=False)
    run = start(core, plan)
    assert callable(steer)
    steer(core, run)
    assert 1 == len(taken(core))
    assert NodeStatus.RUNNING == statuses(run)[1]
    assert [] == core.limited.abandoned


def test_what_was_held_up_in_line_is_in_it_once_it_is_let_go() -> None:
    core = a_core((ONE, 4))
    plan = plan_of({}, {})
    limited(core, plan, runs=False)
    run = start(core, plan)
    core.pause_node(run.id, 0)
    assert 1 == len(taken(core))
    core.resume_node(run.id, 0)
    assert 1 == len(taken(core))
    assert [NodeStatus.RUNNING] * 2 == statuses(run)


def test_a_node_that_is_let_go_in_line_waits_no_longer_than_it_may() -> None:
    """Its time was up while it was held up, and began anew."""
    core = a_core()
    run = start(core, plan_of({"queue_timeout_ms": 1000}))
    core.pause_node(run.id, 0)
    core.due(now=2.0)
    assert [NodeStatus.PAUSED] == statuses(run)
    core.resume_node(run.id, 0)
    core.due(now=2.5)
    assert [NodeStatus.PENDING] == statuses(run)
    core.due(now=3.5)
    assert [NodeStatus.FAILED] == statuses(run)
    assert run.failure is not None
    assert "queue_timeout" == run.failure[1].error_type


def test_a_pause_of_a_node_stops_the_time_that_it_may_wait_and_does_not_begin_it_anew() -> None:
    core = a_core()
    run = start(core, plan_of({"queue_timeout_ms": 1000}))
    for held_at, let_go_at in ((0.4, 4.0), (4.4, 8.0)):
        core.due(now=held_at)
        core.pause_node(run.id, 0)
        core.due(now=let_go_at)
        assert [NodeStatus.PAUSED] == statuses(run)
        core.resume_node(run.id, 0)
    core.due(now=8.1)
    assert [NodeStatus.PENDING] == statuses(run)
    core.due(now=8.3)
    assert [NodeStatus.FAILED] == statuses(run)


def test_the_time_that_a_node_might_have_waited_to_without_a_pause_is_no_matter_any_more() -> None:
    core = a_core()
    run = start(core, plan_of({"queue_timeout_ms": 1000}))
    core.due(now=0.4)
    core.pause_node(run.id, 0)
    core.due(now=0.8)
    core.resume_node(run.id, 0)
    core.due(now=1.1)
    assert [NodeStatus.PENDING] == statuses(run)
    core.due(now=1.5)
    assert [NodeStatus.FAILED] == statuses(run)


def test_a_pause_of_a_run_stops_the_time_that_its_nodes_may_wait() -> None:
    """Of those of its sub-workflows, too, and of maps that wait for their next element."""
    core = a_core()
    inner = plan_of({"queue_timeout_ms": 1000})
    mapped = {"queue_timeout_ms": 1000, "map": {"input": "x"}, "parameters": {"x": "[1,2]"}}
    run = start(core, plan_of(mapped, {"kind": "workflow", "parameters": {}}, inner=inner))
    [child] = [each for each in core.runs.values() if each is not run]
    core.due(now=0.4)
    core.pause(run.id)
    core.due(now=7.0)
    core.resume(run.id, now=7.0)
    core.due(now=7.5)
    assert [RunStatus.RUNNING, RunStatus.PENDING] == [run.status, child.status]
    core.due(now=7.7)
    assert [RunStatus.FAILED] * 2 == [run.status, child.status]
    assert child.failure is not None
    assert "queue_timeout" == child.failure[1].error_type


def test_the_time_that_a_node_may_wait_goes_on_from_one_line_to_the_next() -> None:
    """It began anew where an environment was ready, or limits changed."""
    core = new_core(unlocked=False)
    run = start(core, plan_of({"queue_timeout_ms": 1000}))
    core.due(now=0.6)
    core.lock_known(UUID(int=0), None)
    core.due(now=1.1)
    assert [NodeStatus.FAILED] == statuses(run)
