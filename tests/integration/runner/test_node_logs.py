"""What nodes write: in order, live, with caps, and for nobody else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from qflow.orchestrator.v1 import execution_service_pb2 as execution_pb
from qflow.runner.v1 import log_service_pb2 as pb
from qflow.runner.v1.log_service_pb2_grpc import LogServiceStub

from services.kit.rpc.channel import open_channel
from tests import factories
from tests.integration.orchestrator.conftest import Orchestra, orchestra
from tests.integration.runner.test_attach import attached, run, single
from tests.support.runner_process import RunnerProcess

__all__ = ["orchestra"]

_ORDER = """
import logging, subprocess, sys
log = logging.getLogger("mine")
def main(x: int) -> int:
    print("one")
    print("two", file=sys.stderr)
    log.info("three %d", 3)
    print("fo", end="")
    log.debug("not shown")
    print("ur")
    try:
        1 / 0
    except ZeroDivisionError:
        log.exception("five")
    print("six", end="", flush=True)
    return x
"""


@asynccontextmanager
async def logs_of(
    orchestra: Orchestra, runner: RunnerProcess, token: str = ""
) -> AsyncIterator[Any]:
    said = next(each for each in runner.said().splitlines() if "service_started" in each)
    address = json.loads(said)["addresses"][0]
    async with open_channel(address, token or orchestra.owner.token) as channel:
        yield LogServiceStub(channel)


async def listed(stub: Any, execution_id: str, count: int, **options: Any) -> Any:
    """The lines, once so many are there."""
    async with asyncio.timeout(30):
        while True:
            answer = await stub.ListLogs(
                pb.ListLogsRequest(execution_id=execution_id, page_size=1000, **options)
            )
            if len(answer.lines) >= count:
                return answer
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("reuse", ["warm", "fork", "fresh"])
async def test_prints_and_records_keep_the_order_in_which_they_were_written(
    orchestra: Orchestra, reuse: str
) -> None:
    async with orchestra.running(), attached(orchestra) as runner:
        done = await run(orchestra, single(orchestra, _ORDER, reuse=reuse))
        async with logs_of(orchestra, runner) as stub:
            lines = (await listed(stub, done.id, 9)).lines
            assert [
                (pb.LOG_STREAM_STDOUT, "one"),
                (pb.LOG_STREAM_STDERR, "two"),
                (pb.LOG_STREAM_RECORD, "three 3"),
                (pb.LOG_STREAM_STDOUT, "four"),
                (pb.LOG_STREAM_RECORD, "five"),
            ] == [(each.stream, each.text) for each in lines[:5]]
            assert "ZeroDivisionError: division by zero" == lines[-2].text
            assert (40, "mine") == (lines[-2].level, lines[-2].logger)
            assert "six" == lines[-1].text
            assert [*range(1, len(lines) + 1)] == [each.sequence for each in lines]
            assert {("a", 1)} == {(each.node_id, each.attempt) for each in lines}
            chosen = await listed(
                stub,
                done.id,
                1,
                filter=pb.LogFilter(minimum_level=40, streams=[pb.LOG_STREAM_RECORD]),
            )
            assert {40} == {each.level for each in chosen.lines}
            other = pb.LogFilter(workflow_nodes=["b"])
            assert [] == list((await listed(stub, done.id, 0, filter=other)).lines)


async def test_a_log_is_watched_while_the_node_runs_and_gone_on_with(orchestra: Orchestra) -> None:
    """Live, and after an interruption without a line lost or twice."""
    async with orchestra.running():
        ledger = orchestra.home / "ledger"
        ledger.mkdir(mode=0o777)
        ledger.chmod(0o777)
        env = {"QFLOW_TESTING": "1", "QFLOW_RUNNER_TEST_BIND": str(ledger)}
        workflow = single(
            orchestra,
            "import os, time\n"
            "def main(x: int) -> int:\n"
            "    for at in range(3):\n"
            "        print('line', at)\n"
            "        while not os.path.exists(f'/ledger/{at}'): time.sleep(0.01)\n"
            "    return x\n",
        )
        async with attached(orchestra, **env) as runner, logs_of(orchestra, runner) as stub:
            started = await orchestra.stub.StartExecution(
                execution_pb.StartExecutionRequest(workflow_id=workflow, input_json='{"x": 1}')
            )
            name = started.execution.id
            seen: list[str] = []
            after = 0
            for at in range(3):  # a stream for each line: each goes on with the one before
                async with asyncio.timeout(30):
                    call = stub.WatchLogs(
                        pb.WatchLogsRequest(execution_id=name, after_sequence=after)
                    )
                    async for message in call:
                        after = message.sequence
                        seen += [line.text for line in message.lines]
                        if message.lines:
                            break
                    call.cancel()
                assert f"line {at}" == seen[-1]
                (ledger / str(at)).touch()
            async with asyncio.timeout(30):
                last = None
                async for message in stub.WatchLogs(pb.WatchLogsRequest(execution_id=name)):
                    last = message
                    seen += [line.text for line in message.lines]
            assert last is not None
            assert last.end
            assert ["line 0", "line 1", "line 2"] * 2 == seen


async def test_what_is_beyond_the_cap_is_left_out_and_said_so(orchestra: Orchestra) -> None:
    """B99: the caps of an attempt; its tail is kept all the same."""
    code = (
        "import os\n"
        "def main(x: int) -> int:\n"
        "    print('y' * 20_000)\n"
        "    for at in range(100_000): print('line', at)\n"
        "    os.write(1, b'\\x00\\xff raw\\n')\n"
        "    return x\n"
    )
    env = {"QFLOW_RUNNER_LOG_BYTES_MAX": "65536", "QFLOW_RUNNER_LOG_LINES_MAX": "100"}
    async with orchestra.running(), attached(orchestra, **env) as runner:
        done = await run(orchestra, single(orchestra, code))
        async with logs_of(orchestra, runner) as stub:
            answer = await listed(stub, done.id, 101)
        *kept, cut = answer.lines
        assert 100 == len(kept)
        assert "y" * 8192 == kept[0].text
        assert [True, True, False] == [each.continued for each in kept[:3]]
        assert "line 96" == kept[-1].text
        assert "" == cut.text
        assert cut.left_out_bytes > 1_000_000
    [(tail,)] = orchestra.rows("SELECT stdout_tail FROM node_executions")
    assert str(tail).endswith("line 99999\n�� raw\n")


async def test_a_log_is_its_tenants_alone(orchestra: Orchestra) -> None:
    """X14, X15."""
    stranger = factories.user(orchestra.sql)
    async with orchestra.running(), attached(orchestra) as runner:
        code = "def main(x: int) -> int:\n    print('secret')\n    return x\n"
        done = await run(orchestra, single(orchestra, code))
        async with logs_of(orchestra, runner) as stub:
            await listed(stub, done.id, 1)
        async with logs_of(orchestra, runner, stranger.token) as stub:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.ListLogs(pb.ListLogsRequest(execution_id=done.id))
            assert grpc.StatusCode.NOT_FOUND == refused.value.code()


async def test_what_was_written_before_a_sudden_end_is_there(orchestra: Orchestra) -> None:
    """B107."""
    code = "import os\ndef main(x: int) -> int:\n    print('last words')\n    os._exit(3)\n"
    async with orchestra.running(), attached(orchestra) as runner:
        done = await run(orchestra, single(orchestra, code))
        async with logs_of(orchestra, runner) as stub:
            lines = (await listed(stub, done.id, 1)).lines
    assert ["last words"] == [each.text for each in lines]
