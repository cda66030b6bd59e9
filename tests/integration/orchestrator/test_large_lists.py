"""Lists in files over real rows: what runners are told, also after a restart."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import UUID

import grpc
import pytest
from qflow.orchestrator.v1 import attach_service_pb2 as attach
from qflow.orchestrator.v1 import execution_pb2
from qflow.orchestrator.v1 import execution_service_pb2 as pb
from qflow.orchestrator.v1.attach_service_pb2_grpc import AttachServiceStub

from services.kit.ids import uuid7
from tests import factories
from tests.fakes.runner import FakeRunner
from tests.integration.orchestrator.conftest import Orchestra

HASH = b"\xab" * 32


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    from services.orchestrator.domain import compatibility

    monkeypatch.setattr(compatibility, "check", lambda *_: None)


def stored(orchestra: Orchestra, assign: Any, **counts: int) -> attach.AttemptValueFile:
    """Write the row of a file that an attempt gave, as its runner does before its result."""
    file_id, tenant_id = uuid7(), orchestra.owner.id
    orchestra.sql.execute(
        "INSERT INTO files (id, filename, original_filename, file_path, file_size_bytes,"
        " hash_sha256, workflow_execution_id, node_execution_id, tenant_id, created_by,"
        " element_counts) VALUES (%s, 'f', 'f', %s, 70000, %s, %s, %s, %s, %s, %s)",
        (
            file_id,
            f"{tenant_id}/{file_id}",
            HASH.hex(),
            UUID(bytes=assign.execution_id),
            UUID(bytes=assign.attempt_ref),
            tenant_id,
            tenant_id,
            json.dumps(counts),
        ),
    )
    return attach.AttemptValueFile(
        file_id=file_id.bytes, size_bytes=70_000, sha256=HASH, counts=counts
    )


def element(assign: attach.AttemptAssignment) -> int:
    """Give which element of the list in a file an attempt is to take."""
    [value] = assign.inputs
    assert value.file.HasField("index")
    assert ("result", HASH, 70_000) == (value.file.field, value.file.sha256, value.file.size_bytes)
    return value.file.index


async def held(runner: FakeRunner, number: int) -> attach.AttemptAssignment:
    """Wait for the attempt of an element."""

    def found() -> list[attach.AttemptAssignment]:
        return [each for each in runner.held.values() if element(each) == number]

    await runner.until(lambda: bool(found()))
    return found()[0]


async def pulled(runner: FakeRunner, assign: attach.AttemptAssignment) -> list[Any]:
    """Pull the one input of an attempt: texts and the ids of files, in turn."""
    stub = AttachServiceStub(runner.channel)
    request = attach.GetValuesRequest(attempt_ref=assign.attempt_ref, token=assign.token)
    parts = [part async for part in stub.GetValues(request)]
    assert [*[False] * (len(parts) - 1), True] == [part.last for part in parts]
    assert {0} == {part.input for part in parts}
    return [part.file.file_id if part.HasField("file") else part.chunk for part in parts]


async def read(runner: FakeRunner) -> None:
    """Wait until what was sent on the runner's stream is read: calls that came later are answered.

    What they ask for is refused, which needs no database.
    """
    stub = AttachServiceStub(runner.channel)
    for _ in range(3):
        with pytest.raises(grpc.aio.AioRpcError):
            await anext(
                aiter(stub.GetValues(attach.GetValuesRequest(attempt_ref=bytes(16), token=1)))
            )


def made(orchestra: Orchestra, mapped: dict[str, Any]) -> str:
    one = factories.node(orchestra.sql, orchestra.owner)
    workflow = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"make": one, "each": one, "join": one},
        edges=[
            ("", "x", "make", "x"),
            ("make", "result", "each", "x"),
            ("each", "result", "join", "x"),
        ],
        outputs=[("out", "join")],
        node_settings={"each": {"map": {"input": "x", **mapped}}},
    )
    return str(workflow)


async def test_a_map_over_a_list_in_a_file_goes_on_after_a_restart(orchestra: Orchestra) -> None:
    """B44, I34: the count comes from the file's row; a list with files in it is pulled in parts."""
    workflow = made(orchestra, {"max_in_flight": 2})
    large: dict[int, bytes] = {}

    def answer(define: Any, assign: Any, inputs: dict[str, Any]) -> object:
        if define.node_id == "make":
            return stored(orchestra, assign, result=4)
        if define.node_id == "each" and element(assign) == 0:
            file = stored(orchestra, assign)
            large[0] = file.file_id
            return file
        return None

    async with orchestra.running():
        runner = await orchestra.runner(answer)
        async with runner.attached():
            started = await orchestra.stub.StartExecution(
                pb.StartExecutionRequest(workflow_id=workflow, input_json='{"x":1}')
            )
            await runner.until(lambda: len(runner.assigns) == 4)
            assert [0, 1, 2] == [element(assign) for assign in runner.assigns[1:]]
    async with orchestra.running():
        again = await orchestra.runner(answer)
        again.incarnation, again.held = runner.incarnation, runner.held
        async with again.attached():
            for number in (1, 2, 3):
                assign = await held(again, number)
                again.succeed(assign, number * 10)
            await again.until(lambda: any(each.pull for each in again.assigns))
            [join] = [each for each in again.assigns if each.pull]
            assert [b"[", large[0], b",10,20,30]"] == await pulled(again, join)
            again.succeed(join, 7)
            done = await orchestra.stub.WaitExecution(
                pb.WaitExecutionRequest(execution_id=started.execution.id)
            )
    assert execution_pb2.EXECUTION_STATUS_COMPLETED == done.execution.status, done
    assert {"out": 7} == json.loads(done.execution.output_json)


