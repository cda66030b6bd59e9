"""Words from outside: a signal never answers an approval, whatever both are called."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from services.orchestrator.domain.plan import Kind
from services.orchestrator.domain.state import Signal
from services.orchestrator.domain.status import NodeStatus
from tests.unit.orchestrator.test_core import TENANT, new_core, start
from tests.unit.orchestrator.test_found_by_worlds import plan_of

SIGNAL: dict[str, Any] = {"kind": "signal", "signal": {"name": "s"}, "parameters": {}}
APPROVAL: dict[str, Any] = {"kind": "approval", "approval": {"name": "s"}, "parameters": {}}
SLEEP = {"kind": "sleep", "parameters": {"seconds": "1"}}
WORD = Signal(UUID(int=1), TENANT, (b"1",))
YES = Signal(UUID(int=2), TENANT, (b"true", b'""', b'"a"', b"null"), Kind.APPROVAL)


def statuses(run: Any) -> list[Any]:
    return [record and record.status for record in run.records]


def test_a_signal_and_an_answer_each_reach_their_own_kind_of_place() -> None:
    core = new_core()
    run = start(core, plan_of(SIGNAL, APPROVAL))
    core.signal(run.id, "s", YES)
    assert [NodeStatus.WAITING, NodeStatus.COMPLETED] == statuses(run)
    core.signal(run.id, "s", WORD)
    assert [NodeStatus.COMPLETED, NodeStatus.COMPLETED] == statuses(run)


def test_an_early_signal_waits_for_its_signal() -> None:
    core = new_core()
    plan = plan_of(SLEEP, APPROVAL, SIGNAL, edges=((0, 1, ""), (1, 2, "")))
    run = start(core, plan)
    core.signal(run.id, "s", WORD)
    core.due(now=1.0)
    assert [NodeStatus.COMPLETED, NodeStatus.WAITING, None] == statuses(run)
    core.signal(run.id, "s", YES)
    assert [NodeStatus.COMPLETED] * 3 == statuses(run)
