"""The runner as a process, attached to a real orchestrator."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from qflow.orchestrator.v1 import execution_pb2
from qflow.orchestrator.v1 import execution_service_pb2 as pb

from services.kit.pythons import find_pythons
from services.runner.domain.environments import lock_digest
from services.runner.domain.frames import Declined, Greeting, Machine, Outgoing, ValuesNotGiven
from services.runner.domain.limits import Tier
from services.runner.gateways.attach import AttachStream, StreamLost
from services.runner.gateways.sandbox.port import Interpreter
from services.runner.gateways.uv import Uv
from tests import factories
from tests.integration.orchestrator.conftest import Orchestra, orchestra
from tests.integration.runner.wheels import make_wheel
from tests.support.runner_process import RunnerProcess

__all__ = ["orchestra"]


def runner_of(orchestra: Orchestra, **env: str) -> RunnerProcess:
    return RunnerProcess(
        orchestra.database.env
        | {
            "QFLOW_HOME": str(orchestra.home),
            "QFLOW_LEASE_TTL_S": str(orchestra.ttl_s),
            "QFLOW_RUNNER_LISTEN": "127.0.0.1:0",
            "QFLOW_SERVICE_TOKEN": orchestra.runner_token,
            "QFLOW_ORCHESTRATOR_ATTACH_ADDRESS": orchestra.attach_address,
            "QFLOW_RUNNER_SLOTS": "4",
        }
        | env,
        orchestra.home / "runner.log",
    )


@asynccontextmanager
async def attached(orchestra: Orchestra, **env: str) -> AsyncIterator[RunnerProcess]:
    runner = runner_of(orchestra, **env).start()
    try:
        await runner.until_said("attached")
        yield runner
    finally:
        await runner.stop()


def single(orchestra: Orchestra, code: str, **settings: Any) -> str:
    """A workflow of one node."""
    one = factories.node(orchestra.sql, orchestra.owner, code=code)
    return str(
        factories.workflow(
            orchestra.sql,
            orchestra.owner,
            nodes={"a": one},
            edges=[("", "x", "a", "x")],
            outputs=[("out", "a")],
            node_settings={"a": settings} if settings else None,
        )
    )


async def run(orchestra: Orchestra, workflow: str, x: int = 1) -> Any:
    started = await orchestra.stub.StartExecution(
        pb.StartExecutionRequest(workflow_id=workflow, input_json=json.dumps({"x": x}))
    )
    done = await orchestra.stub.WaitExecution(
        pb.WaitExecutionRequest(execution_id=started.execution.id), timeout=15
    )
    return done.execution


async def until(orchestra: Orchestra, query: str) -> None:
    """Wait until the database answers with a row."""
    async with asyncio.timeout(30):
        while not orchestra.rows(query):  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.05)


async def test_a_chain_runs_in_warm_interpreters(orchestra: Orchestra) -> None:
    """G2, I18: results arrive, a row stands per sandbox and none per attempt."""
    async with orchestra.running(), attached(orchestra):
        one = factories.node(orchestra.sql, orchestra.owner)
        names = [f"n{at}" for at in range(40)]
        edges = [("", "x", "n0", "x")]
        edges += [(a, "result", b, "x") for a, b in itertools.pairwise(names)]
        workflow = str(
            factories.workflow(
                orchestra.sql,
                orchestra.owner,
                nodes=dict.fromkeys(names, one),
                edges=edges,
                outputs=[("out", names[-1])],
            )
        )
        for _ in range(3):
            done = await run(orchestra, workflow)
        assert execution_pb2.EXECUTION_STATUS_COMPLETED == done.status, done
        assert {"out": 41} == json.loads(done.output_json)
        await until(  # while the sandbox lives
            orchestra,
            "SELECT 1 FROM containers WHERE status = 'running'"
            " AND (resource_usage->>'attempts')::int = 120"
            " AND (resource_usage->>'memory_peak_bytes')::bigint > 0",
        )
    rows = orchestra.rows(
        "SELECT status, resource_limits->>'isolation', (resource_usage->>'attempts')::int"
        " FROM containers"
    )
    assert [("stopped", "T2", 120)] == rows
    assert [("gone",)] == orchestra.rows("SELECT state FROM runner_members")


async def test_a_runner_that_is_killed_loses_no_run(orchestra: Orchestra) -> None:
    """F3, I9, I19: the child dies with it, and another runner makes the attempt again."""
    async with orchestra.running():
        workflow = single(
            orchestra,
            "import os, time\n"
            "def main(x: int) -> int:\n"
            "    if os.environ['QFLOW_ATTEMPT'] == '1' and not os.path.exists('/ledger/second'):\n"
            "        open('/ledger/first', 'w').close()\n"
            "        time.sleep(600)\n"
            "    return x + 1\n",
        )
        ledger = orchestra.home / "ledger"
        ledger.mkdir(mode=0o777)
        ledger.chmod(0o777)
        first = ledger / "first"
        env = {"QFLOW_TESTING": "1", "QFLOW_RUNNER_TEST_BIND": str(ledger)}
        async with attached(orchestra, **env) as runner:
            running = asyncio.create_task(run(orchestra, workflow))
            async with asyncio.timeout(30):
                while not first.exists():  # noqa: ASYNC110 - a sandbox writes it
                    await asyncio.sleep(0.02)
            await runner.stop(signal.SIGKILL)
            (ledger / "second").touch()
        async with attached(orchestra, **env):
            done = await running
    assert execution_pb2.EXECUTION_STATUS_COMPLETED == done.status, done
    assert {"out": 2} == json.loads(done.output_json)


async def test_a_runner_that_was_fenced_while_stopped_comes_back_as_another(
    orchestra: Orchestra,
) -> None:
    """F6: it ends its child and joins anew, and the attempt is made again."""
    async with orchestra.running(), attached(orchestra) as runner:
        workflow = single(
            orchestra,
            "import os, time\ndef main(x: int) -> int:\n    time.sleep(x)\n    return x + 1\n",
        )
        running = asyncio.create_task(run(orchestra, workflow, 3))
        await until(orchestra, "SELECT 1 FROM containers WHERE status = 'running'")
        runner.send(signal.SIGSTOP)
        # What another orchestrator would do once the lease has run out.
        await orchestra.change("UPDATE runner_members SET state = 'fenced' WHERE state = 'live'")
        runner.send(signal.SIGCONT)
        await runner.until_said("lease_lost")
        await runner.until_said('"attached"', times=2)
        done = await running
    assert execution_pb2.EXECUTION_STATUS_COMPLETED == done.status, done
    assert 2 == len(orchestra.rows("SELECT 1 FROM runner_members"))
    assert 1 == len(orchestra.rows("SELECT 1 FROM node_executions WHERE delivery_count = 1"))


async def test_results_wait_for_an_orchestrator_that_comes_back(orchestra: Orchestra) -> None:
    """F2, rule 7: the loss of a stream ends no attempt, and its result is offered again."""
    async with orchestra.running():
        workflow = single(
            orchestra,
            "import time\ndef main(x: int) -> int:\n    time.sleep(1)\n    return x + 1\n",
        )
        runner = runner_of(orchestra).start()
        await runner.until_said("attached")
        started = await orchestra.stub.StartExecution(
            pb.StartExecutionRequest(workflow_id=workflow, input_json='{"x":1}')
        )
        await until(orchestra, "SELECT 1 FROM containers WHERE status = 'running'")
    try:
        async with orchestra.running():
            done = await orchestra.stub.WaitExecution(
                pb.WaitExecutionRequest(execution_id=started.execution.id), timeout=15
            )
    finally:
        await runner.stop()
    assert execution_pb2.EXECUTION_STATUS_COMPLETED == done.execution.status, done
    assert [(1,)] == orchestra.rows("SELECT (resource_usage->>'attempts')::int FROM containers")


async def test_a_stream_that_ends_anyhow_is_lost_and_its_runner_goes_on(
    orchestra: Orchestra,
) -> None:
    """Rule 7: no other error of the library's gets out, whoever ended it and whatever was asked."""
    greeting = Greeting(
        incarnation=uuid.uuid4(),
        slots=1,
        tiers=[Tier.T2],
        pythons=["3.11"],
        machine=Machine(),
        running=[],
        finished=[],
    )
    outgoing = Outgoing(declines=[Declined(uuid.uuid4(), 1, "draining")])

    async def asked(stream: AttachStream) -> str:
        with pytest.raises(ValuesNotGiven) as told:
            await stream.get_values(uuid.uuid4(), 1, 1)
        return str(told.value)

    async with orchestra.running():
        closed = AttachStream(orchestra.attach_address, orchestra.runner_token)
        await closed.open(greeting, Outgoing())
        assert "ABORTED" in await asked(closed)
        reading = asyncio.ensure_future(closed.listen(lambda _: None))
        await asyncio.sleep(0)
        await closed.close()
        with pytest.raises(StreamLost):
            await reading
        with pytest.raises(StreamLost):
            await closed.send(outgoing)
        assert "closed" in (await asked(closed)).lower()
        left = AttachStream(orchestra.attach_address, orchestra.runner_token)
        await left.open(greeting, Outgoing())
    with pytest.raises(StreamLost):
        await left.listen(lambda _: None)
    with pytest.raises(StreamLost):  # the library has another error for a call that is over
        await left.send(outgoing)
    assert "UNAVAILABLE" in await asked(left)
    await left.close()


