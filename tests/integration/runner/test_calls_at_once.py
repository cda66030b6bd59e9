"""Several calls of an `async def` in one interpreter, from the start of a run to its row."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from qflow.orchestrator.v1 import execution_pb2
from qflow.orchestrator.v1 import execution_service_pb2 as pb

from tests.integration.orchestrator.conftest import Orchestra, orchestra
from tests.integration.runner.test_attach import attached, run, single, until

__all__ = ["orchestra"]

COMPLETED, FAILED = (
    execution_pb2.EXECUTION_STATUS_COMPLETED,
    execution_pb2.EXECUTION_STATUS_FAILED,
)
# Each call waits for a while until so many are inside.
MEET = """
import asyncio
inside, most, made, gate = 0, 0, 0, asyncio.Event()
async def meet(count):
    global inside, most, made
    inside, made = inside + 1, made + 1
    most = max(most, inside)
    if inside >= count:
        gate.set()
    try:
        await asyncio.wait_for(gate.wait(), 30 if count > 2 else 3)
    except asyncio.TimeoutError:
        pass  # alone
"""


async def begin(orchestra: Orchestra, workflow: str, x: int) -> str:
    started = await orchestra.stub.StartExecution(
        pb.StartExecutionRequest(workflow_id=workflow, input_json=json.dumps({"x": x}))
    )
    return str(started.execution.id)


async def ended(orchestra: Orchestra, execution_id: str) -> Any:
    done = await orchestra.stub.WaitExecution(
        pb.WaitExecutionRequest(execution_id=execution_id), timeout=20
    )
    return done.execution


async def test_no_more_calls_meet_than_the_node_says(orchestra: Orchestra) -> None:
    """One slot serves them: what waits for the network takes no processor."""
    code = MEET + (
        "async def main(x: int) -> int:\n"
        "    global inside\n"
        "    await meet(4)\n"
        "    await asyncio.sleep(0.02)\n"
        "    inside -= 1\n"
        "    return most\n"
    )
    workflow = single(orchestra, code, concurrency=4)
    async with orchestra.running(), attached(orchestra, QFLOW_RUNNER_SLOTS="1"):
        runs = await asyncio.gather(*(run(orchestra, workflow, x) for x in range(16)))
    assert {COMPLETED} == {each.status for each in runs}, runs
    assert {4} == {json.loads(each.output_json)["out"] for each in runs}
    assert [(4, 16, "stopped")] == orchestra.rows(
        "SELECT (resource_limits->>'concurrency')::int, (resource_usage->>'attempts')::int, status"
        " FROM containers"
    )


async def test_lines_of_calls_that_meet_stand_with_their_own_run(orchestra: Orchestra) -> None:
    code = MEET + (
        "import os\n"
        "async def main(x: int) -> int:\n"
        "    await meet(3)\n"
        "    for at in range(20):\n"
        "        print(os.environ['QFLOW_RUN_ID'], at)\n"
        "        await asyncio.sleep(0)\n"
        "    return x\n"
    )
    workflow = single(orchestra, code, concurrency=3)
    async with orchestra.running(), attached(orchestra):
        runs = await asyncio.gather(*(run(orchestra, workflow, x) for x in range(3)))
    for each in runs:
        lines = orchestra.rows(
            "SELECT line FROM node_logs"
            f" WHERE workflow_execution_id = '{each.id}' ORDER BY sequence"
        )
        assert [(f"{each.id} {at}",) for at in range(20)] == lines


@pytest.mark.parametrize(
    ("ending", "told"),
    [
        ("os._exit(7)", "exited"),
        ("held = [bytearray(1 << 24) for _ in range(64)]", "oom"),
    ],
)
async def test_whoever_ends_the_interpreter_fails_alone(
    orchestra: Orchestra, ending: str, told: str
) -> None:
    """B96, B107: the sandbox's end is nobody's until it ends under one call alone."""
    code = MEET + (
        "import os\n"
        "async def main(x: int) -> int:\n"
        "    await meet(2)\n"
        "    if x == 1:\n"
        f"        {ending}\n"
        "    await asyncio.sleep(0.5)\n"
        "    return x + made\n"
    )
    workflow = single(orchestra, code, concurrency=2, memory_bytes=64 << 20)
    async with orchestra.running(), attached(orchestra):
        runs = [await begin(orchestra, workflow, x) for x in (1, 10)]
        guilty, other = [await ended(orchestra, each) for each in runs]
    assert (FAILED, told) == (guilty.status, guilty.error.error_type), guilty
    assert COMPLETED == other.status, other
    # Made again alone, where it had met nobody; and no attempt was counted for that.
    assert {"out": 11} == json.loads(other.output_json)
    assert [(f"{other.id}", 0)] == [
        (str(run_id), retries)
        for run_id, retries in orchestra.rows(
            "SELECT workflow_execution_id, retry_count FROM node_executions"
            " WHERE status = 'completed'"
        )
    ]


@pytest.mark.parametrize("stubborn", [False, True])
async def test_a_cancelled_call_leaves_by_itself_or_takes_the_sandbox_with_it(
    orchestra: Orchestra,
    stubborn: bool,  # noqa: FBT001 - a case
) -> None:
    wait = "__import__('time').sleep(600)" if stubborn else "await asyncio.sleep(600)"
    code = MEET + (
        "async def main(x: int) -> int:\n"
        "    await meet(2 if x != 3 else 1)\n"
        "    if x == 1:\n"
        "        print('in', flush=True)\n"
        f"        {wait}\n"
        "    if x == 2: await asyncio.sleep(1)\n"
        "    return made\n"
    )
    workflow = single(orchestra, code, concurrency=2)
    async with orchestra.running(), attached(orchestra):
        second = await begin(orchestra, workflow, 2)
        first = await begin(orchestra, workflow, 1)
        await until(orchestra, "SELECT 1 FROM node_logs WHERE line = 'in'")
        await orchestra.stub.CancelExecution(pb.CancelExecutionRequest(execution_id=first))
        assert execution_pb2.EXECUTION_STATUS_CANCELLED == (await ended(orchestra, first)).status
        done = await ended(orchestra, second)
        assert COMPLETED == done.status, done
        # Of two that met the other went on, or was made again in an interpreter of its own.
        assert {"out": 1 if stubborn else 2} == json.loads(done.output_json)
        # What a cancelled call was in takes no other.
        again = json.loads((await run(orchestra, workflow, 3)).output_json)["out"]
    assert (2 if stubborn else 1) == again


async def test_calls_of_a_function_that_is_not_async_do_not_meet(orchestra: Orchestra) -> None:
    code = (
        "import time\n"
        "inside = 0\n"
        "def main(x: int) -> int:\n"
        "    global inside\n"
        "    inside += 1\n"
        "    time.sleep(0.05)\n"
        "    inside -= 1\n"
        "    return inside\n"
    )
    workflow = single(orchestra, code, concurrency=4)
    async with orchestra.running(), attached(orchestra):
        runs = await asyncio.gather(*(run(orchestra, workflow, x) for x in range(6)))
    assert [{"out": 0}] * 6 == [json.loads(each.output_json) for each in runs]
    assert [(None,)] == orchestra.rows(
        "SELECT DISTINCT resource_limits->>'concurrency' FROM containers"
    )
