"""What a watcher is told, at the moments that are easy to get wrong."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID

import pytest

from services.orchestrator.domain.rows import View
from services.orchestrator.domain.state import NodeRecord
from services.orchestrator.domain.status import NodeStatus, RunStatus
from services.orchestrator.engine.hub import Change
from services.orchestrator.storage.executions import Execution, NodeExecution
from services.orchestrator.usecases.watch import Watcher, _View
from tests.unit.orchestrator.graphs import plan_of

RUN = UUID(int=5)
AT = datetime(2026, 1, 1, tzinfo=UTC)


async def test_a_run_that_ended_between_two_changes_is_told_with_all_its_nodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The row that is read may be newer than the change: then so must be the nodes."""
    plan = plan_of([], 1)
    before = Execution(
        id=RUN, workflow_id=RUN, workflow_version=1, pins_id=RUN, status=RunStatus.RUNNING,
        revision=2, created_by=RUN, created_at=AT,
    )  # fmt: skip
    after = Execution(
        id=RUN, workflow_id=RUN, workflow_version=1, pins_id=RUN, status=RunStatus.CANCELLED,
        revision=9, created_by=RUN, created_at=AT, completed_at=AT,
    )  # fmt: skip

    class Reader:
        async def get(self, *_: object, **__: object) -> tuple[Execution, Any]:
            return after, plan

    watcher = Watcher(cast("Any", Reader()), cast("Any", None))
    view = _View(cast("Any", None), watcher, before, plan)
    row = NodeExecution(node_id="n0", status=NodeStatus.CANCELLED, revision=8)

    async def rows(_after_revision: int) -> list[NodeExecution]:
        return [row]

    monkeypatch.setattr(view, "_rows", rows)
    record = NodeRecord(id=RUN, order=1, status=NodeStatus.RUNNING, token=1, revision=3)
    change = Change(3, [View("n0", 0, record)], complete=True, final=False)
    step = await view.follow(change)
    assert step is not None
    assert [NodeStatus.CANCELLED] == [node.status for node in step.nodes]