async def test_a_large_result_is_a_committed_file(orchestra: Orchestra) -> None:
    """I20, rule 10: bytes, then row, then result; the next node reads it by reference."""
    async with orchestra.running(), attached(orchestra):
        text = {"t": "str"}
        make = factories.node(
            orchestra.sql,
            orchestra.owner,
            code="def main(x: int) -> str:\n    return 'ab' * x\n",
        )
        count = factories.node(
            orchestra.sql,
            orchestra.owner,
            code="def main(x: str) -> int:\n    return len(x)\n",
        )
        await orchestra.change("ALTER TABLE python_node_versions DISABLE TRIGGER USER")
        await orchestra.change(
            "UPDATE python_node_versions SET output_types = %s WHERE id = %s",
            *(json.dumps([{"name": "result", "type": text}]), make.version_id),
        )
        await orchestra.change(
            "UPDATE python_node_versions SET input_types = %s WHERE id = %s",
            *(
                json.dumps([{"name": "x", "type": text, "kind": "positional", "required": True}]),
                count.version_id,
            ),
        )
        workflow = str(
            factories.workflow(
                orchestra.sql,
                orchestra.owner,
                nodes={"make": make, "count": count},
                edges=[("", "x", "make", "x"), ("make", "result", "count", "x")],
                outputs=[("out", "count")],
            )
        )
        done = await run(orchestra, workflow, 100_000)
    assert execution_pb2.EXECUTION_STATUS_COMPLETED == done.status, done
    assert {"out": 200_000} == json.loads(done.output_json)
    [(key, size)] = orchestra.rows("SELECT file_path, file_size_bytes FROM files")
    stored = (orchestra.home / "files" / str(key)).read_bytes()
    assert size == len(stored)
    assert {"result": "ab" * 100_000} == json.loads(stored)


