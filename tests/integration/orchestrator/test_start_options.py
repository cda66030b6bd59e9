"""What a start may ask for besides its inputs, over a real database."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from qflow.orchestrator.v1 import execution_pb2, run_service_pb2
from qflow.orchestrator.v1 import execution_service_pb2 as pb

from services.kit.graph_types import BUILTIN_IDS
from tests import factories
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.control import (
    CANCELLED,
    COMPLETED,
    FAILED,
    PENDING,
    cancel,
    chain,
    ended,
    get,
    refusal,
    runs,
    start,
)
from tests.integration.orchestrator.test_runs import add_one

USE = execution_pb2.BUSINESS_KEY_CONFLICT_POLICY_USE_EXISTING
CANCEL = execution_pb2.BUSINESS_KEY_CONFLICT_POLICY_CANCEL_EXISTING
IF_FAILED = execution_pb2.BUSINESS_KEY_REUSE_POLICY_ALLOW_IF_FAILED
REJECT = execution_pb2.BUSINESS_KEY_REUSE_POLICY_REJECT


def moment(ahead: timedelta) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(datetime.now(UTC) + ahead)
    return stamp


async def test_a_key_is_held_by_one_open_run(orchestra: Orchestra, diamond: str) -> None:
    """B62b: whoever comes meanwhile is refused with the id of the run that has it."""
    async with orchestra.running():
        first = await start(orchestra, diamond, business_key="order 42")
        assert "order 42" == first.business_key
        code, reason, facts = await refusal(
            start(orchestra, diamond, '{"x":2}', business_key="order 42")
        )
        assert ("ALREADY_EXISTS", "BUSINESS_KEY_IN_USE") == (code, reason)
        assert first.id == facts["execution_id"]
        other = await start(orchestra, chain(orchestra, "a"), business_key="order 42")
        assert other.id != first.id  # a key is a workflow's own
        await cancel(orchestra, first.id)
        assert (await start(orchestra, diamond, business_key="order 42")).id != first.id


async def test_of_many_starts_with_a_key_at_once_one_begins(
    orchestra: Orchestra, diamond: str
) -> None:
    """Enforced by the statement that inserts: all others are answered with that run."""
    request = pb.StartExecutionRequest(
        workflow_id=diamond, input_json='{"x":1}', business_key="k", business_key_conflict=USE
    )
    async with orchestra.running():
        answers = await asyncio.gather(*(orchestra.stub.StartExecution(request) for _ in range(16)))
    assert 1 == len({answer.execution.id for answer in answers})
    assert 1 == sum(not answer.existing for answer in answers)
    assert [(1,)] == orchestra.rows("SELECT count(*) FROM workflow_executions")


async def test_an_open_run_with_the_key_is_asked_to_stop(
    orchestra: Orchestra, diamond: str
) -> None:
    """The new run does not wait for the end of the old one's nodes."""
    async with orchestra.running():
        runner = await orchestra.runner(lambda *_: None)
        async with runner.attached():
            first = await start(orchestra, diamond, business_key="k")
            await runner.until(lambda: bool(runner.assigns))
            second = await start(orchestra, diamond, business_key="k", business_key_conflict=CANCEL)
            assert second.id != first.id
            assert CANCELLED == (await ended(orchestra, first.id)).status
            assert not (await get(orchestra, second.id)).HasField("cancel_time")


@pytest.mark.parametrize("conflict", [0, USE, CANCEL])
async def test_a_run_that_is_asked_to_stop_has_its_key_no_more(
    orchestra: Orchestra,
    diamond: str,
    conflict: execution_pb2.BusinessKeyConflictPolicy.ValueType,
) -> None:
    """Nobody is given a run that ends, however long its nodes take for that."""
    async with orchestra.running():
        runner = await orchestra.runner(lambda *_: None)
        async with runner.attached():
            first = await start(orchestra, diamond, business_key="k")
            await runner.until(lambda: bool(runner.assigns))
        stopping = await cancel(orchestra, first.id)  # its runner does not hear of it
        assert CANCELLED != stopping.status
        second = await start(orchestra, diamond, business_key="k", business_key_conflict=conflict)
        assert second.id != first.id