async def test_an_element_whose_map_failed_before_it_was_sent_is_taken_back(
    orchestra: Orchestra,
) -> None:
    """B44: what it would be given is gone with the map; the run ends all the same."""
    workflow = made(orchestra, {})

    def answer(define: Any, assign: Any, inputs: dict[str, Any]) -> object:
        if define.node_id == "make":
            return stored(orchestra, assign, result=6)
        return None

    async with orchestra.running():
        runner = await orchestra.runner(answer, slots=3)
        async with runner.attached():
            started = await orchestra.stub.StartExecution(
                pb.StartExecutionRequest(workflow_id=workflow, input_json='{"x":1}')
            )
            await runner.until(lambda: len(runner.assigns) == 4)
            one, other, third = runner.assigns[1:]
            # In two frames, for those of one are taken together: the first frees a credit for the
            # next element, the other ends the map while that element's row is being written.
            success, failure = attach.AttemptSuccess(outputs=[b"1"]), attach.AttemptFailure()
            with orchestra.sql.transaction():
                await orchestra.change("LOCK TABLE node_executions IN SHARE MODE")
                runner.say(
                    attach.AttemptResult(
                        attempt_ref=one.attempt_ref, token=one.token, success=success
                    )
                )
                async with asyncio.timeout(30):
                    while not orchestra.rows("SELECT 1 FROM pg_locks WHERE NOT granted"):  # noqa: ASYNC110  # rows give no signal
                        await asyncio.sleep(0.01)
                runner.say(
                    attach.AttemptResult(
                        attempt_ref=other.attempt_ref, token=other.token, failure=failure
                    )
                )
                await read(runner)
            await runner.until(lambda: len(runner.superseded) == 1)
            runner.succeed(third, 1)
            done = await orchestra.stub.WaitExecution(
                pb.WaitExecutionRequest(execution_id=started.execution.id)
            )
    assert execution_pb2.EXECUTION_STATUS_FAILED == done.execution.status, done
    assert [("each[3]", "cancelled")] == orchestra.rows(
        "SELECT node_id, status FROM node_executions WHERE status = 'cancelled'"
    )


async def test_a_loop_over_values_in_files_goes_on_where_its_condition_reads_the_turn_alone(
    orchestra: Orchestra,
) -> None:
    rule = {"condition": "turn < 3", "max_turns": 5, "carry": {"x": "result"}}
    workflow_id = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"l": factories.node(orchestra.sql, orchestra.owner)},
        edges=[("", "x", "l", "x")],
        outputs=[],
        node_settings={"l": {"loop": rule}},
    )
    async with orchestra.running():
        runner = await orchestra.runner(lambda _, assign, __: stored(orchestra, assign))
        async with runner.attached():
            request = pb.StartExecutionRequest(workflow_id=str(workflow_id), input_json='{"x":1}')
            started = await orchestra.stub.StartExecution(request)
            over = await orchestra.stub.WaitExecution(
                pb.WaitExecutionRequest(execution_id=started.execution.id)
            )
    assert execution_pb2.EXECUTION_STATUS_COMPLETED == over.execution.status
    assert 3 == len(runner.assigns)
