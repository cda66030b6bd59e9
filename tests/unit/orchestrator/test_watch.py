"""What a watcher is told, at the moments that are easy to get wrong."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from services.orchestrator.domain.records import NodeRecord
from services.orchestrator.domain.status import NodeStatus, RunStatus
from services.orchestrator.domain.transition import View
from services.orchestrator.engine.hub import Change
from services.orchestrator.storage.executions import Execution
from services.orchestrator.storage.node_executions import NodeExecution
from services.orchestrator.usecases.watch import Watcher, _View
from tests.unit.orchestrator.graphs import plan_of

RUN = UUID(int=5)
AT = datetime(2026, 1, 1, tzinfo=UTC)
CALLER = cast("Any", SimpleNamespace(tenant_id=UUID(int=1)))


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

    watcher = Watcher(cast("Any", Reader()), cast("Any", None), cast("Any", None))
    view = _View(CALLER, watcher, before, plan)
    row = NodeExecution(node_id="n0", status=NodeStatus.CANCELLED, revision=8)

    async def rows(_after_revision: int) -> list[NodeExecution]:
        return [row]

    monkeypatch.setattr(view, "_rows", rows)
    record = NodeRecord(id=RUN, order=1, status=NodeStatus.RUNNING, token=1, revision=3)
    change = Change(3, [View("n0", 0, record)], complete=True, final=False)
    step = await view.follow(change)
    assert step is not None
    assert [NodeStatus.CANCELLED] == [node.status for node in step.nodes]


async def test_a_run_that_ends_as_it_is_read_is_told_with_all_its_nodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a change that does not say all, nodes are read behind the row: that may be the last."""
    plan = plan_of([], 1)
    ended: list[Execution] = []

    class Reader:
        async def get(self, *_: object, **__: object) -> tuple[Execution, Any]:
            over = running()._replace(status=RunStatus.COMPLETED, revision=5, completed_at=AT)
            ended.append(over)
            return ended[0], plan

    watcher = Watcher(cast("Any", Reader()), cast("Any", None), cast("Any", None))
    view = _View(CALLER, watcher, running(), plan)

    async def rows(_after_revision: int) -> list[NodeExecution]:
        status = NodeStatus.COMPLETED if ended else NodeStatus.RUNNING
        return [NodeExecution(node_id="n0", status=status, revision=5 if ended else 3)]

    monkeypatch.setattr(view, "_rows", rows)
    step = await view.follow(Change(3, [], complete=False, final=False))
    assert step is not None
    assert step.execution is not None
    assert (RunStatus.COMPLETED, 5) == (step.execution.status, step.revision)
    assert [NodeStatus.COMPLETED] == [node.status for node in step.nodes]


def running(*, revision: int = 2) -> Execution:
    return Execution(
        id=RUN, workflow_id=RUN, workflow_version=1, pins_id=RUN, status=RunStatus.RUNNING,
        revision=revision, created_by=RUN, created_at=AT,
    )  # fmt: skip


def moved(revision: int, status: NodeStatus, *, row: bool = False) -> Change:
    views = [viewed("n0", revision, status)]
    return Change(revision, views, complete=True, final=False, row=row)


def viewed(name: str, revision: int, status: NodeStatus = NodeStatus.RUNNING) -> View:
    record = NodeRecord(id=RUN, order=1, status=status, token=1, revision=revision)
    return View(name, 0, record)


