"""Runs that are made of others: what they keep, what they run, what they are told from."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from qflow.orchestrator.v1 import execution_pb2, rerun_service_pb2, run_service_pb2
from qflow.orchestrator.v1 import execution_service_pb2 as pb

from services.kit.ids import uuid7
from tests import factories
from tests.fakes.runner import Fail
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.control import (
    CANCELLED,
    COMPLETED,
    FAILED,
    cancel,
    chain,
    ended,
    get,
    refusal,
    reruns,
    runs,
    start,
)
from tests.support.invariants import INVARIANTS


class Worker:
    """Adds one, counts the places that it ran, and fails where it is told to."""

    def __init__(self, *failing: str) -> None:
        self.failing = set(failing)
        self.ran: Counter[str] = Counter()

    def __call__(self, define: Any, _assign: Any, inputs: dict[str, Any]) -> object:
        self.ran[define.node_id] += 1
        if define.node_id in self.failing:
            raise Fail
        return sum(inputs.values()) + 1


def rerun(execution_id: str, *nodes: rerun_service_pb2.RerunNode, **more: Any) -> Any:
    return rerun_service_pb2.RerunExecutionRequest(
        execution_id=execution_id, from_nodes=nodes, **more
    )


def fork(execution_id: str, *nodes: rerun_service_pb2.RerunNode, **more: Any) -> Any:
    return rerun_service_pb2.ForkExecutionRequest(
        execution_id=execution_id, from_nodes=nodes, **more
    )


def node(name: str, **more: Any) -> rerun_service_pb2.RerunNode:
    return rerun_service_pb2.RerunNode(node=name, **more)


def retry(execution_id: str, **more: Any) -> Any:
    return rerun_service_pb2.RetryExecutionRequest(execution_id=execution_id, **more)


def hold_invariants(orchestra: Orchestra) -> None:
    for name, query in INVARIANTS.items():
        assert [] == orchestra.sql.execute(query).fetchall(), name


async def test_a_retry_runs_everything_again(orchestra: Orchestra, diamond: str) -> None:
    worker = Worker("d")
    async with orchestra.running():
        async with (await orchestra.runner(worker)).attached():
            first = await start(orchestra, diamond, labels={"team": "a"}, priority=2)
            assert FAILED == (await ended(orchestra, first.id)).status
            worker.failing.clear()
            made = (await reruns(orchestra).RetryExecution(retry(first.id))).execution
            done = await ended(orchestra, made.id)
            before = await get(orchestra, first.id)
    assert (COMPLETED, '{"sum":7}') == (done.status, done.output_json)
    assert (first.id, "retry") == (done.parent_execution_id, done.relation)
    assert ({"team": "a"}, 2) == (dict(done.labels), done.priority)
    assert dict.fromkeys("abcd", 2) == worker.ran
    assert (FAILED, "") == (before.status, before.relation)  # rule 1: what is over never changes
    hold_invariants(orchestra)


async def test_a_rerun_keeps_what_completed_in_rows_of_its_own(
    orchestra: Orchestra, diamond: str
) -> None:
    """Rule 1: removing the parent takes nothing from the child."""
    worker = Worker("c")
    async with orchestra.running():
        async with (await orchestra.runner(worker)).attached():
            first = await start(orchestra, diamond)
            await ended(orchestra, first.id)
            worker.failing.clear()
            answer = await reruns(orchestra).RerunExecution(rerun(first.id))
            done = await ended(orchestra, answer.execution.id)
            hold_invariants(orchestra)
            assert (2, '{"sum":7}') == (answer.kept_results, done.output_json)
            assert {"a": 1, "b": 1, "c": 2, "d": 1} == worker.ran
            await orchestra.change("DELETE FROM workflow_executions WHERE id = %s", first.id)
            listed = await orchestra.stub.ListNodeExecutions(
                pb.ListNodeExecutionsRequest(
                    execution_id=done.id, view=execution_pb2.EXECUTION_VIEW_FULL
                )
            )
    nodes = {each.node_id: each for each in listed.node_executions}
    assert ['{"result":2}', '{"result":3}'] == [nodes[each].output_json for each in "ab"]
    assert [True, True, False, False] == [bool(nodes[each].copied_from) for each in "abcd"]
    assert 4 == done.node_counts.completed
    assert 200 == done.resource_usage.cpu_time.ToMicroseconds()  # of two nodes that ran


async def test_a_rerun_goes_on_over_a_restart(orchestra: Orchestra, diamond: str) -> None:
    """F2: what was kept is in the rows, with its exact text."""
    worker = Worker("d")
    async with orchestra.running():
        async with (await orchestra.runner(worker)).attached():
            first = await start(orchestra, diamond)
            await ended(orchestra, first.id)
        made = (await reruns(orchestra).RerunExecution(rerun(first.id))).execution
    worker.failing.clear()
    async with orchestra.running():
        async with (await orchestra.runner(worker)).attached():
            done = await ended(orchestra, made.id)
    assert '{"sum":7}' == done.output_json
    assert {"a": 1, "b": 1, "c": 1, "d": 2} == worker.ran
    hold_invariants(orchestra)


async def test_a_rerun_begins_where_it_is_told_to(orchestra: Orchestra, diamond: str) -> None:
    """The node that is named and all that hangs on it, with another input."""
    worker = Worker()
    async with orchestra.running():
        async with (await orchestra.runner(worker)).attached():
            first = await start(orchestra, diamond)
            await ended(orchestra, first.id)
            answer = await reruns(orchestra).RerunExecution(
                rerun(first.id, node("b", input_json='{"x":100}'))
            )
            done = await ended(orchestra, answer.execution.id)
            # What was edited stays so for what is made of it.
            again = (await reruns(orchestra).RetryExecution(retry(done.id))).execution
            after = await ended(orchestra, again.id)
    assert (2, '{"sum":105}') == (answer.kept_results, done.output_json)
    assert '{"sum":105}' == after.output_json
    assert {"a": 2, "b": 3, "c": 2, "d": 3} == worker.ran
    flows = orchestra.rows(
        "SELECT source_node_id, target_node_id FROM node_data_flow"
        " WHERE workflow_execution_id = %s ORDER BY 1, 2",
        done.id,
    )
    assert [("b", "d"), ("c", "d")] == flows
    hold_invariants(orchestra)


async def test_an_edited_input_outlives_a_restart(orchestra: Orchestra, diamond: str) -> None:
    async with orchestra.running():
        async with (await orchestra.runner(Worker())).attached():
            first = await start(orchestra, diamond)
            await ended(orchestra, first.id)
        edited = rerun(first.id, node("b", input_json='{"x":100}'))
        made = (await reruns(orchestra).RerunExecution(edited)).execution
    async with orchestra.running():
        async with (await orchestra.runner(Worker())).attached():
            assert '{"sum":105}' == (await ended(orchestra, made.id)).output_json


def publish(orchestra: Orchestra, made: factories.Node, *, input_type: dict[str, Any]) -> None:
    """Make version 2 of a node."""
    types = [{"name": "x", "type": input_type, "kind": "positional", "required": True}]
    [(version_id,)] = orchestra.rows(
        "INSERT INTO python_node_versions (id, node_id, version, name, code, main_function,"
        " python_version, input_types, output_types, created_by)"
        " SELECT %s, node_id, 2, name, code, main_function, python_version, %s, output_types,"
        " created_by FROM python_node_versions WHERE id = %s RETURNING id",
        uuid7(),
        json.dumps(types),
        made.version_id,
    )
    orchestra.sql.execute(
        "INSERT INTO node_version_locks (node_version_id, tenant_id, state)"
        " VALUES (%s, %s, 'none')",
        (version_id, orchestra.owner.id),
    )
    orchestra.sql.execute("UPDATE python_nodes SET version = 2 WHERE id = %s", (made.id,))


@pytest.mark.parametrize("version", [2, 0])
async def test_a_rerun_takes_a_newer_version_that_fits(orchestra: Orchestra, version: int) -> None:
    """The hot-fix: the mended node, on the results that the failed run left."""
    one, two = (factories.node(orchestra.sql, orchestra.owner) for _ in range(2))
    workflow_id = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"a": one, "b": two},
        edges=[("", "x", "a", "x"), ("a", "result", "b", "x")],
        outputs=[("out", "b")],
    )
    worker = Worker("b")
    async with orchestra.running():
        async with (await orchestra.runner(worker)).attached():
            first = await start(orchestra, workflow_id)
            await ended(orchestra, first.id)
            worker.failing.clear()
            publish(orchestra, two, input_type={"t": "int"})
            request = rerun(first.id, node("b", node_version=version))
            made = (await reruns(orchestra).RerunExecution(request)).execution
            assert '{"out":3}' == (await ended(orchestra, made.id)).output_json
    ran = orchestra.rows(
        "SELECT version.version FROM node_executions AS node"
        " JOIN python_node_versions AS version ON version.id = node.node_version_id"
        " WHERE node.workflow_execution_id = %s ORDER BY node.node_id",
        made.id,
    )
    assert [(1,), (2,)] == ran
    assert {"a": 1, "b": 2} == worker.ran


async def test_a_version_is_held_against_types_and_recorded_values(
    orchestra: Orchestra,
) -> None:
    """Where types refute an edge, the value that it will carry decides."""
    one, two = (factories.node(orchestra.sql, orchestra.owner) for _ in range(2))
    workflow_id = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"a": one, "b": two},
        edges=[("", "x", "a", "x"), ("a", "result", "b", "x")],
        outputs=[("out", "b")],
    )
    async with orchestra.running():
        async with (await orchestra.runner(Worker("b"))).attached():
            small, large = [await start(orchestra, workflow_id, f'{{"x":{x}}}') for x in (1, 5)]
            for each in (small, large):
                await ended(orchestra, each.id)
            publish(
                orchestra,
                two,
                input_type={"t": "literal", "values": [2]},
            )
            newer = node("b", node_version=2)
            await reruns(orchestra).RerunExecution(rerun(small.id, newer))
            code, reason, _ = await refusal(
                reruns(orchestra).RerunExecution(rerun(large.id, newer))
            )
    assert ("FAILED_PRECONDITION", "NODE_INCOMPATIBLE") == (code, reason)


_WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no such node": ({"name": "z"}, "NODE_UNKNOWN"),
    "no such input": ({"name": "b", "input_json": '{"q":1}'}, "INPUT_INVALID"),
    "another type": ({"name": "b", "input_json": '{"x":"1"}'}, "INPUT_INVALID"),
    "no number": ({"name": "b", "input_json": '{"x":NaN}'}, "INPUT_INVALID"),
    "no object": ({"name": "b", "input_json": "[1]"}, "INPUT_INVALID"),
}


@pytest.mark.parametrize(("wrong", "reason"), _WRONG.values(), ids=_WRONG)
async def test_what_does_not_fit_is_refused_before_anything_runs(
    orchestra: Orchestra, diamond: str, wrong: dict[str, Any], reason: str
) -> None:
    """B57, B62."""
    async with orchestra.running():
        async with (await orchestra.runner(Worker())).attached():
            first = await start(orchestra, diamond)
            await ended(orchestra, first.id)
            refused = await refusal(
                reruns(orchestra).RerunExecution(rerun(first.id, node(**wrong)))
            )
    assert ("INVALID_ARGUMENT", reason) == refused[:2]
    assert [(1,)] == orchestra.rows("SELECT count(*) FROM workflow_executions")
    assert [(1,)] == orchestra.rows("SELECT count(*) FROM execution_pins")


async def test_runs_that_nothing_can_be_made_of_are_told_why(
    orchestra: Orchestra, diamond: str
) -> None:
    """B62f, B62i: open ones, foreign ones, and those of which everything would be kept."""
    stub: Any
    async with orchestra.running():
        stub = reruns(orchestra)
        runner = await orchestra.runner(lambda *_: None)
        async with runner.attached():
            first = await start(orchestra, diamond)
            for call in (
                stub.RetryExecution(retry(first.id)),
                stub.RerunExecution(rerun(first.id)),
            ):
                assert ("FAILED_PRECONDITION", "EXECUTION_NOT_FINISHED") == (await refusal(call))[
                    :2
                ]
            await cancel(orchestra, first.id)
            await ended(orchestra, first.id)
        async with (await orchestra.runner(Worker())).attached():
            whole = await start(orchestra, diamond)
            await ended(orchestra, whole.id)
            call = stub.RerunExecution(rerun(whole.id))
            assert ("FAILED_PRECONDITION", "NOTHING_TO_RERUN") == (await refusal(call))[:2]
            twice = rerun(whole.id, node("a"), node("a"))
            call = stub.RerunExecution(twice)
            assert ("INVALID_ARGUMENT", "NODE_NAMED_TWICE") == (await refusal(call))[:2]
            call = stub.RetryExecution(retry(str(uuid.uuid4())))
            assert ("NOT_FOUND", "EXECUTION_NOT_FOUND") == (await refusal(call))[:2]
            await orchestra.change("UPDATE workflows SET is_active = false")
            call = stub.RetryExecution(retry(whole.id))
            assert ("FAILED_PRECONDITION", "WORKFLOW_INACTIVE") == (await refusal(call))[:2]
            await orchestra.change("UPDATE workflows SET deleted_at = now()")
            call = stub.RetryExecution(retry(whole.id))
            assert ("FAILED_PRECONDITION", "WORKFLOW_GONE") == (await refusal(call))[:2]


async def test_a_repeated_request_makes_one_run(orchestra: Orchestra, diamond: str) -> None:
    """I12: also when its parent is gone."""
    request_id = str(uuid.uuid4())
    async with orchestra.running():
        async with (await orchestra.runner(Worker("d"))).attached():
            first = await start(orchestra, diamond)
            await ended(orchestra, first.id)
            stub = reruns(orchestra)
            request = rerun(first.id, request_id=request_id)
            one = await stub.RerunExecution(request)
            await ended(orchestra, one.execution.id)
            await orchestra.change("DELETE FROM workflow_executions WHERE id = %s", first.id)
            two = await stub.RerunExecution(request)
            assert (one.execution.id, 3) == (two.execution.id, two.kept_results)
            code, reason, _ = await refusal(
                stub.RerunExecution(rerun(first.id, node("a"), request_id=request_id))
            )
    assert ("ALREADY_EXISTS", "REQUEST_ID_REUSED") == (code, reason)


async def test_a_check_alone_makes_no_run(orchestra: Orchestra, diamond: str) -> None:
    async with orchestra.running():
        async with (await orchestra.runner(Worker("d"))).attached():
            first = await start(orchestra, diamond)
            await ended(orchestra, first.id)
            edited = node("b", input_json='{"x":3}')
            answer = await reruns(orchestra).RerunExecution(
                rerun(first.id, edited, validate_only=True)
            )
    assert ("", 2, first.id) == (
        answer.execution.id, answer.kept_results, answer.execution.parent_execution_id,
    )  # fmt: skip
    assert [(1, 1)] == orchestra.rows(
        "SELECT (SELECT count(*) FROM workflow_executions), count(*) FROM execution_pins"
    )


async def test_a_business_key_goes_on_with_what_is_run_again(
    orchestra: Orchestra, diamond: str
) -> None:
    async with orchestra.running():
        async with (await orchestra.runner(Worker("d"))).attached():
            first = await start(orchestra, diamond, business_key="k")
            await ended(orchestra, first.id)
            made = (await reruns(orchestra).RetryExecution(retry(first.id))).execution
            assert "k" == made.business_key
            forked = (await reruns(orchestra).ForkExecution(fork(first.id))).execution
            assert ("", "fork") == (forked.business_key, forked.relation)
            for each in (made, forked):
                await ended(orchestra, each.id)
        await start(orchestra, diamond, business_key="k")
        refused = await refusal(reruns(orchestra).RetryExecution(retry(first.id)))
    assert ("ALREADY_EXISTS", "BUSINESS_KEY_IN_USE") == refused[:2]


async def test_an_open_run_is_forked_with_what_it_has(orchestra: Orchestra, diamond: str) -> None:
    """The parent goes on by itself."""
    held: list[bool] = [True]

    def answer(define: Any, _assign: Any, inputs: dict[str, Any]) -> object:
        if define.node_id == "c" and held[0]:
            return None
        return sum(inputs.values()) + 1

    async with orchestra.running():
        runner = await orchestra.runner(answer)
        async with runner.attached():
            first = await start(orchestra, diamond)
            await runner.until(lambda: len(runner.acks) == 2)
            held[0] = False
            made = await reruns(orchestra).ForkExecution(fork(first.id))
            done = await ended(orchestra, made.execution.id)
            for each in list(runner.held.values()):
                runner.succeed(each, 3)
            assert COMPLETED == (await ended(orchestra, first.id)).status
    assert (2, '{"sum":7}') == (made.kept_results, done.output_json)
    hold_invariants(orchestra)


async def test_a_fork_with_other_inputs_runs_what_reads_them(orchestra: Orchestra) -> None:
    one = factories.node(orchestra.sql, orchestra.owner)
    two = factories.node(orchestra.sql, orchestra.owner, inputs=("x", "y"))
    workflow_id = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"a": one, "b": one, "c": two},
        edges=[
            ("", "x", "a", "x"),
            ("", "y", "b", "x"),
            ("a", "result", "c", "x"),
            ("b", "result", "c", "y"),
        ],
        inputs=("x", "y"),
        outputs=[("out", "c")],
    )
    worker = Worker()
    async with orchestra.running():
        async with (await orchestra.runner(worker)).attached():
            first = await start(orchestra, workflow_id, '{"x":1,"y":1}')
            await ended(orchestra, first.id)
            made = await reruns(orchestra).ForkExecution(
                fork(first.id, input_json='{"x":1,"y":10}')
            )
            done = await ended(orchestra, made.execution.id)
            wrong = fork(first.id, input_json='{"x":1}')
            refused = await refusal(reruns(orchestra).ForkExecution(wrong))
    assert (1, '{"out":14}', '{"x":1,"y":10}') == (
        made.kept_results, done.output_json, done.input_json,
    )  # fmt: skip
    assert {"a": 1, "b": 2, "c": 2} == worker.ran
    assert ("INVALID_ARGUMENT", "INPUT_INVALID") == refused[:2]


async def test_a_node_that_ran_alone_is_retried(orchestra: Orchestra) -> None:
    made = factories.node(orchestra.sql, orchestra.owner)
    worker = Worker("node")
    async with orchestra.running():
        async with (await orchestra.runner(worker)).attached():
            asked = run_service_pb2.RunNodeRequest(node_id=str(made.id), input_json='{"x":1}')
            first = (await runs(orchestra).RunNode(asked)).execution
            assert FAILED == first.status
            assert "node" == first.error.node_id
            worker.failing.clear()
            again = (await reruns(orchestra).RetryExecution(retry(first.id))).execution
            done = await ended(orchestra, again.id)
    assert ('{"result":2}', first.node_version_id) == (done.output_json, done.node_version_id)


async def test_a_node_that_may_not_be_read_any_more_is_not_run_again(
    orchestra: Orchestra,
) -> None:
    """X14: what was pinned once is no right for ever."""
    foreign = factories.node(orchestra.sql, factories.user(orchestra.sql))
    await orchestra.change("UPDATE python_nodes SET is_public = true WHERE id = %s", foreign.id)
    workflow_id = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"a": foreign},
        edges=[("", "x", "a", "x")],
        outputs=[("out", "a")],
    )
    async with orchestra.running():
        async with (await orchestra.runner(Worker())).attached():
            first = await start(orchestra, workflow_id)
            await ended(orchestra, first.id)
            await orchestra.change("UPDATE python_nodes SET is_public = false")
            refused = await refusal(reruns(orchestra).RetryExecution(retry(first.id)))
    assert ("FAILED_PRECONDITION", "NODE_MISSING") == refused[:2]


async def test_many_runs_are_stopped_retried_and_rerun(orchestra: Orchestra, diamond: str) -> None:
    """Each has an answer of its own, and a repetition makes nothing twice."""
    worker = Worker("d")
    async with orchestra.running():
        stub = reruns(orchestra)
        waiting = [await start(orchestra, diamond, labels={"batch": "one"}) for _ in range(3)]
        named = [waiting[0].id, str(uuid.uuid4())]
        seen = await stub.BatchCancelExecutions(
            rerun_service_pb2.BatchCancelExecutionsRequest(
                filter="labels.batch = one", validate_only=True
            )
        )
        assert {each.id for each in waiting} == {item.execution_id for item in seen.items}
        stopped = await stub.BatchCancelExecutions(
            rerun_service_pb2.BatchCancelExecutionsRequest(execution_ids=named)
        )
        assert [0, 5] == [item.status.code for item in stopped.items]  # OK, NOT_FOUND
        async with (await orchestra.runner(worker)).attached():
            for each in waiting:
                await ended(orchestra, each.id)
            again = rerun_service_pb2.BatchRerunExecutionsRequest(
                filter="labels.batch = one", request_id=str(uuid.uuid4())
            )
            answers = [await stub.BatchRerunExecutions(again)]
            made = {item.execution_id: item.new_execution_id for item in answers[0].items}
            assert {each.id for each in waiting} == set(made)
            for new_id in made.values():
                assert FAILED == (await ended(orchestra, new_id)).status
            worker.failing.clear()
            request = rerun_service_pb2.BatchRetryExecutionsRequest(
                execution_ids=list(made.values()), request_id=str(uuid.uuid4())
            )
            first, second = [await stub.BatchRetryExecutions(request) for _ in range(2)]
            assert first == second
            for item in first.items:
                assert COMPLETED == (await ended(orchestra, item.new_execution_id)).status
    assert {"a": 6, "b": 6, "c": 6, "d": 8} == worker.ran
    assert [(9,)] == orchestra.rows("SELECT count(*) FROM workflow_executions")
    hold_invariants(orchestra)


async def test_runs_and_what_is_in_them_are_stopped_together(orchestra: Orchestra) -> None:
    """A sub-workflow that were stopped before its run would be a node of it that failed."""
    inner: object = chain(orchestra, "a")
    for _ in range(2):
        inner = factories.workflow(
            orchestra.sql,
            orchestra.owner,
            nodes={"s": {"kind": "workflow", "node_id": str(inner), "version": 0}},
            edges=[("", "x", "s", "x")],
            outputs=[],
        )
    async with orchestra.running():
        runner = await orchestra.runner(lambda *_: None)
        async with runner.attached():
            for _ in range(3):
                await start(orchestra, inner)
            await runner.until(lambda: len(runner.assigns) == 3)
            found = [str(each) for (each,) in orchestra.rows("SELECT id FROM workflow_executions")]
            # Without those in the middle: what is in a run need not be so through what is named.
            rows = orchestra.rows(
                "SELECT run.parent_execution_id FROM workflow_executions AS run"
                "  JOIN workflow_executions AS above ON above.id = run.parent_execution_id"
                " WHERE above.parent_execution_id IS NOT NULL"
            )
            middle = {str(each) for (each,) in rows}
            named = sorted(set(found) - middle, reverse=True)
            answer = await reruns(orchestra).BatchCancelExecutions(
                rerun_service_pb2.BatchCancelExecutionsRequest(execution_ids=named)
            )
            assert named == [item.execution_id for item in answer.items]
            assert [0] * 6 == [item.status.code for item in answer.items]
            for each in found:
                assert CANCELLED == (await ended(orchestra, each)).status


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"execution_ids": [str(uuid.UUID(int=1))], "filter": "status = failed"},
        {"execution_ids": [str(uuid.UUID(int=1))] * 2},
        {"execution_ids": ["x"]},
        {"filter": "status = bogus"},
        {"filter": "'; DROP TABLE workflow_executions"},
        {"filter": "(" * 500},
    ],
)
async def test_a_batch_that_makes_no_sense_is_refused(
    orchestra: Orchestra, wrong: dict[str, Any]
) -> None:
    """B78: whatever the filter holds."""
    async with orchestra.running():
        request = rerun_service_pb2.BatchCancelExecutionsRequest(**wrong)
        code, _, _ = await refusal(reruns(orchestra).BatchCancelExecutions(request))
    assert "INVALID_ARGUMENT" == code


async def test_the_first_failing_node_and_its_sandbox_are_on_the_run(
    orchestra: Orchestra,
) -> None:
    """I23."""
    workflow_id = chain(orchestra, "a", "b")
    async with orchestra.running():
        async with (await orchestra.runner(Worker("b"))).attached():
            first = await start(orchestra, workflow_id, timeout=Duration(seconds=60))
            done = await ended(orchestra, first.id)
            stored = await get(orchestra, first.id)
            made = (await reruns(orchestra).RerunExecution(rerun(first.id))).execution
            after = await ended(orchestra, made.id)
    for seen in (done, stored):
        assert ("user_error", "b", "3.11") == (
            seen.error.error_type, seen.error.node_id, seen.python_version,
        )  # fmt: skip
        assert 200 == seen.resource_usage.cpu_time.ToMicroseconds()
    allowed = made.deadline_time.ToDatetime() - made.create_time.ToDatetime()
    assert 60 == round(allowed.total_seconds())  # as its parent had
    assert (FAILED, 1) == (after.status, after.node_counts.failed)
    assert CANCELLED != after.status