async def test_a_cancelled_run_leaves_no_process(orchestra: Orchestra) -> None:
    """G5, E7."""
    async with orchestra.running(), attached(orchestra):
        workflow = single(
            orchestra,
            "import signal, time\n"
            "def main(x: int) -> int:\n"
            "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "    while True: time.sleep(1)\n",
        )
        started = await orchestra.stub.StartExecution(
            pb.StartExecutionRequest(workflow_id=workflow, input_json='{"x":1}')
        )
        await until(orchestra, "SELECT 1 FROM containers WHERE status = 'running'")
        await orchestra.stub.CancelExecution(
            pb.CancelExecutionRequest(execution_id=started.execution.id)
        )
        done = await orchestra.stub.WaitExecution(
            pb.WaitExecutionRequest(execution_id=started.execution.id), timeout=40
        )
        assert execution_pb2.EXECUTION_STATUS_CANCELLED == done.execution.status
        await until(
            orchestra,
            "SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM containers WHERE stopped_at IS NULL)",
        )


async def test_a_timeout_and_an_error_say_what_happened(orchestra: Orchestra) -> None:
    """B97."""
    async with orchestra.running(), attached(orchestra):
        slow = await run(
            orchestra,
            single(orchestra, "def main(x: int) -> int:\n    while True: pass\n", timeout_ms=300),
        )
        bad = await run(
            orchestra,
            single(
                orchestra, "def main(x: int) -> int:\n    print('hi')\n    raise ValueError(x)\n"
            ),
        )
    assert execution_pb2.EXECUTION_STATUS_FAILED == slow.status
    assert execution_pb2.EXECUTION_STATUS_FAILED == bad.status
    rows = orchestra.rows(
        "SELECT error_type, error_message, stdout_tail FROM node_executions ORDER BY started_at"
    )
    assert ("timeout", "the attempt took longer than 0.3 s") == rows[0][:2]
    assert ("user_error", "ValueError: 1", "hi\n") == rows[1]


