"""Attempts begin when they are due, whatever else happens to their runs, as callers see it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from google.protobuf.duration_pb2 import Duration
from qflow.orchestrator.v1 import control_service_pb2 as pb
from qflow.orchestrator.v1 import explain_service_pb2 as why
from qflow.orchestrator.v1.control_service_pb2_grpc import ControlServiceStub

from tests import factories
from tests.fakes.runner import Fail
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.control import COMPLETED, PENDING, ended, get, start
from tests.integration.orchestrator.test_explain import only, reasons
from tests.integration.orchestrator.test_start_options import moment

LATER: dict[str, Any] = {"max_retries": 5, "initial_delay_ms": 600_000, "jitter": 0}


def steering(orchestra: Orchestra) -> Any:
    return ControlServiceStub(orchestra.channel(orchestra.owner.token))


async def test_a_join_that_three_words_begin_fails_once_before_its_backoff(
    orchestra: Orchestra,
) -> None:
    calls: list[int] = []

    def answer(_define: Any, _assign: Any, inputs: dict[str, Any]) -> object:
        calls.append(inputs["x"])
        if inputs["x"] < 0:
            raise Fail
        return 1

    words = {f"w{at}": {"kind": "signal", "signal": {"name": f"w{at}"}} for at in range(3)}
    node = factories.node(orchestra.sql, orchestra.owner)
    joined = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={**words, "j": node},
        edges=[],
        links=[{"source": name, "target": "j", "kind": "order"} for name in words],
        inputs=(),
        outputs=[],
        node_settings={"j": {"join": {"policy": "any"}, "retry": LATER, "parameters": {"x": "-1"}}},
    )
    other = factories.workflow(
        orchestra.sql, orchestra.owner, nodes={"n": node}, edges=[("", "x", "n", "x")], outputs=[]
    )
    async with orchestra.running():
        run = await start(orchestra, joined, "{}")
        for name in words:
            word = pb.SendSignalRequest(execution_id=run.id, name=name, payload_json="1")
            await steering(orchestra).SendSignal(word)
        behind = await start(orchestra, other, '{"x":1}')
        async with (await orchestra.runner(answer)).attached():
            assert COMPLETED == (await ended(orchestra, behind.id)).status
    assert [-1, 1] == calls


async def test_a_node_that_is_held_up_fails_when_its_time_for_all_attempts_is_up(
    orchestra: Orchestra,
) -> None:
    def fail(*_: Any) -> object:
        raise Fail

    workflow = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"n": factories.node(orchestra.sql, orchestra.owner)},
        edges=[("", "x", "n", "x")],
        outputs=[],
        node_settings={"n": {"retry": LATER, "total_timeout_ms": 1500}},
    )
    async with orchestra.running():
        async with (await orchestra.runner(fail)).attached():
            run = await start(orchestra, workflow)
            await until_retrying(orchestra, run.id)
            held = pb.PauseNodeRequest(execution_id=run.id, node="n")
            await steering(orchestra).PauseNode(held)
            over = await ended(orchestra, run.id)
    assert ("n", "total_timeout") == (over.error.node_id, over.error.error_type)


async def test_a_run_that_is_paused_and_resumed_keeps_the_moment_of_its_next_try(
    orchestra: Orchestra,
) -> None:
    calls: list[int] = []

    def fail_once(*_: Any) -> object:
        calls.append(1)
        if len(calls) == 1:
            raise Fail
        return 1

    soon = {"max_retries": 1, "initial_delay_ms": 3000, "jitter": 0}
    workflow = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"n": factories.node(orchestra.sql, orchestra.owner)},
        edges=[("", "x", "n", "x")],
        outputs=[],
        node_settings={"n": {"retry": soon}},
    )
    async with orchestra.running():
        async with (await orchestra.runner(fail_once)).attached():
            run = await start(orchestra, workflow)
            due_at = await until_retrying(orchestra, run.id)
            stub = steering(orchestra)
            await stub.PauseExecution(pb.PauseExecutionRequest(execution_id=run.id))
            while datetime.now(UTC) < due_at - timedelta(milliseconds=400):
                await get(orchestra, run.id)
            await stub.ResumeExecution(pb.ResumeExecutionRequest(execution_id=run.id))
            assert COMPLETED == (await ended(orchestra, run.id)).status
    [(began,)] = orchestra.rows(
        "SELECT started_at FROM node_executions WHERE workflow_execution_id = %s", run.id
    )
    began_at = cast("datetime", began)
    assert due_at - timedelta(milliseconds=100) < began_at < due_at + timedelta(milliseconds=2500)


async def test_a_clock_that_was_an_hour_ahead_begins_no_run_before_its_time(
    orchestra: Orchestra, diamond: str
) -> None:
    """What is stamped follows the latest of the rows; what lies ahead follows the clock."""
    orchestra.forges = True
    word = {"kind": "signal", "signal": {"name": "word"}}
    waits = factories.workflow(
        orchestra.sql, orchestra.owner, nodes={"w": word}, edges=[], inputs=(), outputs=[]
    )
    async with orchestra.running():
        await start(orchestra, waits, "{}")
    await orchestra.change("UPDATE workflow_executions SET started_at = now() + interval '1 hour'")
    async with orchestra.running():
        later = moment(timedelta(minutes=10))
        run = await start(orchestra, diamond, start_time=later, timeout=Duration(seconds=60))
        assert PENDING == (await get(orchestra, run.id)).status
        late = run.deadline_time.ToDatetime(UTC) - datetime.now(UTC)
        assert timedelta(minutes=10) < late < timedelta(minutes=12)


async def until_retrying(orchestra: Orchestra, run_id: str) -> datetime:
    """Wait for a node's first failure; returns when it is tried again."""
    while True:
        rows = orchestra.rows(
            "SELECT due_at FROM node_executions"
            " WHERE workflow_execution_id = %s AND status = 'retrying'",
            run_id,
        )
        if rows:
            return cast("datetime", rows[0][0])
        await asyncio.sleep(0.02)  # another process would have to say so


async def test_a_run_that_is_paused_before_its_time_is_pending_again_when_it_is_resumed(
    orchestra: Orchestra, diamond: str
) -> None:
    async with orchestra.running():
        run = await start(orchestra, diamond, start_time=moment(timedelta(hours=1)))
        stub = steering(orchestra)
        await stub.PauseExecution(pb.PauseExecutionRequest(execution_id=run.id))
        causes = [each.cause for each in await reasons(orchestra, run.id)]
        assert [why.EXECUTION_CAUSE_PAUSED, why.EXECUTION_CAUSE_SCHEDULED] == causes
        await stub.ResumeExecution(pb.ResumeExecutionRequest(execution_id=run.id))
        resumed = await get(orchestra, run.id)
        assert (PENDING, False) == (resumed.status, resumed.HasField("start_time"))
        assert why.EXECUTION_CAUSE_SCHEDULED == (await only(orchestra, run.id)).cause
