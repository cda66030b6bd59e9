"""What a caller is promised, against the running suite over its real API."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from itertools import pairwise
from typing import Any

import grpc
import pytest
from qflow.orchestrator.v1 import execution_pb2
from qflow.orchestrator.v1 import execution_service_pb2 as pb
from qflow.registry.v1 import node_service_pb2, workflow_pb2, workflow_service_pb2
from qflow.registry.v1 import session_service_pb2 as sessions_pb
from qflow.registry.v1.session_service_pb2_grpc import SessionServiceStub

from tests.acceptance.conftest import Refusal, refusal, sign_in
from tests.support.client import CANCELLED, COMPLETED, FAILED, Client, Step
from tests.support.suite import Suite

ECHO = "from typing import Any\n\n\ndef echo(value: Any) -> Any:\n    return value\n"
SLOW = "import time\n\n\ndef slow(x: int) -> int:\n    time.sleep(0.1)\n    return x + 1\n"
STUCK = "import time\n\n\ndef stuck(x: int) -> int:\n    time.sleep(600)\n    return x\n"
BROKEN = "def broken(x: int) -> int:\n    raise ValueError(f'no {x}')\n"


async def one_node(client: Client, code: str, kind: str = "int") -> workflow_pb2.Workflow:
    """A workflow of one node: input `x`, output `y`."""
    node = await client.create_node("one", code)
    name = node.inputs[0].name
    return await client.create_workflow(
        "one", [Step("a", node)], [f".x > a.{name}"], inputs={"x": kind}, outputs=["y = a.result"]
    )


def start(workflow: workflow_pb2.Workflow, text: str, request_id: str = "") -> Any:
    return pb.StartExecutionRequest(workflow_id=workflow.id, input_json=text, request_id=request_id)


# Signing in.


async def test_the_owner_signs_in_works_and_signs_out(suite: Suite) -> None:
    password = (suite.home.secrets / "owner.password").read_text("utf-8").strip()
    signed_in = await sign_in(suite, "OWNER@localhost", password)
    assert signed_in.caller.is_owner
    async with suite.channel("registry", token=signed_in.token) as channel:
        stub = SessionServiceStub(channel)
        said = await stub.GetCaller(sessions_pb.GetCallerRequest())
        assert signed_in.caller == said.caller
        await stub.SignOut(sessions_pb.SignOutRequest())
        ended: list[grpc.StatusCode] = []
        signed_out_at = time.monotonic()
        while not ended:
            asked_after_s = time.monotonic() - signed_out_at
            try:
                await stub.GetCaller(sessions_pb.GetCallerRequest())
                assert asked_after_s < 5
            except grpc.aio.AioRpcError as error:
                ended.append(error.code())
            await asyncio.sleep(0.1)
    assert [grpc.StatusCode.UNAUTHENTICATED] == ended


async def test_a_wrong_password_and_an_unknown_address_look_alike(suite: Suite) -> None:
    wrong = await refusal(sign_in(suite, "owner@localhost", "not-the-password"))
    unknown = await refusal(sign_in(suite, "nobody@localhost", "not-the-password"))
    assert (grpc.StatusCode.UNAUTHENTICATED, "SIGN_IN_REFUSED") == (wrong.code, wrong.reason)
    assert (wrong.code, wrong.message, wrong.raw) == (unknown.code, unknown.message, unknown.raw)


# Starting, watching, answering.


async def test_a_repeated_start_is_one_run(client: Client) -> None:
    """B62b: the same body again is the same run, another body is refused."""
    workflow = await one_node(client, ECHO, "any")
    request_id = str(uuid.uuid4())
    first, second = await asyncio.gather(
        client.executions.StartExecution(start(workflow, '{"x":1}', request_id)),
        client.executions.StartExecution(start(workflow, '{"x":1}', request_id)),
    )
    third = await client.executions.StartExecution(start(workflow, '{"x":1}', request_id.upper()))
    assert first.execution.id == second.execution.id == third.execution.id
    other = await refusal(client.executions.StartExecution(start(workflow, '{"x":2}', request_id)))
    assert (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED") == (other.code, other.reason)
    listed = await client.executions.ListExecutions(
        pb.ListExecutionsRequest(workflow_id=workflow.id)
    )
    assert [first.execution.id] == [each.id for each in listed.executions]


async def test_a_watch_that_is_cut_off_goes_on_and_misses_no_end(client: Client) -> None:
    node = await client.create_node("slow", SLOW)
    places = [f"n{at}" for at in range(6)]
    edges = [f"{a}.result > {b}.x" for a, b in pairwise(places)]
    workflow = await client.create_workflow(
        "chain",
        [Step(place, node) for place in places],
        [".x > n0.x", *edges],
        inputs={"x": "int"},
        outputs=["y = n5.result"],
    )
    execution_id = await client.start(workflow, {"x": 0})
    seen: dict[str, int] = {}
    revision, cuts = 0, 0
    execution = execution_pb2.Execution()
    while execution.status != COMPLETED:
        request = pb.WatchExecutionRequest(execution_id=execution_id, after_revision=revision)
        stream = client.executions.WatchExecution(request, timeout=30)
        async for step in stream:
            event = step.snapshot if step.HasField("snapshot") else step.delta
            if event.HasField("execution"):
                execution = event.execution
            assert step.revision >= revision
            revision = step.revision
            seen |= {each.node_id: each.status for each in event.node_executions}
            if cuts < 3 and step.HasField("delta"):
                cuts += 1
                stream.cancel()
                break
    assert cuts == 3
    assert dict.fromkeys(places, execution_pb2.NODE_EXECUTION_STATUS_COMPLETED) == seen
    assert '{"y":6}' == execution.output_json
    assert execution.output_json == (await client.get(execution_id)).output_json


async def test_a_watch_from_the_future_is_refused(client: Client) -> None:
    workflow = await one_node(client, ECHO, "any")
    execution = await client.run(workflow, {"x": 1})
    request = pb.WatchExecutionRequest(execution_id=execution.id, after_revision=10**9)
    refused = await refusal(client.executions.WatchExecution(request, timeout=10).read())
    assert (grpc.StatusCode.OUT_OF_RANGE, "REVISION_AHEAD") == (refused.code, refused.reason)


async def test_values_come_back_exactly(client: Client) -> None:
    """B61, B25: integers beyond 2^53, every script, and the text of the input as it was sent."""
    workflow = await one_node(client, ECHO, "any")
    value = {
        "zz": [2**53 + 1, -(2**63) - 1, 10**4000],
        "aa": 0.1 + 0.2,
        "naïve ☃ 👩‍🚀 e\u0301 العربية": 'line\u2028separator \U0001f600 \x7f \\ " /',
    }
    text = f'{{ "x" :\t{json.dumps(value, ensure_ascii=False)} }}'
    started = await client.executions.StartExecution(start(workflow, text))
    execution = await client.finished(started.execution.id)
    assert execution.status == COMPLETED, execution.error
    assert text == execution.input_json
    assert {"y": value} == json.loads(execution.output_json)
    assert str(2**53 + 1) in execution.output_json


async def test_names_of_every_script_come_back(client: Client) -> None:
    """B25, B27."""
    for name in ("żółw ☃ 👩‍🚀", "שלום", "'); DROP TABLE python_nodes; --", "e\u0301", "100%_\\"):
        node = await client.create_node(name, ECHO)
        got = await client.nodes.GetNode(node_service_pb2.GetNodeRequest(node_id=node.id))
        assert name == got.node.name


async def test_a_failure_of_user_code_is_an_answer_with_its_trace(client: Client) -> None:
    workflow = await one_node(client, BROKEN)
    execution = await client.run(workflow, {"x": 7})
    assert execution.status == FAILED
    error = execution.error
    assert ("user_error", "a") == (error.error_type, error.node_id)
    assert "no 7" in error.message
    assert "broken" in error.stack_trace


# Bad input.

DEEP = "[" * 65 + "]" * 65
DEEPER = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    "text",
    [
        pytest.param('{"x": NaN}', id="B57-NaN"),
        pytest.param('{"x": -Infinity}', id="B57-Infinity"),
        pytest.param(f'{{"x": 1{"0" * 5000}}}', id="B58-5000-digits"),
        pytest.param('{"x": 1e400}', id="B58-1e400"),
        pytest.param('{"x": 1e131072}', id="B58-exponent"),
        pytest.param(f'{{"x": {DEEP}}}', id="B59-65-deep"),
        pytest.param(f'{{"x": {DEEPER}}}', id="B59-100000-deep"),
        pytest.param('{"x": "\\u0000"}', id="B21-NUL"),
        pytest.param('{"x": "\\ud800"}', id="lone-surrogate"),
        pytest.param('{"x": 1, "x": 2}', id="duplicate-key"),
        pytest.param("[1]", id="not-an-object"),
        pytest.param("{", id="not-JSON"),
    ],
)
async def test_input_that_is_no_plain_json_is_refused(client: Client, text: str) -> None:
    workflow = await one_node(client, ECHO, "any")
    refused = await refusal(client.executions.StartExecution(start(workflow, text)))
    assert refused.code == grpc.StatusCode.INVALID_ARGUMENT, refused.message
    assert [] != [field for field in refused.fields if field.startswith("input_json")]


@pytest.mark.parametrize(
    ("text", "field"),
    [
        pytest.param("{}", "input_json.x", id="missing"),
        pytest.param('{"x": null}', "input_json.x", id="null"),
        pytest.param('{"x": 1, "why": 2}', "input_json.why", id="extra"),
        pytest.param('{"x": "1"}', "input_json.x", id="B40-text"),
        pytest.param('{"x": true}', "input_json.x", id="B40-bool"),
        pytest.param('{"x": 1.5}', "input_json.x", id="B40-float"),
    ],
)
async def test_input_that_does_not_fit_is_refused_with_its_place(
    client: Client, text: str, field: str
) -> None:
    """B62, B40."""
    workflow = await one_node(client, SLOW)
    refused = await refusal(client.executions.StartExecution(start(workflow, text)))
    assert (grpc.StatusCode.INVALID_ARGUMENT, "INPUT_INVALID") == (refused.code, refused.reason)
    assert [field] == list(refused.fields)


@pytest.mark.parametrize(
    ("node_id", "code"),
    [
        pytest.param("", grpc.StatusCode.INVALID_ARGUMENT, id="B17"),
        pytest.param("abc", grpc.StatusCode.INVALID_ARGUMENT, id="B18"),
        pytest.param(str(uuid.UUID(int=0)), grpc.StatusCode.NOT_FOUND, id="B19"),
        pytest.param(f"{{{uuid.uuid4()}}}", grpc.StatusCode.INVALID_ARGUMENT, id="B20-braces"),
        pytest.param(uuid.uuid4().urn, grpc.StatusCode.INVALID_ARGUMENT, id="B20-urn"),
    ],
)
async def test_ids_that_are_none_are_told_from_missing_ones(
    client: Client, node_id: str, code: grpc.StatusCode
) -> None:
    request = node_service_pb2.GetNodeRequest(node_id=node_id)
    assert code == (await refusal(client.nodes.GetNode(request))).code


async def test_an_id_in_upper_case_is_the_same_id(client: Client) -> None:
    """B20."""
    node = await client.create_node("upper", ECHO)
    got = await client.nodes.GetNode(node_service_pb2.GetNodeRequest(node_id=node.id.upper()))
    assert node.id == got.node.id


async def test_a_draft_does_not_start(client: Client) -> None:
    """B62c."""
    workflow = await one_node(client, ECHO, "any")
    await client.workflows.DeactivateWorkflow(
        workflow_service_pb2.DeactivateWorkflowRequest(workflow_id=workflow.id)
    )
    refused = await refusal(client.executions.StartExecution(start(workflow, '{"x":1}')))
    expected = (grpc.StatusCode.FAILED_PRECONDITION, "WORKFLOW_INACTIVE")
    assert expected == (refused.code, refused.reason)


async def test_pages_are_bounded_and_their_tokens_bound(client: Client, stranger: Client) -> None:
    """B62g, B62h."""
    workflow = await one_node(client, ECHO, "any")
    ids = [await client.start(workflow, {"x": at}) for at in range(3)]

    async def listed(who: Client = client, **fields: Any) -> Any:
        request = pb.ListExecutionsRequest(**{"workflow_id": workflow.id, **fields})
        return await who.executions.ListExecutions(request)

    assert (await refusal(listed(page_size=-1))).code == grpc.StatusCode.INVALID_ARGUMENT
    assert ids[::-1] == [each.id for each in (await listed(page_size=10**9)).executions]
    first = await listed(page_size=2)
    rest = await listed(page_size=2, page_token=first.next_page_token)
    assert ids[::-1] == [each.id for each in (*first.executions, *rest.executions)]
    assert not rest.next_page_token
    token = first.next_page_token
    misused = [
        listed(page_token=token[:-2] + ("AA" if token[-2:] != "AA" else "BB")),
        listed(page_token=token, workflow_id=""),
        listed(stranger, page_token=token),
    ]
    codes = [(await refusal(call)).code for call in misused]
    assert [grpc.StatusCode.INVALID_ARGUMENT] * 3 == codes


# Stopping.


async def test_a_cancelled_run_ends_cancelled_and_only_once(client: Client) -> None:
    """B62d."""
    workflow = await one_node(client, STUCK)
    execution_id = await client.start(workflow, {"x": 1})
    async for step in client.executions.WatchExecution(
        pb.WatchExecutionRequest(execution_id=execution_id), timeout=30
    ):
        if step.HasField("delta") or step.HasField("bookmark"):
            break
    cancel = pb.CancelExecutionRequest(execution_id=execution_id)
    await client.executions.CancelExecution(cancel)
    execution = await client.finished(execution_id, timeout_s=30)
    assert execution.status == CANCELLED
    assert execution.HasField("cancel_time")
    again = await client.executions.CancelExecution(cancel)
    assert (execution.id, execution.revision) == (again.execution.id, again.execution.revision)
    assert again.execution.status == CANCELLED


@pytest.mark.parametrize("code", [SLOW, BROKEN], ids=["completed", "failed"])
async def test_a_run_that_is_over_is_not_cancelled(client: Client, code: str) -> None:
    """B62e."""
    execution = await client.run(await one_node(client, code), {"x": 1})
    request = pb.CancelExecutionRequest(execution_id=execution.id)
    refused = await refusal(client.executions.CancelExecution(request))
    expected = (grpc.StatusCode.FAILED_PRECONDITION, "EXECUTION_FINISHED")
    assert expected == (refused.code, refused.reason)


# Others.


async def test_another_user_sees_nothing_and_is_told_nothing(
    client: Client, stranger: Client
) -> None:
    """B62i: what is another's answers, byte for byte, as what does not exist."""
    workflow = await one_node(client, ECHO, "any")
    execution = await client.run(workflow, {"x": 1})
    node_id = workflow.definition.nodes[0].node_id

    def calls(node: str, graph: str, run: str) -> list[Any]:
        runs = stranger.executions
        return [
            stranger.nodes.GetNode(node_service_pb2.GetNodeRequest(node_id=node)),
            stranger.workflows.GetWorkflow(
                workflow_service_pb2.GetWorkflowRequest(workflow_id=graph)
            ),
            stranger.workflows.ActivateWorkflow(
                workflow_service_pb2.ActivateWorkflowRequest(workflow_id=graph)
            ),
            runs.StartExecution(pb.StartExecutionRequest(workflow_id=graph, input_json='{"x":1}')),
            runs.GetExecution(pb.GetExecutionRequest(execution_id=run)),
            runs.ListNodeExecutions(pb.ListNodeExecutionsRequest(execution_id=run)),
            runs.WaitExecution(pb.WaitExecutionRequest(execution_id=run)),
            runs.CancelExecution(pb.CancelExecutionRequest(execution_id=run)),
            runs.WatchExecution(pb.WatchExecutionRequest(execution_id=run), timeout=10).read(),
        ]

    foreign = (node_id, workflow.id, execution.id)
    missing = (str(uuid.uuid4()), str(uuid.uuid4()), str(uuid.uuid4()))
    answers = [
        [anonymous(await refusal(call), *ids) for call in calls(*ids)] for ids in (foreign, missing)
    ]
    assert answers[0] == answers[1]
    assert {grpc.StatusCode.NOT_FOUND} == {code for code, _, _ in answers[0]}
    assert [] == [raw for _, _, raw in answers[0] if b"qflow" not in raw]
    nodes = await stranger.nodes.ListNodes(node_service_pb2.ListNodesRequest())
    workflows = await stranger.workflows.ListWorkflows(workflow_service_pb2.ListWorkflowsRequest())
    executions = await stranger.executions.ListExecutions(pb.ListExecutionsRequest())
    # What others made public on purpose is everybody's; nothing else is.
    assert [] == [each.id for each in nodes.nodes if not (each.is_public or each.is_template)]
    assert [] == [each.id for each in workflows.workflows if not each.is_template]
    assert [] == list(executions.executions)