async def test_a_runner_that_is_told_to_stop_finishes_what_it_has(orchestra: Orchestra) -> None:
    """F8: no failed run and no second attempt; the process ends well."""
    async with orchestra.running():
        workflow = single(
            orchestra,
            "import time\ndef main(x: int) -> int:\n    time.sleep(1)\n    return x + 1\n",
        )
        async with attached(orchestra) as runner:
            running = asyncio.create_task(run(orchestra, workflow))
            await until(orchestra, "SELECT 1 FROM containers WHERE status = 'running'")
            assert 0 == await runner.stop()
        done = await running
    assert execution_pb2.EXECUTION_STATUS_COMPLETED == done.status, done
    assert [(0, 0)] == orchestra.rows("SELECT retry_count, delivery_count FROM node_executions")
    assert [("gone",)] == orchestra.rows("SELECT state FROM runner_members")
    assert [] == orchestra.rows("SELECT 1 FROM containers WHERE stopped_at IS NULL")


async def test_an_environment_shows_its_install_in_the_sandboxs_row(
    orchestra: Orchestra, tmp_path: Path
) -> None:
    """Technique 5: the rows of container_dependencies, and the run that waited for them."""
    index = tmp_path / "index"
    make_wheel(index, "greeter", files={"greeter.py": "def greet(): return 5\n"})
    uv = Uv(env={"UV_OFFLINE": "1", "UV_FIND_LINKS": str(index)}, bubblewrap=None)
    found = find_pythons()["3.11"]
    lock = await uv.resolve(
        ["greeter"],
        folder=tmp_path,
        python_version="3.11",
        interpreter=Interpreter("3.11", found.path, found.prefix),
    )
    node = factories.node(
        orchestra.sql,
        orchestra.owner,
        code="import greeter\ndef main(x: int) -> int:\n    return x + greeter.greet()\n",
    )
    await orchestra.change(
        "UPDATE node_version_locks SET state = 'locked', lock = %s, lock_digest = %s"
        " WHERE node_version_id = %s",
        *(lock, lock_digest(lock), node.version_id),
    )
    workflow = str(
        factories.workflow(
            orchestra.sql,
            orchestra.owner,
            nodes={"a": node},
            edges=[("", "x", "a", "x")],
            outputs=[("out", "a")],
        )
    )
    env = {"UV_OFFLINE": "1", "UV_FIND_LINKS": str(index), "PIP_FIND_LINKS": ""}
    async with orchestra.running(), attached(orchestra, **env):
        done = await run(orchestra, workflow)
    assert {"out": 6} == json.loads(done.output_json)
    assert [("greeter", "1.0", "completed", True)] == orchestra.rows(
        "SELECT package_name, version, installation_status, installation_time_ms > 0"
        " FROM container_dependencies"
    )
    assert [("ready",)] == orchestra.rows("SELECT state FROM environments")
    assert [("stopped",)] == orchestra.rows("SELECT status FROM containers")
