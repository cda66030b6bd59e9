"""When an attempt is due, and when all of them together have taken too long: no sooner, no later."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from services.orchestrator.domain.core import Core
from services.orchestrator.domain.limits import Limit
from services.orchestrator.domain.state import Run, Signal
from tests.unit.orchestrator.test_core import ONE, TENANT, start
from tests.unit.orchestrator.test_found_by_worlds import answer, plan_of
from tests.unit.orchestrator.test_holding_what_closes import FAILS, a_core, statuses

RETRY: dict[str, Any] = {"retry": {"max_retries": 3, "initial_delay_ms": 6000}}
WORDS: tuple[dict[str, Any], ...] = tuple(
    {"kind": "signal", "signal": {"name": f"w{at}"}, "parameters": {}} for at in range(3)
)
JOINED = {**RETRY, "join": {"policy": "any"}}
FROM_ALL = ((0, 3, ""), (1, 3, ""), (2, 3, ""))


def retries(run: Run, slot: int = 0) -> int:
    record = run.records[slot]
    return 0 if record is None else record.retry_count


def say_all(core: Core, run: Run) -> None:
    for at in range(3):
        core.signal(run.id, f"w{at}", Signal(UUID(int=at + 1), TENANT, (b"1",)))


def test_a_place_that_several_ends_begin_waits_for_a_runner_once() -> None:
    core = a_core()
    core.granted(ONE, 0, 2)
    run = start(core, plan_of(*WORDS, JOINED, edges=FROM_ALL))
    say_all(core, run)
    assert 1 == core.ready.size
    core.granted(ONE, 1, 3)
    answer(core, run, 3, FAILS)
    assert ["retrying", 1] == [statuses(run)[3], retries(run, 3)]


def test_a_place_that_several_ends_begin_waits_for_a_limit_once() -> None:
    core = a_core()
    core.limits_known([Limit(id=UUID(int=1), tenant_id=TENANT, name="few", revision=1)], now=0.0)
    run = start(core, plan_of(*WORDS, JOINED, edges=FROM_ALL))
    say_all(core, run)
    assert 1 == core.limited.size


def test_a_place_that_is_held_and_let_go_while_it_waits_for_a_runner_waits_once() -> None:
    core = a_core()
    core.granted(ONE, 0, 2)
    run = start(core, plan_of(RETRY))
    core.pause_node(run.id, 0)
    core.resume_node(run.id, 0)
    assert 1 == core.ready.size
