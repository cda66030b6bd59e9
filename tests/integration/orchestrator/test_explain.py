"""Why a run is not moving, or why it ended, over a real engine."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

from qflow.orchestrator.v1 import explain_service_pb2 as pb
from qflow.orchestrator.v1.explain_service_pb2_grpc import ExplainServiceStub

from tests import factories
from tests.fakes.runner import Fail
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.control import cancel, chain, ended, refusal, start
from tests.integration.orchestrator.test_start_options import moment


async def reasons(orchestra: Orchestra, execution_id: str) -> list[pb.ExecutionReason]:
    stub: Any = ExplainServiceStub(orchestra.channel(orchestra.owner.token))
    answer = await stub.ExplainExecution(pb.ExplainExecutionRequest(execution_id=execution_id))
    return list(answer.reasons)


async def only(orchestra: Orchestra, execution_id: str) -> pb.ExecutionReason:
    [reason] = await reasons(orchestra, execution_id)
    return reason


async def test_a_run_says_for_whom_it_waits(orchestra: Orchestra, diamond: str) -> None:
    """No runner; then one that is full; then one that has it; then one that went silent."""
    async with orchestra.running():
        run = await start(orchestra, diamond)
        reason = await only(orchestra, run.id)
        assert (pb.EXECUTION_CAUSE_NO_RUNNER, ["a"], 1) == (
            reason.cause, list(reason.nodes), reason.node_count,
        )  # fmt: skip
        assert "start a runner" == reason.action
        runner = await orchestra.runner(lambda *_: None, slots=1)
        async with runner.attached():
            await runner.until(lambda: bool(runner.assigns))
            assert pb.EXECUTION_CAUSE_NODES_RUNNING == (await only(orchestra, run.id)).cause
            assert (await only(orchestra, run.id)).HasField("time")
            second = await start(orchestra, diamond)
            assert pb.EXECUTION_CAUSE_RUNNERS_FULL == (await only(orchestra, second.id)).cause
        # The end of the stream is noticed a moment after the client's side of it.
        while (reason := await only(orchestra, run.id)).cause != pb.EXECUTION_CAUSE_RUNNER_SILENT:
            assert pb.EXECUTION_CAUSE_NODES_RUNNING == reason.cause
        assert pb.EXECUTION_CAUSE_NO_RUNNER == (await only(orchestra, second.id)).cause


async def test_a_run_says_what_its_nodes_lack(orchestra: Orchestra) -> None:
    locked = factories.node(orchestra.sql, orchestra.owner, lock="pending")
    newer = factories.node(orchestra.sql, orchestra.owner, python="3.14")
    edges = [("", "x", "a", "x"), ("", "x", "b", "x")]
    workflow_id = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"a": locked, "b": newer},
        edges=edges,
        outputs=[("out", "a")],
    )
    async with orchestra.running():
        run = await start(orchestra, workflow_id)  # no runner is here that could have been asked
        async with (await orchestra.runner(lambda *_: None)).attached():
            found = {each.cause: each for each in await reasons(orchestra, run.id)}
    assert {pb.EXECUTION_CAUSE_ENVIRONMENT_PENDING, pb.EXECUTION_CAUSE_NO_PYTHON} == set(found)
    assert ["a"] == list(found[pb.EXECUTION_CAUSE_ENVIRONMENT_PENDING].nodes)
    assert "3.14" in found[pb.EXECUTION_CAUSE_NO_PYTHON].action


async def test_a_run_says_until_when_it_waits(orchestra: Orchestra) -> None:
    def fail(*_: Any) -> object:
        raise Fail

    retry = {"retry": {"max_retries": 1, "initial_delay_ms": 600_000, "max_delay_ms": 600_000}}
    workflow_id = chain(orchestra, "a", node_settings={"a": retry})
    async with orchestra.running():
        when = moment(timedelta(days=1))
        later = await start(orchestra, workflow_id, start_time=when)
        reason = await only(orchestra, later.id)
        assert (pb.EXECUTION_CAUSE_SCHEDULED, when.seconds) == (reason.cause, reason.time.seconds)
        runner = await orchestra.runner(fail)
        async with runner.attached():
            run = await start(orchestra, workflow_id)
            await runner.until(lambda: bool(runner.acks))
            reason = await only(orchestra, run.id)
    assert pb.EXECUTION_CAUSE_RETRY_DUE == reason.cause
    assert ("user_error" in reason.message, ["a"]) == (True, list(reason.nodes))
    assert reason.time.ToDatetime() > run.create_time.ToDatetime()


async def test_a_run_that_is_over_says_why(orchestra: Orchestra) -> None:
    """And what goes on from there; one that completed has nothing to say."""
    kinds = {"oom": "memory", "timeout": "longer", "user_error": "mend the node"}

    def answer(_define: Any, _assign: Any, inputs: dict[str, Any]) -> object:
        if inputs["x"] < len(kinds):
            raise Fail([*kinds][inputs["x"]])
        return 0

    workflow_id = chain(orchestra, "a")
    async with orchestra.running():
        async with (await orchestra.runner(answer)).attached():
            for at, (kind, helps) in enumerate(kinds.items()):
                run = await start(orchestra, workflow_id, f'{{"x":{at}}}')
                await ended(orchestra, run.id)
                reason = await only(orchestra, run.id)
                assert (pb.EXECUTION_CAUSE_FAILED, ["a"]) == (reason.cause, list(reason.nodes))
                assert kind in reason.message
                assert helps in reason.action
            good = await start(orchestra, workflow_id, '{"x":9}')
            await ended(orchestra, good.id)
            assert [] == await reasons(orchestra, good.id)
        stopped = await start(orchestra, workflow_id)
        await cancel(orchestra, stopped.id)
        reason = await only(orchestra, stopped.id)
    assert pb.EXECUTION_CAUSE_CANCELLED == reason.cause
    assert reason.HasField("time")


async def test_a_run_that_is_being_stopped_says_what_is_left(
    orchestra: Orchestra, diamond: str
) -> None:
    async with orchestra.running():
        runner = await orchestra.runner(lambda *_: None)
        async with runner.attached():
            run = await start(orchestra, diamond)
            await runner.until(lambda: bool(runner.assigns))
        await cancel(orchestra, run.id)  # nobody is there to kill it
        reason = await only(orchestra, run.id)
    assert (pb.EXECUTION_CAUSE_CANCELLING, ["a"]) == (reason.cause, list(reason.nodes))


async def test_a_run_of_others_is_not_explained(orchestra: Orchestra, diamond: str) -> None:
    """B62i."""
    async with orchestra.running():
        call = reasons(orchestra, str(uuid.uuid4()))
        assert ("NOT_FOUND", "EXECUTION_NOT_FOUND") == (await refusal(call))[:2]
        run = await start(orchestra, diamond)
        orchestra.owner = factories.user(orchestra.sql)
        call = reasons(orchestra, run.id)
        assert ("NOT_FOUND", "EXECUTION_NOT_FOUND") == (await refusal(call))[:2]