async def test_watchers_who_have_seen_the_same_are_told_what_was_made_for_the_first() -> None:
    plan = plan_of([], 1)
    watcher = Watcher(cast("Any", None), cast("Any", None), cast("Any", None))
    first, second, behind = (
        _View(CALLER, watcher, running(revision=seen), plan) for seen in (2, 2, 1)
    )
    change = moved(3, NodeStatus.RUNNING)
    told = [await each.follow(change) for each in (first, second, behind)]
    assert told[0] is not None
    assert told[0] is told[1]
    assert told[2] is not told[0], "it has missed something"
    assert [2, 1] == [each.seen for each in (told[0], told[2]) if each is not None]
    # What the others were spared they know all the same: each goes on by itself.
    part, whole = viewed("n0[1]", 4), viewed("n0", 5, NodeStatus.COMPLETED)
    for each in (first, second):
        for view, counts in ((part, {"running": 2}), (whole, {"running": 1, "completed": 1})):
            revision = view.record.revision
            later = await each.follow(
                Change(revision, [view], complete=True, final=False, row=False)
            )
            assert later is not None
            assert later.execution is not None
            assert (counts, 1, revision - 1) == (
                later.execution.counts, later.execution.parts, later.seen
            )  # fmt: skip


async def test_what_was_told_before_is_not_told_again() -> None:
    """Changes that were merged may begin before where a watcher stands."""
    plan = plan_of([], 2)
    watcher = Watcher(cast("Any", None), cast("Any", None), cast("Any", None))
    view = _View(CALLER, watcher, running(revision=3), plan)
    views = [viewed("n0", 3), viewed("n1", 4)]
    step = await view.follow(Change(4, views, complete=True, final=False, row=False))
    assert step is not None
    assert ["n1"] == [node.node_id for node in step.nodes]


async def test_an_end_is_told_to_who_has_seen_all_of_it_but_the_runs_own_row() -> None:
    """The nodes are read behind the row as a watch begins: they may be of a later revision."""
    plan = plan_of([], 1)
    over = running(revision=9)._replace(status=RunStatus.COMPLETED, completed_at=AT)

    class Reader:
        async def get(self, *_: object, **__: object) -> tuple[Execution, Any]:
            return over, plan

    engine = SimpleNamespace(ended=SimpleNamespace(find=lambda *_: None), now=lambda: 0.0)
    watcher = Watcher(cast("Any", Reader()), cast("Any", engine), cast("Any", None))
    view = _View(CALLER, watcher, running(), plan)
    view.revision = 9
    step = await view.follow(Change(9, [viewed("n0", 9)], complete=True, final=True))
    assert step is not None
    assert step.execution is not None
    assert (RunStatus.COMPLETED, 9) == (step.execution.status, step.revision)


async def test_another_tenants_watcher_is_told_nothing_that_was_read_for_the_first() -> None:
    plan = plan_of([], 1)
    other = cast("Any", SimpleNamespace(tenant_id=UUID(int=2)))
    asked: list[Any] = []

    class Reader:
        async def get(self, caller: Any, *_: object, **__: object) -> tuple[Execution, Any]:
            asked.append(caller)
            return running(revision=3), plan

    watcher = Watcher(cast("Any", Reader()), cast("Any", None), cast("Any", None))
    views = [_View(caller, watcher, running(), plan) for caller in (CALLER, other)]
    change = moved(3, NodeStatus.RUNNING, row=True)
    told = [await each.follow(change) for each in views]
    assert told[0] is not told[1]
    assert [CALLER, other] == asked


async def test_a_row_that_changed_is_read_once_for_all_who_watch_it() -> None:
    plan = plan_of([], 1)
    asked: list[int] = []
    asking, answer = asyncio.Event(), asyncio.Event()

    class Reader:
        async def get(self, *_: object, **__: object) -> tuple[Execution, Any]:
            asked.append(1)
            asking.set()
            await answer.wait()
            return running(revision=3), plan

    watcher = Watcher(cast("Any", Reader()), cast("Any", None), cast("Any", None))
    views = [_View(CALLER, watcher, running(), plan) for _ in range(3)]
    change = moved(3, NodeStatus.RUNNING, row=True)
    following = [asyncio.create_task(each.follow(change)) for each in views]
    await asking.wait()
    following[0].cancel()  # the one that asked goes away
    await asyncio.sleep(0)
    answer.set()
    told = await asyncio.gather(*following[1:])
    assert [3, 3] == [each.revision for each in told if each is not None]
    assert [1] == asked