async def test_of_many_starts_that_stop_each_other_one_stays_open(
    orchestra: Orchestra, diamond: str
) -> None:
    """Whoever asks a run to stop tries once more; the last try asks nobody."""
    request = pb.StartExecutionRequest(
        workflow_id=diamond, input_json='{"x":1}', business_key="k", business_key_conflict=CANCEL
    )
    async with orchestra.running():
        answers = await asyncio.gather(
            *(orchestra.stub.StartExecution(request) for _ in range(8)), return_exceptions=True
        )
    refused = [each for each in answers if isinstance(each, BaseException)]
    for each in refused:
        assert isinstance(each, grpc.aio.AioRpcError)
        assert "the run that has the business_key" in (each.details() or "")
    assert [(1, 8 - len(refused))] == orchestra.rows(
        "SELECT count(*) FILTER (WHERE cancel_requested_at IS NULL), count(*)"
        "  FROM workflow_executions"
    )


async def test_what_ended_keeps_its_key_as_the_policy_says(orchestra: Orchestra) -> None:
    outcome: list[object] = [None]

    def answer(*_: Any) -> object:
        return outcome[0]

    workflow_id = chain(orchestra, "a")
    async with orchestra.running():
        async with (await orchestra.runner(answer)).attached():
            first = await start(orchestra, workflow_id, business_key="k")
            await cancel(orchestra, first.id)
            await ended(orchestra, first.id)
            outcome[0] = 5
            second = await start(
                orchestra, workflow_id, business_key="k", business_key_reuse=IF_FAILED
            )
            assert COMPLETED == (await ended(orchestra, second.id)).status
            for policy in (IF_FAILED, REJECT):
                code, reason, facts = await refusal(
                    start(orchestra, workflow_id, business_key="k", business_key_reuse=policy)
                )
                assert ("ALREADY_EXISTS", "BUSINESS_KEY_USED") == (code, reason)
                assert second.id == facts["execution_id"]
            third = await start(orchestra, workflow_id, business_key="k")
            assert COMPLETED == (await ended(orchestra, third.id)).status


@pytest.mark.parametrize("key", ["", "é" * 65, "a\0b"])
async def test_a_key_that_no_row_takes_is_refused(
    orchestra: Orchestra, diamond: str, key: str
) -> None:
    """B62a, B21."""
    async with orchestra.running():
        code, _, _ = await refusal(start(orchestra, diamond, business_key=key))
    assert "INVALID_ARGUMENT" == code


_BAD: dict[str, dict[str, Any]] = {
    "too many labels": {"labels": {f"k{n}": "" for n in range(65)}},
    "a label's key": {"labels": {"Not a key": "v"}},
    "a long label": {"labels": {"k": "é" * 129}},
    "too important": {"priority": 101},
    "too unimportant": {"priority": -101},
    "no time": {"timeout": Duration()},
    "negative time": {"timeout": Duration(seconds=-1)},
    "nanos of more than a second": {"timeout": Duration(seconds=1, nanos=10**9)},
    "a span of both signs": {"timeout": Duration(seconds=5, nanos=-1)},
    "a moment with nanos below nothing": {"start_time": Timestamp(seconds=4_000, nanos=-1)},
    "too far ahead": {"start_time": Timestamp(seconds=4_000_000_000)},
    "no such moment": {"start_time": Timestamp(seconds=10**15)},
    "a policy without a key": {"business_key_reuse": REJECT},
    "policies that clash": {
        "business_key": "k",
        "business_key_reuse": REJECT,
        "business_key_conflict": CANCEL,
    },
    "an unknown policy": {"business_key": "k", "business_key_reuse": 99},
    "version and alias": {"workflow_version": 1, "workflow_alias": "prod"},
}


@pytest.mark.parametrize("wrong", _BAD.values(), ids=_BAD)
async def test_what_makes_no_sense_is_refused(
    orchestra: Orchestra, diamond: str, wrong: dict[str, Any]
) -> None:
    async with orchestra.running():
        code, _, _ = await refusal(start(orchestra, diamond, **wrong))
    assert "INVALID_ARGUMENT" == code
    assert [(0,)] == orchestra.rows("SELECT count(*) FROM workflow_executions")


