"""Nodes that are held up or ended by hand while they wait in a line: they take no place there."""

from __future__ import annotations

from uuid import UUID

import pytest

from services.orchestrator.domain.core import Core
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import NodeStatus
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
