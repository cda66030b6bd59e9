"""The engine when its database, its fence or a row goes wrong under it."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from qflow.orchestrator.v1 import execution_pb2
from qflow.orchestrator.v1 import execution_service_pb2 as pb

from tests import factories
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.test_runs import add_one

_CLEAN = (
    # I1, I2, I3, I4: no row is half over, doubled, or left behind.
    "SELECT 'I1' FROM workflow_executions"
    " WHERE (status IN ('completed','failed','cancelled')) <> (completed_at IS NOT NULL)"
    " UNION ALL SELECT 'I2' FROM node_executions GROUP BY workflow_execution_id, node_id"
    " HAVING count(*) > 1"
    " UNION ALL SELECT 'I4' FROM node_executions n JOIN workflow_executions w"
    " ON w.id = n.workflow_execution_id WHERE w.completed_at IS NOT NULL AND n.completed_at IS NULL"
    " UNION ALL SELECT 'I6' FROM node_executions WHERE completed_at < started_at"
)


async def test_runs_go_on_when_the_journal_loses_its_connection(
    orchestra: Orchestra, diamond: str
) -> None:
    """F11, F13, rule 6: forget, take a new epoch, reload; nothing is lost and nothing doubled."""
    async with orchestra.running():
        runner = await orchestra.runner(add_one)
        async with runner.kept():
            runs = []
            for x in range(5):
                answer = await orchestra.stub.StartExecution(
                    pb.StartExecutionRequest(workflow_id=diamond, input_json=f'{{"x":{x}}}')
                )
                runs.append(answer.execution.id)
            orchestra.rows(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'qflow-journal' AND datname = current_database()"
            )
            outputs = []
            for run in runs:
                done = await orchestra.stub.WaitExecution(pb.WaitExecutionRequest(execution_id=run))
                outputs.append(done.execution.output_json)
    assert [f'{{"sum":{2 * (x + 2) + 1}}}' for x in range(5)] == outputs
    assert [] == orchestra.rows(_CLEAN)
    assert [(20,)] == orchestra.rows("SELECT count(*) FROM node_executions")


async def test_memory_is_made_anew_where_the_journals_connection_broke_while_nothing_was_written(
    orchestra: Orchestra, diamond: str
) -> None:
    """F11: the next one may lead to a server that was promoted, and knows of less."""
    epoch = "SELECT epoch FROM engine_members"
    async with orchestra.running(), asyncio.timeout(30):
        await orchestra.stub.StartExecution(
            pb.StartExecutionRequest(workflow_id=diamond, input_json='{"x":1}')
        )
        before = orchestra.rows(epoch)
        orchestra.rows(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'qflow-journal' AND datname = current_database()"
        )
        while before == orchestra.rows(epoch):  # noqa: ASYNC110  # the database knows when
            await asyncio.sleep(0.01)


async def test_a_fenced_member_writes_nothing_more(
    orchestra: Orchestra, diamond: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """F7, I9: the fence is a locked row, and the process that lost it ends in order."""
    async with orchestra.running():
        runner = await orchestra.runner(lambda *_: None)
        async with runner.attached():
            await orchestra.stub.StartExecution(
                pb.StartExecutionRequest(workflow_id=diamond, input_json='{"x":1}')
            )
            await runner.until(lambda: bool(runner.assigns))
            await orchestra.change("UPDATE engine_members SET state = 'fenced'")
            runner.succeed(runner.assigns[0], 2)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await orchestra.stub.StartExecution(
                    pb.StartExecutionRequest(workflow_id=diamond, input_json='{"x":2}')
                )
    assert grpc.StatusCode.UNAVAILABLE == refused.value.code()
    assert "member_fenced" in capsys.readouterr().out
    assert [("running",)] == orchestra.rows("SELECT status FROM node_executions")
    assert [(1,)] == orchestra.rows("SELECT count(*) FROM workflow_executions")


async def test_a_run_that_cannot_be_read_ends_and_the_others_are_found(
    orchestra: Orchestra, diamond: str
) -> None:
    """A row that makes no sense must not keep the orchestrator from starting."""
    async with orchestra.running():
        runner = await orchestra.runner(lambda *_: None)
        async with runner.attached():
            broken, sound = [
                await orchestra.stub.StartExecution(
                    pb.StartExecutionRequest(workflow_id=diamond, input_json=f'{{"x":{x}}}')
                )
                for x in (1, 2)
            ]
            await runner.until(lambda: len(runner.assigns) == 2)
    orchestra.rows(
        "UPDATE node_executions SET node_id = 'nowhere' WHERE workflow_execution_id = %s"
        " RETURNING id",
        broken.execution.id,
    )
    async with orchestra.running():
        await orchestra.renew(runner, ttl_s=0)
        async with (await orchestra.runner(add_one)).attached():
            ended = await orchestra.stub.WaitExecution(
                pb.WaitExecutionRequest(execution_id=broken.execution.id)
            )
            fine = await orchestra.stub.WaitExecution(
                pb.WaitExecutionRequest(execution_id=sound.execution.id)
            )
    assert "engine_error" == ended.execution.error.error_type
    assert '{"sum":9}' == fine.execution.output_json
    assert [] == orchestra.rows(_CLEAN)


async def test_a_runner_that_stands_still_on_an_open_stream_is_fenced(
    orchestra: Orchestra, diamond: str
) -> None:
    """F6: a lease that ran out counts, whatever the stream looks like."""
    async with orchestra.running():
        frozen = await orchestra.runner(lambda *_: None, slots=8)
        other = await orchestra.runner(add_one, slots=1)
        async with frozen.attached(), other.attached():
            started = await orchestra.stub.StartExecution(
                pb.StartExecutionRequest(workflow_id=diamond, input_json='{"x":1}')
            )
            await frozen.until(lambda: bool(frozen.assigns))
            await orchestra.renew(frozen, ttl_s=0.1)
            done = await orchestra.stub.WaitExecution(
                pb.WaitExecutionRequest(execution_id=started.execution.id)
            )
    assert '{"sum":7}' == done.execution.output_json
    assert [("lost",)] == orchestra.rows("SELECT outcome FROM node_attempts")


async def test_a_run_that_cannot_be_written_ends_alone(orchestra: Orchestra, diamond: str) -> None:
    """R25: its rows are refused, it is loaded again, then it fails with a reason; others go on."""

    def poison(define: Any, assign: Any, inputs: dict[str, Any]) -> object:
        if inputs.get("x") == 666:
            return b"neither"  # no column of PostgreSQL's takes it
        return add_one(define, assign, inputs)

    async with orchestra.running():
        async with (await orchestra.runner(poison)).kept():
            bad, good = [
                await orchestra.stub.StartExecution(
                    pb.StartExecutionRequest(workflow_id=diamond, input_json=f'{{"x":{x}}}')
                )
                for x in (666, 1)
            ]
            fine = await orchestra.stub.WaitExecution(
                pb.WaitExecutionRequest(execution_id=good.execution.id)
            )
            ended = await orchestra.stub.WaitExecution(
                pb.WaitExecutionRequest(execution_id=bad.execution.id)
            )
    assert '{"sum":7}' == fine.execution.output_json
    assert [] == orchestra.rows(_CLEAN)
    assert execution_pb2.EXECUTION_STATUS_FAILED == ended.execution.status
    assert "engine_error" == ended.execution.error.error_type


async def test_a_deadline_ends_a_run_and_kills_what_runs(orchestra: Orchestra) -> None:
    node = factories.node(orchestra.sql, orchestra.owner)
    workflow_id = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"a": node},
        edges=[("", "x", "a", "x")],
        outputs=[("out", "a")],
        settings={"timeout_ms": 200},
    )
    async with orchestra.running():
        runner = await orchestra.runner(lambda *_: None)
        async with runner.attached():
            started = await orchestra.stub.StartExecution(
                pb.StartExecutionRequest(workflow_id=str(workflow_id), input_json='{"x":5}')
            )
            done = await orchestra.stub.WaitExecution(
                pb.WaitExecutionRequest(execution_id=started.execution.id)
            )
    assert execution_pb2.EXECUTION_STATUS_FAILED == done.execution.status
    assert "deadline_exceeded" == done.execution.error.error_type
    assert 1 == len(runner.kills)
    assert [] == orchestra.rows(_CLEAN)


async def test_a_place_that_takes_three_runners_with_it_is_quarantined(
    orchestra: Orchestra,
) -> None:
    """F30, I36: after one loss it runs alone; the third loss is the last."""
    node = factories.node(orchestra.sql, orchestra.owner)
    workflow_id = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"a": node},
        edges=[("", "x", "a", "x")],
        outputs=[("out", "a")],
    )
    async with orchestra.running():
        started = await orchestra.stub.StartExecution(
            pb.StartExecutionRequest(workflow_id=str(workflow_id), input_json='{"x":5}')
        )
        for _ in range(3):
            runner = await orchestra.runner(lambda *_: None)
            async with runner.attached():
                await runner.until(lambda each=runner: bool(each.assigns))  # type: ignore[misc]
            await orchestra.renew(runner, ttl_s=0)
        done = await orchestra.stub.WaitExecution(
            pb.WaitExecutionRequest(execution_id=started.execution.id)
        )
    assert "runner_lost" == done.execution.error.error_type
    assert [("quarantined", 3)] == orchestra.rows(
        "SELECT status, delivery_count FROM node_executions"
    )


async def test_another_tenant_sees_nothing_of_a_run(orchestra: Orchestra, diamond: str) -> None:
    """X13, X14, B62i: a foreign id answers like a missing one, byte for byte."""
    stranger = factories.user(orchestra.sql)
    async with orchestra.running():
        started = await orchestra.stub.StartExecution(
            pb.StartExecutionRequest(workflow_id=diamond, input_json='{"x":1}')
        )
        from qflow.orchestrator.v1.execution_service_pb2_grpc import ExecutionServiceStub

        foreign: Any = ExecutionServiceStub(orchestra.channel(stranger.token))
        missing = "0190d6c1-5f2e-7c3a-9d5b-1f0e2d3c4b5a"

        async def refusal(call: Any, request: Any) -> str:
            with pytest.raises(grpc.aio.AioRpcError) as refused:  # noqa: PT012  # two kinds of call
                answer = call(request)
                if hasattr(answer, "read"):
                    await answer.read()
                    raise AssertionError("it answered")
                await answer
            return f"{refused.value.code()} {refused.value.details()}"

        for rpc, message in (
            (foreign.GetExecution, pb.GetExecutionRequest),
            (foreign.ListNodeExecutions, pb.ListNodeExecutionsRequest),
            (foreign.WaitExecution, pb.WaitExecutionRequest),
            (foreign.CancelExecution, pb.CancelExecutionRequest),
        ):
            theirs = await refusal(rpc, message(execution_id=started.execution.id))
            nobodys = await refusal(rpc, message(execution_id=missing))
            assert "NOT_FOUND" in theirs
            assert nobodys == theirs
        listed = await foreign.ListExecutions(pb.ListExecutionsRequest())
        assert [] == list(listed.executions)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await foreign.StartExecution(
                pb.StartExecutionRequest(workflow_id=diamond, input_json='{"x":1}')
            )
    assert grpc.StatusCode.NOT_FOUND == refused.value.code()