async def test_a_repeated_request_must_ask_for_the_same(orchestra: Orchestra, diamond: str) -> None:
    """I12, B62b: labels, keys and times are part of what was asked."""
    request_id = str(uuid.uuid4())
    wishes: dict[str, Any] = {"labels": {"team": "a"}, "priority": 3, "request_id": request_id}
    async with orchestra.running():
        first = await start(orchestra, diamond, **wishes)
        assert first.id == (await start(orchestra, diamond, **wishes)).id
        code, reason, _ = await refusal(start(orchestra, diamond, **wishes | {"priority": 4}))
    assert ("ALREADY_EXISTS", "REQUEST_ID_REUSED") == (code, reason)


async def test_a_check_alone_stores_nothing(orchestra: Orchestra, diamond: str) -> None:
    async with orchestra.running():
        seen = await start(orchestra, diamond, validate_only=True, labels={"team": "a"})
        assert ("", diamond, 1, PENDING) == (
            seen.id, seen.workflow_id, seen.workflow_version, seen.status,
        )  # fmt: skip
        code, _, _ = await refusal(start(orchestra, diamond, '{"x":"no"}', validate_only=True))
        assert "INVALID_ARGUMENT" == code
        stored = "SELECT (SELECT count(*) FROM workflow_executions), count(*) FROM execution_pins"
        assert [(0, 0)] == orchestra.rows(stored)
        await start(orchestra, diamond, business_key="k")
        code, reason, _ = await refusal(
            start(orchestra, diamond, business_key="k", validate_only=True)
        )
        assert ("ALREADY_EXISTS", "BUSINESS_KEY_IN_USE") == (code, reason)


async def test_a_draft_is_not_started(orchestra: Orchestra) -> None:
    """B62c."""
    workflow_id = chain(orchestra, "a", active=False)
    async with orchestra.running():
        code, reason, _ = await refusal(start(orchestra, workflow_id, validate_only=True))
    assert ("FAILED_PRECONDITION", "WORKFLOW_INACTIVE") == (code, reason)


async def test_a_run_waits_for_its_time_over_a_restart(orchestra: Orchestra, diamond: str) -> None:
    """I34: it begins once, then, and not before."""
    async with orchestra.running():
        async with (await orchestra.runner(add_one)).attached():
            when = moment(timedelta(seconds=2))
            waiting = await start(orchestra, diamond, start_time=when)
            assert PENDING == waiting.status
            assert when.seconds == waiting.scheduled_start_time.seconds
    async with orchestra.running():
        async with (await orchestra.runner(add_one)).attached():
            assert PENDING == (await get(orchestra, waiting.id)).status
            done = await ended(orchestra, waiting.id)
    assert '{"sum":7}' == done.output_json
    assert done.start_time.ToDatetime(UTC) >= when.ToDatetime(UTC)


async def test_a_run_that_waits_for_its_time_is_cancelled(
    orchestra: Orchestra, diamond: str
) -> None:
    async with orchestra.running():
        async with (await orchestra.runner(add_one)).attached():
            waiting = await start(orchestra, diamond, start_time=moment(timedelta(days=300)))
            assert CANCELLED == (await cancel(orchestra, waiting.id)).status
            past = await start(orchestra, diamond, start_time=moment(timedelta(days=-1)))
            assert COMPLETED == (await ended(orchestra, past.id)).status


async def test_the_time_of_a_run_counts_from_its_start(orchestra: Orchestra, diamond: str) -> None:
    """F33: the database's clock tells both."""
    async with orchestra.running():
        async with (await orchestra.runner(lambda *_: None)).attached():
            run = await start(
                orchestra,
                diamond,
                start_time=moment(timedelta(seconds=0.5)),
                timeout=Duration(nanos=300_000_000),
            )
            done = await ended(orchestra, run.id)
    assert (FAILED, "deadline_exceeded") == (done.status, done.error.error_type)
    allowed = done.deadline_time.ToDatetime() - done.scheduled_start_time.ToDatetime()
    assert timedelta(milliseconds=300) == allowed


