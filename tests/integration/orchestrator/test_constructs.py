"""Every construct of a graph over real rows: branches, joins, maps, loops, waits, sub-workflows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import grpc
import pytest
from qflow.orchestrator.v1 import control_service_pb2 as control
from qflow.orchestrator.v1 import execution_pb2
from qflow.orchestrator.v1 import execution_service_pb2 as pb
from qflow.orchestrator.v1.control_service_pb2_grpc import ControlServiceStub

from tests import factories
from tests.fakes.runner import Fail
from tests.integration.orchestrator.conftest import Orchestra
from tests.support.invariants import broken

INT = {"t": "int"}
STATUS = execution_pb2.NodeExecutionStatus


@pytest.fixture
def make(orchestra: Orchestra) -> Callable[..., str]:
    """Make workflows of one node of integers."""
    one = factories.node(orchestra.sql, orchestra.owner)

    def workflow(
        nodes: Mapping[str, Mapping[str, Any] | None],
        edges: list[tuple[str, str, str, str]],
        *,
        links: list[dict[str, Any]] | None = None,
        outputs: tuple[str, ...] = (),
        answers: str = "",
    ) -> str:
        made = factories.workflow(
            orchestra.sql,
            orchestra.owner,
            nodes={
                name: what if what is not None and "kind" in what else one
                for name, what in nodes.items()
            },
            edges=edges,
            links=links or [],
            outputs=[(answers or name, name) for name in outputs],
            node_settings={
                name: what for name, what in nodes.items() if what and "kind" not in what
            },
        )
        return str(made)

    return workflow


def order(source: str, target: str, **what: Any) -> dict[str, Any]:
    return {"source": source, "target": target, "kind": "order", **what}


def answer(define: Any, assign: Any, inputs: dict[str, Any]) -> object:
    """Add one; a negative number fails."""
    if inputs["x"] is not None and inputs["x"] < 0:
        raise Fail(retryable=False)
    return inputs["x"] + 1


async def run(orchestra: Orchestra, workflow: str, x: int = 1) -> pb.WaitExecutionResponse:
    started = await orchestra.stub.StartExecution(
        pb.StartExecutionRequest(workflow_id=workflow, input_json=json.dumps({"x": x}))
    )
    return await orchestra.stub.WaitExecution(
        pb.WaitExecutionRequest(execution_id=started.execution.id)
    )


async def nodes_of(orchestra: Orchestra, execution_id: str, page: int = 50) -> dict[str, str]:
    found: dict[str, str] = {}
    token = ""
    while True:
        listed = await orchestra.stub.ListNodeExecutions(
            pb.ListNodeExecutionsRequest(
                execution_id=execution_id, page_size=page, page_token=token
            )
        )
        for node in listed.node_executions:
            assert node.node_id not in found
            found[node.node_id] = STATUS.Name(node.status).removeprefix("NODE_EXECUTION_STATUS_")
        token = listed.next_page_token
        if not token:
            return found


CHOICE = {
    "kind": "choice",
    "choice": {
        "branches": [
            {"name": "big", "condition": "x > 10"},
            {"name": "odd", "condition": "x == 1"},
        ],
        "default": "other",
    },
}


@pytest.mark.parametrize(
    ("x", "taken", "output"), [(11, "b", {"d": 3}), (1, "c", {"d": 3}), (5, "", {"d": None})]
)
async def test_a_choice_takes_one_branch_and_skips_the_others(
    orchestra: Orchestra, make: Callable[..., str], x: int, taken: str, output: dict[str, Any]
) -> None:
    """The join waits for all branches; a skipped one satisfies it, all skipped skip it."""
    workflow = make(
        {
            "pick": CHOICE,
            "b": {"parameters": {"x": "1"}},
            "c": {"parameters": {"x": "1"}},
            "d": {"parameters": {"x": "2"}},
        },
        [("", "x", "pick", "x")],
        links=[
            {"source": "pick", "target": "b", "kind": "branch", "branch": "big"},
            {"source": "pick", "target": "c", "kind": "branch", "branch": "odd"},
            order("b", "d"),
            order("c", "d"),
        ],
        outputs=("d",),
    )
    async with orchestra.running():
        runner = await orchestra.runner(answer)
        async with runner.attached():
            ended = await run(orchestra, workflow, x)
            nodes = await nodes_of(orchestra, ended.execution.id)
    assert output == json.loads(ended.execution.output_json)
    for name in "bc":
        assert ("COMPLETED" if name == taken else "SKIPPED") == nodes[name]


async def test_what_stands_on_a_branch_that_is_not_taken_is_skipped_whatever_else_feeds_it(
    orchestra: Orchestra, make: Callable[..., str]
) -> None:
    workflow = make(
        {"a": None, "pick": CHOICE, "b": None},
        [("", "x", "a", "x"), ("", "x", "pick", "x"), ("a", "result", "b", "x")],
        links=[{"source": "pick", "target": "b", "kind": "branch", "branch": "big"}],
        outputs=("b",),
    )
    async with orchestra.running():
        runner = await orchestra.runner(answer)
        async with runner.attached():
            ended = await run(orchestra, workflow, 1)
            nodes = await nodes_of(orchestra, ended.execution.id)
    assert {"a": "COMPLETED", "pick": "COMPLETED", "b": "SKIPPED"} == nodes


async def test_a_map_runs_once_for_each_element_and_puts_poison_aside(
    orchestra: Orchestra, make: Callable[..., str]
) -> None:
    """Elements are listed behind their map, page by page; a quarantined one gives null."""
    rule = {"input": "x", "depth": 2, "max_in_flight": 3, "max_failed": 1}
    workflow = make(
        {
            "m": {"map": rule, "parameters": {"x": "[[1,-2,3],[],[4]]"}},
            "z": {"parameters": {"x": "1"}},
        },
        [],
        links=[order("m", "z")],
        outputs=("m",),
    )
    async with orchestra.running():
        runner = await orchestra.runner(answer)
        async with runner.attached():
            ended = await run(orchestra, workflow)
            nodes = await nodes_of(orchestra, ended.execution.id, page=2)
    assert {"m": [[2, None, 4], [], [5]]} == json.loads(ended.execution.output_json)
    assert ["m", "z"] == [name for name in nodes if "[" not in name]
    assert "QUARANTINED" == nodes["m[0][1]"]
    assert ["COMPLETED"] * 3 == [nodes[name] for name in ("m[0]", "m[1]", "m[2][0]")]
    counts = ended.execution.node_counts
    assert (9, 8, 1) == (counts.total, counts.completed, counts.failed)


@pytest.mark.parametrize(
    "settings",
    [
        {"loop": {"condition": "result < 5", "max_turns": 3, "carry": {"x": "result"}}},
        {"condition": "1 / x > 0"},
    ],
    ids=["of a loop", "of a place"],
)
async def test_a_condition_that_fails_is_no_attempt_that_is_looked_for_among_the_errors(
    orchestra: Orchestra, make: Callable[..., str], settings: dict[str, Any]
) -> None:
    """I23: the doctor called such a run broken."""
    workflow = make({"l": settings}, [("", "x", "l", "x")])
    async with orchestra.running(), (await orchestra.runner(lambda *_: 2**63)).attached():
        start = pb.StartExecutionRequest(workflow_id=workflow, input_json='{"x":0}')
        run = (await orchestra.stub.StartExecution(start)).execution
        wait = pb.WaitExecutionRequest(execution_id=run.id)
        ended = (await orchestra.stub.WaitExecution(wait)).execution
    assert "condition_error" == ended.error.error_type
    assert {} == broken(orchestra.sql, of=("I23",))


async def test_a_loop_carries_its_outputs_until_its_condition_fails(
    orchestra: Orchestra, make: Callable[..., str]
) -> None:
    rule = {"condition": "result < 5", "max_turns": 10, "carry": {"x": "result"}}
    workflow = make({"l": {"loop": rule}}, [("", "x", "l", "x")], outputs=("l",))
    async with orchestra.running():
        runner = await orchestra.runner(answer)
        async with runner.attached():
            ended = await run(orchestra, workflow, 1)
            nodes = await nodes_of(orchestra, ended.execution.id)
    assert {"l": 5} == json.loads(ended.execution.output_json)
    assert {"l", "l#1", "l#2", "l#3", "l#4"} == set(nodes)


@pytest.mark.parametrize("at_max", ["finish", "fail"])
async def test_a_loop_whose_turns_are_used_up_ends_as_it_says(
    orchestra: Orchestra, make: Callable[..., str], at_max: str
) -> None:
    """No loop goes on for ever, and none takes more turns than it has."""
    rule = {"condition": "result < 9", "max_turns": 3, "carry": {"x": "result"}, "at_max": at_max}
    workflow = make({"l": {"loop": rule}}, [("", "x", "l", "x")], outputs=("l",))
    async with orchestra.running():
        runner = await orchestra.runner(answer)
        async with runner.attached():
            ended = (await run(orchestra, workflow, 1)).execution
            nodes = await nodes_of(orchestra, ended.id)
    assert {"l", "l#1", "l#2", "l#3"} == set(nodes)
    if at_max == "finish":
        assert {"l": 4} == json.loads(ended.output_json)
    else:
        assert ("loop_exhausted", "l") == (ended.error.error_type, ended.error.node_id)
        assert "after 3 turns" in ended.error.message


async def test_a_failure_goes_to_who_waits_for_it_and_the_run_completes(
    orchestra: Orchestra, make: Callable[..., str]
) -> None:
    workflow = make(
        {"a": None, "b": None, "rescue": {"parameters": {"x": "7"}}},
        [("", "x", "a", "x"), ("a", "result", "b", "x")],
        links=[order("a", "rescue", kind="failure")],
        outputs=("b", "rescue"),
    )
    async with orchestra.running():
        runner = await orchestra.runner(answer)
        async with runner.attached():
            ended = await run(orchestra, workflow, -1)
            nodes = await nodes_of(orchestra, ended.execution.id)
    assert {"b": None, "rescue": 8} == json.loads(ended.execution.output_json)
    assert {"a": "FAILED", "b": "SKIPPED", "rescue": "COMPLETED"} == nodes


@pytest.mark.parametrize(("x", "rescue"), [(1, "SKIPPED"), (-1, "COMPLETED")])
async def test_what_stands_behind_a_failure_runs_where_it_comes_whatever_else_feeds_it(
    orchestra: Orchestra, make: Callable[..., str], x: int, rescue: str
) -> None:
    """Of two failures one is enough: `a` fails for what is below 0, `calm` never."""
    workflow = make(
        {
            "a": None,
            "calm": {"parameters": {"x": "1"}},
            "rescue": None,
            "other": {"parameters": {"x": "2"}},
        },
        [("", "x", "a", "x"), ("other", "result", "rescue", "x")],
        links=[
            order("a", "rescue", kind="failure"),
            order("calm", "rescue", kind="failure"),
            order("calm", "other"),
        ],
        outputs=("rescue",),
    )
    async with orchestra.running():
        runner = await orchestra.runner(answer)
        async with runner.attached():
            ended = await run(orchestra, workflow, x)
            nodes = await nodes_of(orchestra, ended.execution.id)
    assert ("COMPLETED", rescue) == (nodes["other"], nodes["rescue"])


async def test_what_was_done_is_undone_in_reverse_and_finally_comes_last(
    orchestra: Orchestra, make: Callable[..., str]
) -> None:
    workflow = make(
        {
            "a": None,
            "b": {"parameters": {"x": "1"}},
            "bad": {"parameters": {"x": "-1"}},
            "undo_a": {"compensates": "a"},
            "undo_b": {"compensates": "b", "parameters": {"x": "1"}},
            "last": {"phase": "finally", "parameters": {"x": "1"}},
        },
        [("", "x", "a", "x"), ("a", "result", "undo_a", "x")],
        links=[order("a", "b"), order("b", "bad")],
        outputs=("bad",),
    )
    async with orchestra.running():
        runner = await orchestra.runner(answer)
        async with runner.attached():
            ended = await run(orchestra, workflow)
    rows = orchestra.rows("SELECT node_id FROM node_executions ORDER BY execution_order")
    assert ["a", "b", "bad", "undo_b", "undo_a", "last"] == [row[0] for row in rows]
    assert execution_pb2.EXECUTION_STATUS_FAILED == ended.execution.status
    assert ("user_error", "bad") == (
        ended.execution.error.error_type,
        ended.execution.error.node_id,
    )


SIGNAL = {"kind": "signal", "signal": {"name": "go", "type": INT, "timeout_ms": None}}


@pytest.mark.parametrize("early", [True, False])
async def test_a_signal_is_taken_once_whenever_it_comes_and_over_a_restart(
    orchestra: Orchestra, make: Callable[..., str], *, early: bool
) -> None:
    workflow = make(
        {"a": None, "s": SIGNAL, "b": None},
        [("", "x", "a", "x"), ("s", "result", "b", "x")],
        links=[order("a", "s")],
        outputs=("b",),
    )
    held: list[Any] = []

    def hold(define: Any, assign: Any, inputs: dict[str, Any]) -> object:
        if define.node_id == "a" and early:
            held.append(assign)
            return None
        return inputs["x"] + 1

    async with orchestra.running():
        runner = await orchestra.runner(hold)
        async with runner.attached():
            started = await orchestra.stub.StartExecution(
                pb.StartExecutionRequest(workflow_id=workflow, input_json='{"x":1}')
            )
            execution_id = started.execution.id
            if not early:
                await wait_for(orchestra, execution_id, "s", "WAITING")
            else:
                await runner.until(lambda: bool(held))
            stub = ControlServiceStub(orchestra.channel(orchestra.owner.token))
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.SendSignal(
                    control.SendSignalRequest(
                        execution_id=execution_id, name="go", payload_json='"no"'
                    )
                )
            assert grpc.StatusCode.INVALID_ARGUMENT == refused.value.code()
            request = control.SendSignalRequest(
                execution_id=execution_id,
                name="go",
                payload_json="41",
                request_id="0198c0de-0000-7000-8000-000000000001",
            )
            if early:
                taken = [(await stub.SendSignal(request)).node_id for _ in range(2)]
                assert ["", ""] == taken
    async with orchestra.running():
        runner.channel = (await orchestra.runner(answer)).channel
        runner.answer = answer
        async with runner.attached():
            if early:
                runner.succeed(held[0], 2)
            else:
                stub = ControlServiceStub(orchestra.channel(orchestra.owner.token))
                waits = await stub.ListWaits(control.ListWaitsRequest(execution_id=execution_id))
                assert [("s", "go", "int")] == [
                    (each.node_id, each.name, each.type_expression) for each in waits.waits
                ]
                assert "s" == (await stub.SendSignal(request)).node_id
            ended = await orchestra.stub.WaitExecution(
                pb.WaitExecutionRequest(execution_id=execution_id)
            )
    assert {"b": 42} == json.loads(ended.execution.output_json)
    assert [(1,)] == orchestra.rows("SELECT count(*) FROM execution_signals")


@pytest.mark.parametrize("again", [False, True])
async def test_a_signal_never_answers_an_approval_of_its_name(
    orchestra: Orchestra, make: Callable[..., str], *, again: bool
) -> None:
    """It was taken by the approval, whose end then stopped the timers of all runs."""
    workflow = make(
        {
            "z": {"kind": "sleep", "parameters": {"seconds": "0.1"}},
            "h": {"kind": "approval", "approval": {"name": "go"}},
            "s": SIGNAL,
        },
        [],
        links=[order("z", "h"), order("h", "s")],
        outputs=("s",),
    )
    async with orchestra.running():
        started = await orchestra.stub.StartExecution(
            pb.StartExecutionRequest(workflow_id=workflow, input_json='{"x":1}')
        )
        execution_id = started.execution.id
        stub = ControlServiceStub(orchestra.channel(orchestra.owner.token))
        word = control.SendSignalRequest(execution_id=execution_id, name="go", payload_json="41")
        assert "" == (await stub.SendSignal(word)).node_id
        if not again:
            await wait_for(orchestra, execution_id, "h", "WAITING")
    async with orchestra.running():
        await wait_for(orchestra, execution_id, "h", "WAITING")
        stub = ControlServiceStub(orchestra.channel(orchestra.owner.token))
        yes = control.AnswerApprovalRequest(execution_id=execution_id, name="go", approved=True)
        assert "h" == (await stub.AnswerApproval(yes)).node_id
        ended = await orchestra.stub.WaitExecution(
            pb.WaitExecutionRequest(execution_id=execution_id)
        )
    assert {"s": 41} == json.loads(ended.execution.output_json)


async def wait_for(orchestra: Orchestra, execution_id: str, node: str, status: str) -> None:
    call = orchestra.stub.WatchExecution(pb.WatchExecutionRequest(execution_id=execution_id))
    async for message in call:
        for each in (*message.snapshot.node_executions, *message.delta.node_executions):
            if each.node_id == node and STATUS.Name(each.status).endswith(status):
                call.cancel()
                return


async def test_an_approval_is_answered_in_the_name_of_who_answers(
    orchestra: Orchestra, make: Callable[..., str]
) -> None:
    workflow = make(
        {
            "ask": {"kind": "approval", "approval": {"name": "ok", "type": INT}},
            "pick": {
                "kind": "choice",
                "choice": {"branches": [{"name": "yes", "condition": "yes"}], "default": None},
            },
            "b": None,
        },
        [
            ("ask", "approved", "pick", "yes"),
            ("ask", "reply", "b", "x"),
            ("", "x", "ask", "subject"),
        ],
        links=[{"source": "pick", "target": "b", "kind": "branch", "branch": "yes"}],
        outputs=("b",),
    )
    async with orchestra.running():
        runner = await orchestra.runner(answer)
        async with runner.attached():
            started = await orchestra.stub.StartExecution(
                pb.StartExecutionRequest(workflow_id=workflow, input_json='{"x":9}')
            )
            execution_id = started.execution.id
            stub = ControlServiceStub(orchestra.channel(orchestra.owner.token))
            waits = await stub.ListWaits(control.ListWaitsRequest(execution_id=execution_id))
            assert ["9"] == [each.subject_json for each in waits.waits]
            answered = await stub.AnswerApproval(
                control.AnswerApprovalRequest(
                    execution_id=execution_id, name="ok", approved=True, reply_json="4"
                )
            )
            assert "ask" == answered.node_id
            ended = await orchestra.stub.WaitExecution(
                pb.WaitExecutionRequest(execution_id=execution_id)
            )
    assert {"b": 5} == json.loads(ended.execution.output_json)
    [(output,)] = orchestra.rows("SELECT output_data FROM node_executions WHERE node_id = 'ask'")
    assert str(orchestra.owner.id) == output["approver"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("reader", "links"),
    [
        ({}, [{"source": "pick", "target": "b", "kind": "branch", "branch": "yes"}]),
        ({"condition": "x != null"}, []),
    ],
    ids=["branch", "condition"],
)
async def test_a_refusal_needs_no_reply_where_what_reads_it_is_left_out(
    orchestra: Orchestra,
    make: Callable[..., str],
    reader: dict[str, Any],
    links: list[dict[str, Any]],
) -> None:
    workflow = make(
        {
            "ask": {"kind": "approval", "approval": {"name": "ok", "type": INT}},
            "pick": {
                "kind": "choice",
                "choice": {"branches": [{"name": "yes", "condition": "yes"}], "default": None},
            },
            "b": reader,
        },
        [("ask", "approved", "pick", "yes"), ("ask", "reply", "b", "x")],
        links=links,
        outputs=("b",),
    )
    async with orchestra.running():
        started = await orchestra.stub.StartExecution(
            pb.StartExecutionRequest(workflow_id=workflow, input_json='{"x":9}')
        )
        execution_id = started.execution.id
        stub = ControlServiceStub(orchestra.channel(orchestra.owner.token))
        await stub.AnswerApproval(
            control.AnswerApprovalRequest(execution_id=execution_id, name="ok", approved=False)
        )
        ended = await orchestra.stub.WaitExecution(
            pb.WaitExecutionRequest(execution_id=execution_id)
        )
        assert {"b": None} == json.loads(ended.execution.output_json)
        assert "SKIPPED" == (await nodes_of(orchestra, execution_id))["b"]


async def test_a_sub_workflow_runs_as_an_execution_of_its_own_over_a_restart(
    orchestra: Orchestra, make: Callable[..., str]
) -> None:
    inner = make({"i": None}, [("", "x", "i", "x")], outputs=("i",), answers="result")
    outer = make(
        {
            "s": {
                "kind": "workflow",
                "node_id": inner,
                "version": 1,
                "map": {"input": "x"},
                "parameters": {"x": "[1,2,3]"},
            },
            "b": {"parameters": {"x": "1"}},
        },
        [],
        links=[order("s", "b")],
        outputs=("s",),
    )
    async with orchestra.running():
        runner = await orchestra.runner(lambda *_: None)
        async with runner.attached():
            started = await orchestra.stub.StartExecution(
                pb.StartExecutionRequest(workflow_id=outer, input_json='{"x":1}')
            )
            await runner.until(lambda: len(runner.assigns) == 3)
    async with orchestra.running():
        runner.channel = (await orchestra.runner(answer)).channel
        runner.answer = answer
        async with runner.attached():
            for assign in list(runner.held.values()):
                runner.succeed(assign, 10)
            ended = await orchestra.stub.WaitExecution(
                pb.WaitExecutionRequest(execution_id=started.execution.id)
            )
    assert {"s": [10, 10, 10]} == json.loads(ended.execution.output_json)
    relations = orchestra.rows(
        "SELECT relation, parent_node_id, status FROM workflow_executions"
        " WHERE parent_execution_id = %s ORDER BY parent_node_id",
        started.execution.id,
    )
    assert [("sub_workflow", f"s[{at}]", "completed") for at in range(3)] == relations


async def test_cancelling_a_run_cancels_its_sub_workflows_first(
    orchestra: Orchestra, make: Callable[..., str]
) -> None:
    """I14: nothing of it goes on when the parent says that it is cancelled."""
    inner = make({"i": None}, [("", "x", "i", "x")], outputs=("i",), answers="result")
    outer = make(
        {"s": {"kind": "workflow", "node_id": inner, "version": 1}},
        [("", "x", "s", "x")],
        outputs=("s",),
    )
    async with orchestra.running():
        runner = await orchestra.runner(lambda *_: None)
        async with runner.attached():
            started = await orchestra.stub.StartExecution(
                pb.StartExecutionRequest(workflow_id=outer, input_json='{"x":1}')
            )
            await runner.until(lambda: bool(runner.assigns))
            await orchestra.stub.CancelExecution(
                pb.CancelExecutionRequest(execution_id=started.execution.id)
            )
            ended = await orchestra.stub.WaitExecution(
                pb.WaitExecutionRequest(execution_id=started.execution.id)
            )
    assert execution_pb2.EXECUTION_STATUS_CANCELLED == ended.execution.status
    assert [("cancelled",), ("cancelled",)] == orchestra.rows(
        "SELECT status FROM workflow_executions"
    )


async def test_a_sleep_lasts_its_time_and_a_paused_run_begins_nothing(
    orchestra: Orchestra, make: Callable[..., str]
) -> None:
    """Clocks run while a run is paused; what they end begins nothing until it is resumed."""
    workflow = make(
        {
            "w": {"kind": "sleep", "parameters": {"seconds": "0.05"}},
            "s": SIGNAL,
            "b": {"parameters": {"x": "1"}},
        },
        [],
        links=[order("w", "b"), order("s", "b")],
        outputs=("b",),
    )
    async with orchestra.running():
        runner = await orchestra.runner(answer)
        async with runner.attached():
            started = await orchestra.stub.StartExecution(
                pb.StartExecutionRequest(workflow_id=workflow, input_json='{"x":1}')
            )
            execution_id = started.execution.id
            stub = ControlServiceStub(orchestra.channel(orchestra.owner.token))
            for _ in range(2):
                paused = await stub.PauseExecution(
                    control.PauseExecutionRequest(execution_id=execution_id)
                )
                assert execution_pb2.EXECUTION_STATUS_PAUSED == paused.execution.status
            word = control.SendSignalRequest(execution_id=execution_id, name="go", payload_json="1")
            assert "s" == (await stub.SendSignal(word)).node_id
            await wait_for(orchestra, execution_id, "w", "COMPLETED")
            assert "PENDING" == (await nodes_of(orchestra, execution_id))["b"]
            await stub.ResumeExecution(control.ResumeExecutionRequest(execution_id=execution_id))
            ended = await orchestra.stub.WaitExecution(
                pb.WaitExecutionRequest(execution_id=execution_id)
            )
    assert {"b": 2} == json.loads(ended.execution.output_json)


async def test_a_node_is_held_up_let_go_and_ended_by_hand(
    orchestra: Orchestra, make: Callable[..., str]
) -> None:
    workflow = make(
        {"s": SIGNAL, "a": None, "b": None},
        [("s", "result", "a", "x"), ("a", "result", "b", "x")],
        outputs=("b",),
    )
    async with orchestra.running():
        runner = await orchestra.runner(answer)
        async with runner.attached():
            started = await orchestra.stub.StartExecution(
                pb.StartExecutionRequest(workflow_id=workflow, input_json='{"x":1}')
            )
            execution_id = started.execution.id
            stub = ControlServiceStub(orchestra.channel(orchestra.owner.token))
            at = {"execution_id": execution_id, "node": "a"}
            held = await stub.PauseNode(control.PauseNodeRequest(**at))
            assert STATUS.NODE_EXECUTION_STATUS_PAUSED == held.node_execution.status
            await stub.SendSignal(
                control.SendSignalRequest(execution_id=execution_id, name="go", payload_json="1")
            )
            assert "PAUSED" == (await nodes_of(orchestra, execution_id))["a"]
            for text, reason in (('{"result":"1"}', "TYPE"), ('{"other":1}', "OUTPUTS")):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await stub.SkipNode(control.SkipNodeRequest(**at, output_json=text))
                assert grpc.StatusCode.INVALID_ARGUMENT == refused.value.code(), reason
            await stub.SkipNode(control.SkipNodeRequest(**at, output_json='{"result": 20}'))
            ended = await orchestra.stub.WaitExecution(
                pb.WaitExecutionRequest(execution_id=execution_id)
            )
            with pytest.raises(grpc.aio.AioRpcError) as late:
                await stub.PauseNode(control.PauseNodeRequest(**at))
    assert {"b": 21} == json.loads(ended.execution.output_json)
    assert grpc.StatusCode.FAILED_PRECONDITION == late.value.code()
