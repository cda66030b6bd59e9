"""Control calls and watches at the moments that are easy to get wrong."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit, urlunsplit

import grpc
import psycopg
import pytest
from qflow.orchestrator.v1 import execution_pb2
from qflow.orchestrator.v1 import execution_service_pb2 as pb

from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.test_runs import add_one


async def test_every_ok_to_a_cancel_is_committed(orchestra: Orchestra, diamond: str) -> None:
    """I14: callers that ask while the first cancel is being written wait for the same commit."""
    async with orchestra.running():
        runner = await orchestra.runner(lambda *_: None)
        async with runner.attached():
            started = await orchestra.stub.StartExecution(
                pb.StartExecutionRequest(workflow_id=diamond, input_json='{"x":1}')
            )
            await runner.until(lambda: bool(runner.assigns))
            request = pb.CancelExecutionRequest(execution_id=started.execution.id)
            answers = await asyncio.gather(
                *(orchestra.stub.CancelExecution(request) for _ in range(8))
            )
    for answer in answers:
        assert answer.execution.HasField("cancel_time")


async def test_the_last_delta_tells_of_nodes_that_never_began(
    orchestra: Orchestra, diamond: str
) -> None:
    async with orchestra.running():
        runner = await orchestra.runner(lambda *_: None)
        async with runner.attached():
            started = await orchestra.stub.StartExecution(
                pb.StartExecutionRequest(workflow_id=diamond, input_json='{"x":1}')
            )
            statuses = {}
            call = orchestra.stub.WatchExecution(
                pb.WatchExecutionRequest(execution_id=started.execution.id)
            )
            async for message in call:
                for node in (*message.snapshot.node_executions, *message.delta.node_executions):
                    statuses[node.node_id] = node.status
                if message.HasField("bookmark"):
                    await orchestra.stub.CancelExecution(
                        pb.CancelExecutionRequest(execution_id=started.execution.id)
                    )
    cancelled = execution_pb2.NODE_EXECUTION_STATUS_CANCELLED
    assert dict.fromkeys("abcd", cancelled) == statuses


async def test_a_watcher_learns_of_a_cancel_before_the_run_has_ended(
    orchestra: Orchestra, diamond: str
) -> None:
    """I14: from the OK on only cancelled can follow, and whoever watches may know."""
    seen = []
    async with orchestra.running():
        runner = await orchestra.runner(lambda *_: None)
        async with runner.attached():
            started = await orchestra.stub.StartExecution(
                pb.StartExecutionRequest(workflow_id=diamond, input_json='{"x":1}')
            )
            call = orchestra.stub.WatchExecution(
                pb.WatchExecutionRequest(execution_id=started.execution.id)
            )
            async for message in call:
                if message.HasField("bookmark"):
                    await orchestra.stub.CancelExecution(
                        pb.CancelExecutionRequest(execution_id=started.execution.id)
                    )
                if message.delta.HasField("execution"):
                    run = message.delta.execution
                    seen.append((run.status, run.HasField("cancel_time"), run.input_json))
    assert execution_pb2.EXECUTION_STATUS_CANCELLED == seen[-1][0]
    assert {(True, "")} == {(cancelled, given) for _, cancelled, given in seen}


async def test_a_member_that_went_to_rest_under_a_flush_is_not_fenced(
    orchestra: Orchestra, diamond: str
) -> None:
    async with orchestra.running():
        async with (await orchestra.runner(add_one)).attached():
            for _ in range(2):
                started = await orchestra.stub.StartExecution(
                    pb.StartExecutionRequest(workflow_id=diamond, input_json='{"x":1}')
                )
                done = await orchestra.stub.WaitExecution(
                    pb.WaitExecutionRequest(execution_id=started.execution.id)
                )
                assert '{"sum":7}' == done.execution.output_json
                await orchestra.change(
                    "UPDATE engine_members SET state = 'idle', expires_at = NULL"
                )


async def test_a_database_that_is_away_refuses_starts_and_then_takes_them(
    orchestra: Orchestra, diamond: str
) -> None:
    """F11, F12: UNAVAILABLE meanwhile, no restart of the process, and work goes on after."""
    request = pb.StartExecutionRequest(workflow_id=diamond, input_json='{"x":1}')
    async with orchestra.running():
        async with (await orchestra.runner(add_one)).kept():
            await orchestra.stub.StartExecution(request)
            allow(orchestra, connections=False)
            refusals = []
            for _ in range(2):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await orchestra.stub.StartExecution(request, timeout=1)
                refusals.append(refused.value.code())
            allow(orchestra, connections=True)
            started = await until_taken(orchestra, request)
            done = await orchestra.stub.WaitExecution(
                pb.WaitExecutionRequest(execution_id=started.execution.id)
            )
    assert set(refusals) <= _MEANWHILE
    assert '{"sum":7}' == done.execution.output_json


def allow(orchestra: Orchestra, *, connections: bool) -> None:
    """Let the test's database take connections, or end those it has and take none."""
    parts = urlsplit(orchestra.database.url())
    with psycopg.connect(urlunsplit(parts._replace(path="/postgres")), autocommit=True) as admin:
        admin.execute(f'ALTER DATABASE "{orchestra.database.name}" ALLOW_CONNECTIONS {connections}')
        if not connections:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = %s AND pid <> %s",
                (orchestra.database.name, orchestra.sql.info.backend_pid),
            )


async def until_taken(
    orchestra: Orchestra, request: pb.StartExecutionRequest
) -> pb.StartExecutionResponse:
    """Start again and again until it is taken, as a client with retries would."""
    while True:
        try:
            return await orchestra.stub.StartExecution(request, timeout=2)
        except grpc.aio.AioRpcError as error:
            if error.code() not in _MEANWHILE:
                raise


_MEANWHILE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