async def test_a_run_gets_no_more_time_than_its_workflow_allows(orchestra: Orchestra) -> None:
    workflow_id = chain(orchestra, "a", settings={"timeout_ms": 1000})
    async with orchestra.running():
        for asked, given in ((5, 1000), (0.25, 250)):
            limit = Duration()
            limit.FromMicroseconds(int(asked * 1e6))
            run = await start(orchestra, workflow_id, timeout=limit)
            allowed = run.deadline_time.ToDatetime() - run.create_time.ToDatetime()
            assert timedelta(milliseconds=given) == allowed


async def test_nodes_of_more_important_runs_go_first(orchestra: Orchestra) -> None:
    """Runs of equal priority take turns."""
    workflow_id = chain(orchestra, "a")
    async with orchestra.running():
        for x, priority in ((1, -5), (2, 0), (3, 7), (4, 7), (5, 0)):
            await start(orchestra, workflow_id, f'{{"x":{x}}}', priority=priority)
        given: list[int] = []

        def note(_define: Any, _assign: Any, inputs: dict[str, Any]) -> object:
            given.append(inputs["x"])
            return 0

        runner = await orchestra.runner(note, slots=1)
        async with runner.attached():
            await runner.until(lambda: len(runner.acks) == 5)
    assert [3, 4, 2, 5, 1] == given


async def test_sub_workflows_are_as_important_as_the_run_that_they_are_a_part_of(
    orchestra: Orchestra,
) -> None:
    """What they did went behind, or before, that of runs without any; over a restart too."""
    inner = chain(orchestra, "a")
    made = [{"kind": "workflow", "node_id": inner, "version": 1}]
    for _ in range(2):
        whole = factories.workflow(
            orchestra.sql,
            orchestra.owner,
            nodes={"s": made[-1]},
            edges=[("", "x", "s", "x")],
            outputs=[],
        )
        made.append({"kind": "workflow", "node_id": str(whole), "version": 1})
    given: list[int] = []

    def note(_define: Any, _assign: Any, inputs: dict[str, Any]) -> object:
        given.append(inputs["x"])
        return 0

    async with orchestra.running():
        for x, priority in ((1, -5), (2, 7)):
            await start(orchestra, whole, f'{{"x":{x}}}', priority=priority)
        for x in (3, 4):
            await start(orchestra, inner, f'{{"x":{x}}}')
    async with orchestra.running():
        runner = await orchestra.runner(note, slots=1)
        async with runner.attached():
            await runner.until(lambda: len(runner.acks) == 4)
    assert [2, 3, 4, 1] == given
    kept = orchestra.rows("SELECT priority, count(*)::int FROM workflow_executions GROUP BY 1")
    assert {(-5, 3), (7, 3), (0, 2)} == set(kept)


async def test_what_a_run_was_started_with_outlives_a_restart(
    orchestra: Orchestra, diamond: str
) -> None:
    wishes: dict[str, Any] = {"labels": {"env": "prod"}, "priority": 9, "business_key": "k"}
    async with orchestra.running():
        before = await start(orchestra, diamond, **wishes)
    async with orchestra.running():
        async with (await orchestra.runner(add_one)).attached():
            after = await ended(orchestra, before.id)
            stored = await get(orchestra, before.id)
    for seen in (before, after, stored):
        assert ({"env": "prod"}, 9, "k") == (dict(seen.labels), seen.priority, seen.business_key)
        assert "3.11" == seen.python_version


async def test_a_workflow_is_executed_in_one_call(orchestra: Orchestra, diamond: str) -> None:
    async with orchestra.running():
        async with (await orchestra.runner(add_one)).attached():
            asked = run_service_pb2.ExecuteWorkflowRequest(
                start=pb.StartExecutionRequest(workflow_id=diamond, input_json='{"x":1}')
            )
            answer = await runs(orchestra).ExecuteWorkflow(asked)
    assert (True, '{"sum":7}') == (answer.done, answer.execution.output_json)


