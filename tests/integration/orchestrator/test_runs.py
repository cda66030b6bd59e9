"""Executions end to end over a real database, with a runner that answers by a function."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import grpc
import orjson
import pytest
from qflow.orchestrator.v1 import execution_pb2
from qflow.orchestrator.v1 import execution_service_pb2 as pb

from tests import factories
from tests.fakes.runner import Fail
from tests.integration.orchestrator.conftest import Orchestra


def add_one(_define: Any, _assign: Any, inputs: dict[str, Any]) -> object:
    return sum(inputs.values()) + 1


async def test_a_diamond_completes_with_its_output(orchestra: Orchestra, diamond: str) -> None:
    """I5, I6, I7: every node, flow and time of a completed run is in its rows."""
    async with orchestra.running():
        runner = await orchestra.runner(add_one)
        async with runner.attached():
            started = await orchestra.stub.StartExecution(
                pb.StartExecutionRequest(workflow_id=diamond, input_json='{"x":1}')
            )
            done = await orchestra.stub.WaitExecution(
                pb.WaitExecutionRequest(execution_id=started.execution.id)
            )
            await runner.until(lambda: len(runner.acks) == 4)
    assert done.done
    assert execution_pb2.EXECUTION_STATUS_COMPLETED == done.execution.status
    assert {"sum": 7} == orjson.loads(done.execution.output_json)
    assert 4 == done.execution.node_counts.completed
    rows = orchestra.rows(
        "SELECT node_id, status, execution_order, output_data::text FROM node_executions"
        " ORDER BY execution_order"
    )
    assert [("a", 1), ("b", 2), ("c", 3), ("d", 4)] == [(row[0], row[2]) for row in rows]
    assert {"completed"} == {row[1] for row in rows}
    assert '{"result":7}' == rows[-1][3]
    flows = orchestra.rows(
        "SELECT source_node_id, target_node_id, data_size_bytes FROM node_data_flow ORDER BY 1, 2"
    )
    assert [("a", "b", 1), ("a", "c", 1), ("b", "d", 1), ("c", "d", 1)] == flows
    assert [] == orchestra.rows(
        "SELECT 1 FROM node_data_flow f JOIN node_executions s ON s.node_id = f.source_node_id"
        " JOIN node_executions t ON t.node_id = f.target_node_id"
        " WHERE t.started_at < s.completed_at"
    )


async def test_a_request_id_starts_one_run_only(orchestra: Orchestra, diamond: str) -> None:
    """I12, B62b: equal requests get one run, another body is refused."""
    request = pb.StartExecutionRequest(
        workflow_id=diamond, input_json='{"x":1}', request_id=str(uuid.uuid4())
    )
    async with orchestra.running():
        answers = await asyncio.gather(*(orchestra.stub.StartExecution(request) for _ in range(8)))
        assert 1 == len({answer.execution.id for answer in answers})
        request.input_json = '{"x":2}'
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await orchestra.stub.StartExecution(request)
    assert grpc.StatusCode.ALREADY_EXISTS == refused.value.code()


async def test_a_failed_attempt_is_tried_again_with_backoff(orchestra: Orchestra) -> None:
    """I23: each failed attempt leaves a row of its own and an error log."""
    node = factories.node(orchestra.sql, orchestra.owner)
    retry = {"max_retries": 3, "initial_delay_ms": 20, "factor": 2.0, "max_delay_ms": 60_000}
    workflow_id = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"a": node},
        edges=[("", "x", "a", "x")],
        outputs=[("out", "a")],
        node_settings={"a": {"retry": {**retry, "jitter": 0.1}}},
    )

    def flaky(_define: Any, assign: Any, inputs: dict[str, Any]) -> object:
        if assign.attempt < 3:
            raise Fail
        return inputs["x"]

    async with orchestra.running():
        async with (await orchestra.runner(flaky)).attached():
            started = await orchestra.stub.StartExecution(
                pb.StartExecutionRequest(workflow_id=str(workflow_id), input_json='{"x":5}')
            )
            done = await orchestra.stub.WaitExecution(
                pb.WaitExecutionRequest(execution_id=started.execution.id)
            )
    assert '{"out":5}' == done.execution.output_json
    attempts = orchestra.rows("SELECT attempt, outcome, error_type FROM node_attempts ORDER BY 1")
    assert [(1, "failed", "user_error"), (2, "failed", "user_error")] == attempts
    assert [(2,)] == orchestra.rows("SELECT count(*) FROM error_logs")
    assert [("completed", 2, None)] == orchestra.rows(
        "SELECT status, retry_count, error_type FROM node_executions"
    )


async def test_a_place_whose_requirements_cannot_be_met_fails_the_run_by_its_name(
    orchestra: Orchestra,
) -> None:
    """B92, B94: what ran before it stays, and the error stands where errors are looked for."""
    fine = factories.node(orchestra.sql, orchestra.owner)
    unmet = factories.node(orchestra.sql, orchestra.owner, lock="failed")
    workflow_id = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"a": fine, "b": unmet, "c": fine},
        edges=[("", "x", "a", "x"), ("a", "result", "b", "x"), ("b", "result", "c", "x")],
        outputs=[("out", "c")],
    )
    async with orchestra.running():
        async with (await orchestra.runner(add_one)).attached():
            started = await orchestra.stub.StartExecution(
                pb.StartExecutionRequest(workflow_id=str(workflow_id), input_json='{"x":5}')
            )
            done = await orchestra.stub.WaitExecution(
                pb.WaitExecutionRequest(execution_id=started.execution.id)
            )
        listed = await orchestra.stub.ListNodeExecutions(
            pb.ListNodeExecutionsRequest(execution_id=started.execution.id)
        )
    assert execution_pb2.EXECUTION_STATUS_FAILED == done.execution.status
    assert ("b", "dependency_error") == (
        done.execution.error.node_id,
        done.execution.error.error_type,
    )
    assert [
        execution_pb2.NODE_EXECUTION_STATUS_COMPLETED,
        execution_pb2.NODE_EXECUTION_STATUS_FAILED,
        execution_pb2.NODE_EXECUTION_STATUS_SKIPPED,
    ] == [node.status for node in listed.node_executions]
    assert listed.node_executions[1].error == done.execution.error
    assert [("dependency_error", None)] == orchestra.rows(
        "SELECT error_type, node_execution_id FROM error_logs"
    )


async def test_a_run_that_no_runner_could_ever_serve_is_refused(orchestra: Orchestra) -> None:
    """What waits for ever helps nobody; without any runner yet it may wait."""
    ours = factories.node(orchestra.sql, orchestra.owner)
    other = factories.node(orchestra.sql, orchestra.owner, python="3.9")
    workflow_id = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"a": ours, "b": other},
        edges=[("", "x", "a", "x"), ("a", "result", "b", "x")],
        outputs=[("out", "b")],
    )
    request = pb.StartExecutionRequest(workflow_id=str(workflow_id), input_json='{"x":5}')
    async with orchestra.running():
        started = await orchestra.stub.StartExecution(request)
        assert execution_pb2.EXECUTION_STATUS_PENDING == started.execution.status
        async with (await orchestra.runner(add_one)).attached():
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await orchestra.stub.StartExecution(request)
    assert grpc.StatusCode.FAILED_PRECONDITION == refused.value.code()
    assert "node b needs Python 3.9, and the runners have 3.11" in (refused.value.details() or "")


async def test_a_failure_stops_the_run_and_skips_the_rest(
    orchestra: Orchestra, diamond: str
) -> None:
    def b_fails(define: Any, assign: Any, inputs: dict[str, Any]) -> object:
        if define.node_id == "b":
            raise Fail
        return add_one(define, assign, inputs)

    async with orchestra.running():
        async with (await orchestra.runner(b_fails)).attached():
            started = await orchestra.stub.StartExecution(
                pb.StartExecutionRequest(workflow_id=diamond, input_json='{"x":1}')
            )
            done = await orchestra.stub.WaitExecution(
                pb.WaitExecutionRequest(execution_id=started.execution.id)
            )
            nodes = await orchestra.stub.ListNodeExecutions(
                pb.ListNodeExecutionsRequest(execution_id=started.execution.id)
            )
    assert execution_pb2.EXECUTION_STATUS_FAILED == done.execution.status
    assert ("user_error", "b") == (done.execution.error.error_type, done.execution.error.node_id)
    by_id = {node.node_id: node.status for node in nodes.node_executions}
    assert execution_pb2.NODE_EXECUTION_STATUS_SKIPPED == by_id["d"]
    assert execution_pb2.NODE_EXECUTION_STATUS_FAILED == by_id["b"]


async def test_cancel_kills_what_runs_and_is_final(orchestra: Orchestra, diamond: str) -> None:
    """I14, B62d: only cancelled follows, and cancelling again changes nothing."""
    async with orchestra.running():
        runner = await orchestra.runner(lambda *_: None)
        async with runner.attached():
            started = await orchestra.stub.StartExecution(
                pb.StartExecutionRequest(workflow_id=diamond, input_json='{"x":1}')
            )
            await runner.until(lambda: bool(runner.assigns))
            request = pb.CancelExecutionRequest(execution_id=started.execution.id)
            await orchestra.stub.CancelExecution(request)
            done = await orchestra.stub.WaitExecution(
                pb.WaitExecutionRequest(execution_id=started.execution.id)
            )
            again = await orchestra.stub.CancelExecution(request)
    assert 1 == len(runner.kills)
    assert execution_pb2.EXECUTION_STATUS_CANCELLED == done.execution.status
    assert execution_pb2.EXECUTION_STATUS_CANCELLED == again.execution.status
    assert [("cancelled",)] == orchestra.rows("SELECT status FROM node_executions")


async def test_a_run_outlives_the_orchestrator(orchestra: Orchestra, diamond: str) -> None:
    """G1, F2: the next process takes over what its runners still have."""
    held: list[Any] = []

    def slow_c(define: Any, assign: Any, inputs: dict[str, Any]) -> object:
        if define.node_id == "c" and not held:
            held.append(assign)
            return None
        return add_one(define, assign, inputs)

    async with orchestra.running():
        runner = await orchestra.runner(slow_c)
        async with runner.attached():
            started = await orchestra.stub.StartExecution(
                pb.StartExecutionRequest(workflow_id=diamond, input_json='{"x":1}')
            )
            await runner.until(lambda: bool(held) and len(runner.acks) == 2)
    async with orchestra.running():
        again = await orchestra.runner(slow_c)
        runner.channel = again.channel
        async with runner.attached():
            runner.succeed(held[0], 3)
            done = await orchestra.stub.WaitExecution(
                pb.WaitExecutionRequest(execution_id=started.execution.id)
            )
    assert '{"sum":7}' == done.execution.output_json
    assert [(4, 4)] == orchestra.rows("SELECT count(*), count(DISTINCT id) FROM node_executions")
    assert [] == orchestra.rows("SELECT 1 FROM node_attempts")


async def test_a_lost_runner_is_fenced_and_its_attempt_begins_again(
    orchestra: Orchestra, diamond: str
) -> None:
    """G4, F3, F6: the late writer is not let in again."""
    async with orchestra.running():
        dead = await orchestra.runner(lambda *_: None)
        async with dead.attached():
            started = await orchestra.stub.StartExecution(
                pb.StartExecutionRequest(workflow_id=diamond, input_json='{"x":1}')
            )
            await dead.until(lambda: bool(dead.assigns))
        await orchestra.renew(dead, ttl_s=0.1)
        async with (await orchestra.runner(add_one)).attached():
            done = await orchestra.stub.WaitExecution(
                pb.WaitExecutionRequest(execution_id=started.execution.id)
            )
            with pytest.raises(grpc.aio.AioRpcError) as refused:  # noqa: PT012 - it is held open
                async with dead.attached():
                    dead.succeed(dead.assigns[0], 100)
                    await dead.until(lambda: bool(dead.superseded))
    assert grpc.StatusCode.FAILED_PRECONDITION == refused.value.code()
    assert '{"sum":7}' == done.execution.output_json
    assert [("lost",)] == orchestra.rows("SELECT outcome FROM node_attempts")
    assert [("fenced",)] == orchestra.rows(
        "SELECT state FROM runner_members WHERE incarnation = %s", dead.incarnation
    )


async def test_a_watch_shows_every_state_and_ends_with_the_run(
    orchestra: Orchestra, diamond: str
) -> None:
    async with orchestra.running():
        runner = await orchestra.runner(lambda *_: None)
        async with runner.attached():
            started = await orchestra.stub.StartExecution(
                pb.StartExecutionRequest(workflow_id=diamond, input_json='{"x":1}')
            )
            call = orchestra.stub.WatchExecution(
                pb.WatchExecutionRequest(execution_id=started.execution.id)
            )
            seen: list[pb.WatchExecutionResponse] = []
            async for message in call:
                seen.append(message)
                if message.HasField("bookmark"):
                    runner.answer = add_one
                    await runner.until(lambda: bool(runner.assigns))
                    runner.succeed(runner.assigns[0], 2)
            resumed = [
                message
                async for message in orchestra.stub.WatchExecution(
                    pb.WatchExecutionRequest(
                        execution_id=started.execution.id, after_revision=seen[-1].revision - 1
                    )
                )
            ]
    kinds = [message.WhichOneof("event") for message in seen]
    assert ["snapshot", "bookmark"] == kinds[:2]
    last = seen[-1].delta.execution
    assert execution_pb2.EXECUTION_STATUS_COMPLETED == last.status
    assert '{"sum":7}' == last.output_json
    revisions = [message.revision for message in seen[1:]]
    assert sorted(revisions) == revisions
    assert execution_pb2.EXECUTION_STATUS_COMPLETED == resumed[-1].delta.execution.status
    completed = {
        node.node_id
        for message in seen
        for node in (*message.snapshot.node_executions, *message.delta.node_executions)
        if node.status == execution_pb2.NODE_EXECUTION_STATUS_COMPLETED
    }
    assert {"a", "b", "c", "d"} == completed


async def test_how_far_an_attempt_came_outlives_the_orchestrator(orchestra: Orchestra) -> None:
    """I40: the attempt that another process assigns is told what the failed one had said."""
    node = factories.node(orchestra.sql, orchestra.owner)
    retry = {"max_retries": 2, "initial_delay_ms": 1500, "factor": 1.0, "max_delay_ms": 1500}
    workflow_id = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"a": node},
        edges=[("", "x", "a", "x")],
        outputs=[("out", "a")],
        node_settings={"a": {"retry": {**retry, "jitter": 0.0}}},
    )

    def half_way(_define: Any, assign: Any, _inputs: dict[str, Any]) -> object:
        if assign.attempt == 1:
            raise Fail(progress='{"page":7}')
        return orjson.loads(assign.progress_json)["page"]

    async with orchestra.running():
        async with (await orchestra.runner(half_way)).attached() as runner:
            started = await orchestra.stub.StartExecution(
                pb.StartExecutionRequest(workflow_id=str(workflow_id), input_json='{"x":5}')
            )
            await runner.until(lambda: len(runner.acks) == 1)
    assert [('{"page":7}',)] == orchestra.rows("SELECT progress::text FROM node_attempts")
    async with orchestra.running():
        async with (await orchestra.runner(half_way)).attached():
            done = await orchestra.stub.WaitExecution(
                pb.WaitExecutionRequest(execution_id=started.execution.id)
            )
    assert '{"out":7}' == done.execution.output_json
