"""Results that new runs take over although they are files, or lists that no row holds."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest
from qflow.orchestrator.v1 import attach_service_pb2 as attach
from qflow.orchestrator.v1 import execution_pb2
from qflow.orchestrator.v1.rerun_service_pb2 import (
    RerunExecutionRequest,
    RerunNode,
    RetryQuarantinedRequest,
)

from services.orchestrator.domain import compatibility
from tests import factories
from tests.fakes.runner import Fail
from tests.integration.orchestrator import control
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.test_large_lists import made, stored
from tests.integration.orchestrator.test_reruns import hold_invariants


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take workflows with constructs as they are: who stores them holds them to their types."""
    monkeypatch.setattr(compatibility, "check", lambda *_: None)


class Worker:
    """Makes a list, maps over it, joins it; `broken` says what fails, `files` what is a file."""

    def __init__(self, orchestra: Orchestra, *, broken: set[Any], files: set[str]) -> None:
        self.orchestra = orchestra
        self.broken = broken
        self.files = files
        self.ran: Counter[Any] = Counter()
        self.given: list[Any] = []

    def __call__(self, define: Any, assign: Any, inputs: dict[str, Any]) -> object:
        name = define.node_id
        if name == "each":
            value = inputs["x"]
            number = value.index if isinstance(value, attach.AttemptValueFile) else value
            self.ran[number] += 1
            if number in self.broken:
                raise Fail(retryable=False)
            if "each" in self.files:
                return stored(self.orchestra, assign)
            return "e" * (40_000 if "large" in self.files else 1)
        self.ran[name] += 1
        if name == "last":
            if "last" in self.broken:
                raise Fail(retryable=False)
            return 1
        if name == "join":
            self.given.append(assign.pull)
            if "join" in self.broken:
                raise Fail(retryable=False)
            return 1
        return stored(self.orchestra, assign, result=3) if "make" in self.files else [0, 1, 2]


async def rerun(orchestra: Orchestra, execution_id: str, *nodes: str) -> Any:
    request = RerunExecutionRequest(
        execution_id=execution_id, from_nodes=[RerunNode(node=name) for name in nodes]
    )
    return await control.reruns(orchestra).RerunExecution(request)


def forget(orchestra: Orchestra, execution_id: str) -> None:
    """Let retention remove one run."""
    orchestra.sql.execute(
        "UPDATE workflow_executions SET purge_started_at = now() WHERE id = %s", (execution_id,)
    )
    while orchestra.rows("SELECT cleanup_old_executions()") != [(0,)]:
        pass
    assert [] == orchestra.rows("SELECT 1 FROM workflow_executions WHERE id = %s", execution_id)


async def test_a_file_is_kept_and_outlives_the_run_that_made_it(orchestra: Orchestra) -> None:
    """Rule 1, I21: retention hands the file on to each run that keeps it, and then removes it."""
    workflow = made(orchestra, {})
    worker = Worker(orchestra, broken={"join"}, files={"make"})
    async with orchestra.running():
        async with (await orchestra.runner(worker)).attached():
            first = await control.start(orchestra, workflow)
            await control.ended(orchestra, first.id)
            second = await rerun(orchestra, first.id)
            await control.ended(orchestra, second.execution.id)
            [(file_id, size)] = orchestra.rows(
                "SELECT id, file_size_bytes FROM files WHERE node_execution_id ="
                " (SELECT id FROM node_executions WHERE node_id = 'make'"
                "   AND workflow_execution_id = %s)",
                first.id,
            )
            forget(orchestra, first.id)
            assert [(UUID(second.execution.id),)] == orchestra.rows(
                "SELECT workflow_execution_id FROM files WHERE id = %s", file_id
            )
            worker.broken.clear()
            third = await rerun(orchestra, second.execution.id)
            done = await control.ended(orchestra, third.execution.id)
            forget(orchestra, second.execution.id)
            kept = orchestra.rows(
                "SELECT file.id, file.file_size_bytes FROM files AS file"
                " JOIN node_executions AS node"
                " ON node.id = file.node_execution_id AND node.output_file_id = file.id"
                " WHERE node.workflow_execution_id = %s AND node.node_id = 'make'",
                third.execution.id,
            )
            assert [(file_id, size)] == kept
            hold_invariants(orchestra)
            forget(orchestra, third.execution.id)
    assert execution_pb2.EXECUTION_STATUS_COMPLETED == done.status
    assert 1 == worker.ran["make"]
    assert [] == orchestra.rows("SELECT 1 FROM files UNION ALL SELECT 1 FROM file_uses")
    events = orchestra.rows("SELECT payload ->> 'file_id' FROM outbox_events ORDER BY 1")
    assert 1 == events.count((str(file_id),))  # its bytes go once, after the last run


