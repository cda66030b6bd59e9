"""What becomes of a run within another that fails, or whose time is up, as callers see it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from qflow.orchestrator.v1 import control_service_pb2 as pb
from qflow.orchestrator.v1 import explain_service_pb2 as why

from tests import factories
from tests.fakes.runner import Fail
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.control import CANCELLED, FAILED, ended, get, start
from tests.integration.orchestrator.test_clocks import steering
from tests.integration.orchestrator.test_explain import reasons

WORD: dict[str, Any] = {"kind": "signal", "signal": {"name": "go", "type": {"t": "int"}}}


def around(orchestra: Orchestra, inner: object, **more: Any) -> object:
    """A workflow with a sub-workflow `s`, and with what else it is given."""
    return factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"s": {"kind": "workflow", "node_id": str(inner), "version": 1}, **more},
        edges=[("", "x", each, "x") for each in ("s", *more)],
        outputs=[],
    )


def child_of(orchestra: Orchestra, run_id: str) -> str:
    [(child,)] = orchestra.rows(
        "SELECT id::text FROM workflow_executions WHERE parent_execution_id = %s", run_id
    )
    return str(child)


async def test_a_run_that_failed_does_not_wait_for_a_word_within(orchestra: Orchestra) -> None:
    def fail(*_: Any) -> object:
        raise Fail

    node = factories.node(orchestra.sql, orchestra.owner)
    inner = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"w": WORD, "n": node},
        edges=[("w", "result", "n", "x")],
        outputs=[],
    )
    workflow = around(orchestra, inner, b=node)
    async with orchestra.running():
        run = await start(orchestra, workflow)
        child = child_of(orchestra, run.id)
        async with (await orchestra.runner(fail)).attached():
            over = await ended(orchestra, run.id)
        assert (FAILED, "b") == (over.status, over.error.node_id)
        part = await get(orchestra, child)
        assert (FAILED, "parent_failed") == (part.status, part.error.error_type)
        assert f"node b of execution {run.id} failed" in part.error.message


async def test_a_run_that_failed_says_so_while_something_within_it_runs(
    orchestra: Orchestra,
) -> None:
    def answer(_define: Any, _assign: Any, inputs: dict[str, Any]) -> object:
        if inputs["x"] == 1:
            raise Fail
        return None  # it runs until the test says so

    node = factories.node(orchestra.sql, orchestra.owner)
    inner = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"n": node},
        edges=[],
        inputs=("x",),
        outputs=[],
        node_settings={"n": {"parameters": {"x": "2"}}},
    )
    workflow = around(orchestra, inner, b=node)
    async with orchestra.running():
        async with (await orchestra.runner(answer)).attached() as runner:
            run = await start(orchestra, workflow)

            async def fails() -> bool:
                """The row of the node that failed is written a little later than memory has it."""
                found = [each.cause for each in await reasons(orchestra, run.id)]
                return found == [why.EXECUTION_CAUSE_FAILED, why.EXECUTION_CAUSE_NODES_WAITING]

            await until(fails)
            told = await reasons(orchestra, run.id)
            assert "node b failed: user_error" in told[0].message
            assert ["s"] == list(told[1].nodes)
            [held] = [each for ref, each in runner.held.items() if ref not in runner.unacked]
            runner.succeed(held, 1)
            assert FAILED == (await ended(orchestra, run.id)).status


async def test_nothing_is_undone_within_a_paused_run_whose_time_is_up_until_it_is_resumed(
    orchestra: Orchestra,
) -> None:
    node = factories.node(orchestra.sql, orchestra.owner)
    inner = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"a": node, "w": WORD, "u": node},
        edges=[("", "x", "a", "x"), ("a", "result", "u", "x")],
        links=[{"source": "a", "target": "w", "kind": "order"}],
        node_settings={"u": {"compensates": "a"}},
        outputs=[],
    )
    workflow = around(orchestra, inner)
    async with orchestra.running():
        async with (await orchestra.runner(lambda *_: 1)).attached():
            run = await start(orchestra, workflow, timeout={"seconds": 2})
            child, stub = child_of(orchestra, run.id), steering(orchestra)

            async def waits() -> bool:
                return bool(rows_of(orchestra, child, "w"))

            async def is_stopped() -> bool:
                return (await get(orchestra, child)).HasField("cancel_time")

            await until(waits)
            await stub.PauseExecution(pb.PauseExecutionRequest(execution_id=run.id))
            await until(is_stopped)  # its parent's time is up
            causes = [each.cause for each in await reasons(orchestra, child)]
            assert [why.EXECUTION_CAUSE_PAUSED, why.EXECUTION_CAUSE_CANCELLING] == causes
            assert not rows_of(orchestra, child, "u")
            await stub.ResumeExecution(pb.ResumeExecutionRequest(execution_id=run.id))
            assert "deadline_exceeded" == (await ended(orchestra, run.id)).error.error_type
            assert CANCELLED == (await ended(orchestra, child)).status
            assert rows_of(orchestra, child, "u")


def rows_of(orchestra: Orchestra, run_id: str, node_id: str) -> list[Any]:
    return orchestra.rows(
        "SELECT 1 FROM node_executions WHERE workflow_execution_id = %s AND node_id = %s",
        run_id,
        node_id,
    )


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Ask until it is so: another process makes it so."""
    async with asyncio.timeout(30):
        while not await holds():  # noqa: ASYNC110  # the database is what changes
            await asyncio.sleep(0.02)