def anonymous(refused: Refusal, *ids: str) -> tuple[grpc.StatusCode, str, bytes]:
    """A refusal with the id that was asked for taken out."""
    message, raw = refused.message, refused.raw
    for each in ids:
        message, raw = message.replace(each, "<id>"), raw.replace(each.encode(), b"<id>")
    return refused.code, message, raw


async def test_another_users_node_cannot_be_used(client: Client, stranger: Client) -> None:
    node = await client.create_node("mine", ECHO)
    call = stranger.create_workflow(
        "theirs", [Step("a", node)], [".x > a.value"], inputs={"x": "any"}
    )
    refused = await refusal(call)
    assert refused.code == grpc.StatusCode.INVALID_ARGUMENT
    assert "nodes[0].node_id" in " ".join(refused.fields), refused.fields


async def test_a_wrong_token_is_refused(suite: Suite) -> None:
    """On unary calls and on streams; every RPC is asked in tests/contracts."""
    async with suite.channel("orchestrator", token="qf_wrong") as channel:
        nobody = Client(channel, channel)
        run = str(uuid.uuid4())
        get, watch = (
            pb.GetExecutionRequest(execution_id=run),
            pb.WatchExecutionRequest(execution_id=run),
        )
        unary = await refusal(nobody.executions.GetExecution(get))
        stream = await refusal(nobody.executions.WatchExecution(watch).read())
    assert [grpc.StatusCode.UNAUTHENTICATED] * 2 == [unary.code, stream.code]