async def test_a_list_that_its_elements_hold_is_kept_as_its_elements(orchestra: Orchestra) -> None:
    workflow = made(orchestra, {})
    worker = Worker(orchestra, broken=set(), files={"large"})
    async with orchestra.running():
        async with (await orchestra.runner(worker)).attached():
            first = await control.start(orchestra, workflow)
            await control.ended(orchestra, first.id)
            answer = await rerun(orchestra, first.id, "join")
            done = await control.ended(orchestra, answer.execution.id)
    assert (5, execution_pb2.EXECUTION_STATUS_COMPLETED) == (answer.kept_results, done.status)
    assert {"make": 1, "join": 2, 0: 1, 1: 1, 2: 1} == worker.ran


@pytest.mark.parametrize("files", [set(), {"large"}])
async def test_a_completed_map_is_kept_with_what_it_put_aside(
    orchestra: Orchestra, files: set[str]
) -> None:
    """What read its list was made of just that; RetryQuarantined runs both again."""
    one = factories.node(orchestra.sql, orchestra.owner)
    names = ("make", "each", "join", "last")
    edges = [(source, "result", name, "x") for source, name in pairwise(names)]
    workflow = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes=dict.fromkeys(names, one),
        edges=[("", "x", "make", "x"), *edges],
        node_settings={"each": {"map": {"input": "x", "max_failed": 1}}},
        outputs=[("out", "last")],
    )
    worker = Worker(orchestra, broken={1, "last"}, files=files)
    once = {"make": 1, 0: 1, 1: 1, 2: 1, "join": 1}
    async with orchestra.running():
        async with (await orchestra.runner(worker)).attached():
            first = await control.start(orchestra, workflow)
            assert control.FAILED == (await control.ended(orchestra, first.id)).status
        answer = await rerun(orchestra, first.id)
    async with orchestra.running():
        async with (await orchestra.runner(worker)).attached():
            again = await control.ended(orchestra, answer.execution.id)
            assert once | {"last": 2} == worker.ran
            worker.broken.clear()
            request = RetryQuarantinedRequest(execution_id=again.id)
            mended = await control.reruns(orchestra).RetryQuarantined(request)
            done = await control.ended(orchestra, mended.execution.id)
    assert (5, 3) == (answer.kept_results, mended.kept_results)
    assert once | {1: 2, "join": 2, "last": 3} == worker.ran
    assert control.COMPLETED == done.status
    aside = orchestra.rows(
        "SELECT status, error_type, copied_from IS NULL FROM node_executions"
        " WHERE node_id = 'each[1]' AND status <> 'completed' ORDER BY copied_from NULLS FIRST"
    )
    assert [("quarantined", "user_error", each) for each in (True, False)] == aside
    hold_invariants(orchestra)


@pytest.mark.parametrize("files", [set(), {"make", "each"}])
async def test_of_a_map_that_failed_only_what_failed_runs_again(
    orchestra: Orchestra, files: set[str]
) -> None:
    """The elements that completed are kept, over a restart too; also where they are files."""
    workflow = made(orchestra, {"max_in_flight": 1})
    worker = Worker(orchestra, broken={2}, files=files)
    async with orchestra.running():
        async with (await orchestra.runner(worker)).attached():
            first = await control.start(orchestra, workflow)
            assert control.FAILED == (await control.ended(orchestra, first.id)).status
        answer = await rerun(orchestra, first.id)
        assert 3 == answer.kept_results  # make, and two elements
    worker.broken.clear()
    async with orchestra.running():
        runner = await orchestra.runner(worker)
        async with runner.attached():
            done = await control.ended(orchestra, answer.execution.id)
            if not files:  # the list of files is in no row
                hold_invariants(orchestra)
    assert control.COMPLETED == done.status
    assert {"make": 1, "join": 1, 0: 1, 1: 1, 2: 2} == worker.ran


async def test_a_file_that_is_gone_is_not_kept(orchestra: Orchestra) -> None:
    workflow = made(orchestra, {})
    worker = Worker(orchestra, broken={"join"}, files={"make"})
    async with orchestra.running():
        async with (await orchestra.runner(worker)).attached():
            first = await control.start(orchestra, workflow)
            await control.ended(orchestra, first.id)
            await orchestra.change("DELETE FROM files")
            call = rerun(orchestra, first.id)
            code, reason, facts = await control.refusal(call)
            assert 0 == (await rerun(orchestra, first.id, "make")).kept_results
    assert ("FAILED_PRECONDITION", "KEPT_FILES", "make") == (code, reason, facts["node_ids"])