async def test_a_call_that_has_no_time_left_answers_with_the_run_as_it_stands(
    orchestra: Orchestra, diamond: str
) -> None:
    request = run_service_pb2.ExecuteWorkflowRequest(
        start=pb.StartExecutionRequest(
            workflow_id=diamond, input_json='{"x":1}', request_id=str(uuid.uuid4())
        )
    )
    async with orchestra.running():
        stub = runs(orchestra)
        first = await stub.ExecuteWorkflow(request, timeout=3)
        assert (False, False) == (first.done, first.existing)
        async with (await orchestra.runner(add_one)).attached():
            again = await stub.ExecuteWorkflow(request)
    assert (True, True, first.execution.id) == (again.done, again.existing, again.execution.id)


async def test_a_node_runs_alone(orchestra: Orchestra) -> None:
    """It has no workflow, and is found, counted and run like any other."""
    node = factories.node(orchestra.sql, orchestra.owner, inputs=("x", "y"))
    asked = run_service_pb2.RunNodeRequest(node_id=str(node.id), input_json='{"x":1,"y":2}')
    async with orchestra.running():
        async with (await orchestra.runner(add_one)).attached():
            answer = await runs(orchestra).RunNode(asked)
            listed = await orchestra.stub.ListExecutions(
                pb.ListExecutionsRequest(filter=f"node_version = {node.version_id}")
            )
            again = await runs(orchestra).RunNode(asked)
    run = answer.execution
    assert (True, '{"result":4}') == (answer.done, run.output_json)
    assert ("", 0, str(node.version_id)) == (
        run.workflow_id, run.workflow_version, run.node_version_id,
    )  # fmt: skip
    assert [run.id] == [each.id for each in listed.executions]
    assert again.execution.id != run.id
    assert [(1,)] == orchestra.rows("SELECT count(*) FROM execution_pins")


async def test_a_node_that_runs_alone_outlives_a_restart(orchestra: Orchestra) -> None:
    node = factories.node(orchestra.sql, orchestra.owner)
    asked = run_service_pb2.RunNodeRequest(
        node_id=str(node.id), input_json='{"x":1}', wait=Duration()
    )
    async with orchestra.running():
        answer = await runs(orchestra).RunNode(asked)
        assert not answer.done
    async with orchestra.running():
        async with (await orchestra.runner(add_one)).attached():
            done = await ended(orchestra, answer.execution.id)
    assert '{"result":2}' == done.output_json


async def test_a_node_is_run_by_those_who_may_read_it(orchestra: Orchestra) -> None:
    """X14: what another has is not found, like what nobody has; what is deleted is gone."""
    other = factories.user(orchestra.sql)
    foreign, own = (
        factories.node(orchestra.sql, other),
        factories.node(orchestra.sql, orchestra.owner),
    )

    async def asked(node_id: object, **more: Any) -> tuple[str, str]:
        request = run_service_pb2.RunNodeRequest(
            node_id=str(node_id), **{"input_json": '{"x":1}', **more}
        )
        code, reason, _ = await refusal(runs(orchestra).RunNode(request))
        return code, reason

    async with orchestra.running():
        assert ("NOT_FOUND", "NODE_NOT_FOUND") == await asked(foreign.id)
        assert ("NOT_FOUND", "NODE_NOT_FOUND") == await asked(uuid.uuid4())
        for built_in in BUILTIN_IDS.values():
            assert ("INVALID_ARGUMENT", "NODE_BUILT_IN") == await asked(built_in)
        assert ("NOT_FOUND", "VERSION_NOT_FOUND") == await asked(own.id, node_version=2)
        assert ("INVALID_ARGUMENT", "INPUT_INVALID") == await asked(own.id, input_json="{}")
        assert ("INVALID_ARGUMENT", "INPUT_INVALID") == await asked(own.id, input_json='{"x":NaN}')
        await orchestra.change("UPDATE python_nodes SET deleted_at = now() WHERE id = %s", own.id)
        assert ("NOT_FOUND", "NODE_NOT_FOUND") == await asked(own.id)
        await orchestra.change("UPDATE python_nodes SET is_public = true WHERE id = %s", foreign.id)
        request = run_service_pb2.RunNodeRequest(node_id=str(foreign.id), input_json='{"x":1}')
        async with (await orchestra.runner(add_one)).attached():
            assert (await runs(orchestra).RunNode(request)).done
