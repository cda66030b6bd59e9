"""Answers about large runs: each message of a list or a watch can be received, none is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
from qflow.orchestrator.v1 import execution_pb2
from qflow.orchestrator.v1 import execution_service_pb2 as pb

from services.kit.rpc.listener import MESSAGE_BYTES_MAX
from tests import factories
from tests.integration.orchestrator.conftest import Orchestra

PLACES = [f"n{number}" for number in range(300)]
INPUT = '{"x":"' + "i" * 1_000_000 + '"}'
OUTPUT = '{"out":"' + "o" * 1_000_000 + '"}'


@pytest.fixture
async def large(orchestra: Orchestra) -> AsyncIterator[str]:
    """A run that is over, with all values as large as they may be, and an orchestrator to ask."""
    node = factories.node(orchestra.sql, orchestra.owner)
    workflow_id = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes=dict.fromkeys(PLACES, node),
        edges=[("", "x", place, "x") for place in PLACES],
        outputs=[("out", PLACES[0])],
    )
    async with orchestra.running():
        async with (await orchestra.runner(lambda *_: 1, slots=64)).attached():
            started = await orchestra.stub.StartExecution(
                pb.StartExecutionRequest(workflow_id=str(workflow_id), input_json='{"x":1}')
            )
            request = pb.WaitExecutionRequest(execution_id=started.execution.id)
            assert (await orchestra.stub.WaitExecution(request)).done
        orchestra.forges = True
        # What is over never changes: only the owner of the tables can make it larger afterwards.
        for table in ("node_executions", "workflow_executions"):
            await orchestra.change(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        await orchestra.change(
            "UPDATE node_executions SET error_type = 'user_error', error_message = %s,"
            " output_data = %s",
            *("e" * 16_000, '{"result":"' + "r" * 60_000 + '"}'),
        )
        await orchestra.change(
            "UPDATE workflow_executions SET input_data = %s, output_data = %s", *(INPUT, OUTPUT)
        )
        yield started.execution.id


async def pages(call: Any, request: Any, field: str) -> list[list[Any]]:
    found = []
    while True:
        answer = await call(request)
        found.append([*getattr(answer, field)])
        if not answer.next_page_token:
            return found
        request.page_token = answer.next_page_token


@pytest.mark.parametrize(
    ("view", "page_size"),
    [(execution_pb2.EXECUTION_VIEW_BASIC, 1000), (execution_pb2.EXECUTION_VIEW_FULL, 100)],
)
async def test_pages_of_nodes_are_cut_by_their_bytes_and_lose_none(
    orchestra: Orchestra, large: str, view: Any, page_size: int
) -> None:
    """B62g."""
    request = pb.ListNodeExecutionsRequest(execution_id=large, page_size=page_size, view=view)
    found = await pages(orchestra.stub.ListNodeExecutions, request, "node_executions")
    assert PLACES == [node.node_id for nodes in found for node in nodes]
    assert len(found) > 1


async def test_pages_of_runs_are_cut_by_their_bytes_and_lose_none(
    orchestra: Orchestra, large: str
) -> None:
    """B62g."""
    names = (
        "workflow_id, workflow_version, pins_id, status, shard, created_at, queued_at, started_at,"
        " completed_at, tenant_id, created_by"
    )
    orchestra.sql.execute(
        f"INSERT INTO workflow_executions (id, {names})"
        f" SELECT gen_random_uuid(), {names} FROM workflow_executions, generate_series(1, 299)"
    )
    await orchestra.change(
        "UPDATE workflow_executions SET error_type = 'user_error', error_message = %s",
        "e" * 16_000,
    )
    request = pb.ListExecutionsRequest(page_size=1000)
    found = await pages(orchestra.stub.ListExecutions, request, "executions")
    ids = {UUID(run.id) for runs in found for run in runs}
    assert 300 == len(ids) == sum(len(runs) for runs in found)
    assert len(found) > 1


async def watched(
    orchestra: Orchestra, execution_id: str, after_revision: int = 0
) -> list[pb.WatchExecutionResponse]:
    request = pb.WatchExecutionRequest(execution_id=execution_id, after_revision=after_revision)
    return [message async for message in orchestra.stub.WatchExecution(request)]


async def test_a_snapshot_comes_in_parts_with_the_run_in_the_first(
    orchestra: Orchestra, large: str
) -> None:
    *parts, bookmark = await watched(orchestra, large)
    assert bookmark.HasField("bookmark")
    assert len(parts) > 1
    assert max(part.ByteSize() for part in parts) < MESSAGE_BYTES_MAX
    assert {0} == {part.revision for part in parts}
    assert PLACES == [node.node_id for part in parts for node in part.snapshot.node_executions]
    runs = [part.snapshot.execution for part in parts if part.snapshot.HasField("execution")]
    assert [(INPUT, OUTPUT)] == [(run.input_json, run.output_json) for run in runs]
    assert parts[0].snapshot.HasField("execution")


async def test_a_delta_comes_in_parts_and_is_seen_with_the_last_which_has_the_run(
    orchestra: Orchestra, large: str
) -> None:
    parts = await watched(orchestra, large, after_revision=1)
    assert len(parts) > 1
    assert max(part.ByteSize() for part in parts) < MESSAGE_BYTES_MAX
    *early, last = parts
    assert {1} == {part.revision for part in early}
    assert not any(part.delta.HasField("execution") for part in early)
    assert last.revision == last.delta.execution.revision > 1
    nodes = {node.node_id for part in parts for node in part.delta.node_executions}
    assert set(PLACES) == nodes
    # What a delta tells is the state alone: who watches knows the input, or did not ask for it.
    assert ("", OUTPUT) == (last.delta.execution.input_json, last.delta.execution.output_json)


async def test_no_delta_carries_the_input_and_only_the_last_the_output(
    orchestra: Orchestra, diamond: str
) -> None:
    async with orchestra.running():
        runner = await orchestra.runner(lambda _define, _assign, inputs: sum(inputs.values()))
        started = await orchestra.stub.StartExecution(
            pb.StartExecutionRequest(workflow_id=diamond, input_json='{"x":1}')
        )
        call = orchestra.stub.WatchExecution(
            pb.WatchExecutionRequest(execution_id=started.execution.id)
        )
        steps = aiter(call)
        snapshot = await anext(steps)
        async with runner.attached():
            runs = [step.delta.execution async for step in steps if step.HasField("delta")]
    assert '{"x":1}' == snapshot.snapshot.execution.input_json
    assert {""} == {run.input_json for run in runs}
    *early, last = [run.output_json for run in runs]  # one, where all of it came at once
    assert '{"sum":2}' == last
    assert not any(early)
