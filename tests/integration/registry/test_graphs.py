"""Graphs with choices, waits, maps, loops and workflows in workflows, through the contract."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from qflow.isolation.v1 import isolation_pb2
from qflow.registry.v1 import builtin_node_service_pb2 as builtin_rpc
from qflow.registry.v1 import diff_service_pb2 as diff_rpc
from qflow.registry.v1 import exchange_service_pb2 as exchange_rpc
from qflow.registry.v1 import node_pb2
from qflow.registry.v1 import node_service_pb2 as node_rpc
from qflow.registry.v1 import workflow_pb2 as pb
from qflow.registry.v1 import workflow_service_pb2 as rpc
from qflow.registry.v1.builtin_node_service_pb2_grpc import BuiltinNodeServiceStub

from tests import factories
from tests.integration.registry.conftest import Client, Registry, edge, place, refused

INCREMENT = "def increment(x: int) -> int: return x + 1"
MEND = "def mend(error: dict[str, str] | None = None) -> str: return str(error)"
TOTAL = "def total(xs: list[int | None]) -> int: return sum(x or 0 for x in xs)"
DRAFTED = grpc.StatusCode.FAILED_PRECONDITION
INVALID = grpc.StatusCode.INVALID_ARGUMENT


def _edge(kind: str, source: str, target: str, **more: Any) -> pb.Connection:
    return pb.Connection(
        source_node=source,
        target_node=target,
        kind=pb.ConnectionKind.Value(f"CONNECTION_KIND_{kind}"),
        **more,
    )


def _sleeping(name: str, seconds: str) -> pb.WorkflowNode:
    literal = pb.LiteralInput(input="seconds", value_json=seconds)
    return pb.WorkflowNode(id=name, literals=[literal], sleep=pb.NodeSleep())


async def _graph(client: Client) -> pb.WorkflowDefinition:
    """A bit of everything."""
    increment, mend, total = [await client.node(code) for code in (INCREMENT, MEND, TOTAL)]
    one, each, turns, mended, at_end, undo = [
        place(name, on=on)
        for name, on in (
            ("one", increment),
            ("each", increment),
            ("turns", increment),
            ("mended", mend),
            ("at_end", mend),
            ("undo", mend),
        )
    ]
    each.for_each.CopyFrom(pb.MapPolicy(input="x", max_failed=1, max_in_flight=10))
    turns.repeat.CopyFrom(
        pb.LoopPolicy(
            condition="result < 10 && turn < 5",
            max_turns=5,
            carry=[pb.LoopCarry(input="x", output="result")],
            at_max=pb.LOOP_END_FAIL,
        )
    )
    one.retry.retryable_errors.append("TimeoutError")
    one.condition = "x < 1000"
    one.network = isolation_pb2.NETWORK_EGRESS
    one.egress_hosts.extend(["*.example.com", "db.example.org:5432"])
    at_end.phase = pb.NODE_PHASE_FINALLY
    undo.compensates = "one"
    which = pb.WorkflowNode(id="which")
    which.choice.branches.add(name="big", condition="x > 10")
    which.choice.default_branch = "small"
    go = pb.WorkflowNode(id="go")
    go.signal.CopyFrom(
        pb.NodeSignal(name="go", type_json='{"t":"int"}', wait_timeout=Duration(seconds=60))
    )
    nap = _sleeping("nap", "0.5")
    asked = pb.WorkflowNode(id="asked")
    asked.approval.CopyFrom(pb.NodeApproval(name="asked", type_json='{"t":"str"}'))
    summed = place("summed", on=total)
    return pb.WorkflowDefinition(
        nodes=[which, one, each, turns, mended, at_end, undo, go, nap, asked, summed],
        connections=[
            edge(".n -> which.x"),
            _edge("BRANCH", "which", "one", branch="big"),
            edge(".n -> one.x"),
            edge(".ns -> each.x"),
            edge("go.result -> turns.x"),
            _edge("FAILURE", "one", "mended", source_output="error", target_input="error"),
            _edge("ORDER", "nap", "asked"),
            edge("one.result -> asked.subject"),
            edge("each.result -> summed.xs"),
        ],
    )


async def _made(client: Client, definition: pb.WorkflowDefinition, **fields: Any) -> pb.Workflow:
    request = rpc.CreateWorkflowRequest(name="w", definition=definition, **fields)
    made: pb.Workflow = (await client.workflows.CreateWorkflow(request)).workflow
    return made


async def test_built_in_nodes_are_shown_with_their_signatures(client: Client) -> None:
    stub: Any = BuiltinNodeServiceStub(client.channel)
    listed = (await stub.ListBuiltinNodes(builtin_rpc.ListBuiltinNodesRequest())).nodes
    assert ["Choice", "Sleep", "Signal", "Approval"] == [each.name for each in listed]
    sleep = listed[1]
    assert node_pb2.NODE_KIND_SLEEP == sleep.kind
    assert [("seconds", "float"), ("until", "datetime")] == [
        (each.name, each.type_expression) for each in sleep.inputs
    ]
    assert [("result", "datetime")] == [(e.name, e.type_expression) for e in sleep.outputs]
    assert "restarts" in sleep.description
    for each in listed:
        found = await client.nodes.GetNode(node_rpc.GetNodeRequest(node_id=each.id))
        assert each == found.node
    said = await refused(client.nodes.GetNode(node_rpc.GetNodeRequest(node_id=sleep.id, version=2)))
    assert grpc.StatusCode.NOT_FOUND == said.code


async def test_every_construct_is_stored_and_read_again(client: Client) -> None:
    definition = await _graph(client)
    made = await _made(client, definition, activate=True)
    read = await client.workflows.GetWorkflow(rpc.GetWorkflowRequest(workflow_id=made.id))
    assert made == read.workflow
    nodes = {each.id: each for each in made.definition.nodes}
    assert "choice" == nodes["which"].WhichOneof("construct")
    assert uuid.UUID(nodes["which"].node_id)
    assert "int" == nodes["go"].signal.type_expression
    assert Duration(seconds=60) == nodes["go"].signal.wait_timeout
    assert ["TimeoutError"] == list(nodes["one"].retry.retryable_errors)
    assert isolation_pb2.NETWORK_EGRESS == nodes["one"].network
    assert ["*.example.com", "db.example.org:5432"] == list(nodes["one"].egress_hosts)
    assert pb.LOOP_END_FAIL == nodes["turns"].repeat.at_max
    assert (1, 10) == (nodes["each"].for_each.max_failed, nodes["each"].for_each.max_in_flight)
    assert "one" == nodes["undo"].compensates
    kinds = [each.kind for each in made.definition.connections]
    assert {pb.CONNECTION_KIND_DATA, pb.CONNECTION_KIND_BRANCH, pb.CONNECTION_KIND_ORDER} < {*kinds}
    inputs = {each.name: each.type_expression for each in made.definition.inputs}
    assert {"n": "int", "ns": "list[int]"} == inputs
    outputs = {each.name: each.type_expression for each in made.definition.outputs}
    assert "int" == outputs["turns"]
    assert "int" == outputs["summed"]
    # It runs only where another failed.
    assert "str | None" == outputs["mended"]


async def test_a_graph_is_the_same_after_its_text(client: Client) -> None:
    made = await _made(client, await _graph(client))
    for form in (exchange_rpc.DOCUMENT_FORMAT_YAML, exchange_rpc.DOCUMENT_FORMAT_JSON):
        exported = await client.exchange.ExportWorkflow(
            exchange_rpc.ExportWorkflowRequest(workflow_id=made.id, format=form, include_nodes=True)
        )
        imported = await client.exchange.ImportWorkflow(
            exchange_rpc.ImportWorkflowRequest(text=exported.text, format=form)
        )
        assert made.definition == imported.workflow.definition


async def test_what_changed_in_a_graph_is_told_part_by_part(client: Client) -> None:
    definition = await _graph(client)
    made = await _made(client, definition)
    definition.nodes[0].choice.branches[0].condition = "x > 20"
    definition.connections.pop(6)
    await client.workflows.UpdateWorkflow(
        rpc.UpdateWorkflowRequest(
            workflow_id=made.id, definition=definition, update_mask=FieldMask(paths=["definition"])
        )
    )
    diff = await client.diffs.DiffWorkflowVersions(
        diff_rpc.DiffWorkflowVersionsRequest(workflow_id=made.id, from_version=1, to_version=2)
    )
    found = {each.place: (each.before, each.after) for each in diff.changes}
    assert ("x > 10", "x > 20") == found["nodes.which.choice.branches.0.condition"]
    assert "connections.nap>asked (order)" in found


async def test_a_graph_is_drawn_with_its_kinds(client: Client) -> None:
    drawn = await client.exchange.RenderWorkflow(
        exchange_rpc.RenderWorkflowRequest(
            definition=await _graph(client), format=exchange_rpc.PICTURE_FORMAT_MERMAID
        )
    )
    assert "which<br/>Choice" in drawn.text
    assert "-.->" in drawn.text


async def test_all_faults_of_constructs_come_at_once(client: Client) -> None:
    """B55 and its kin."""
    definition = await _graph(client)
    nodes = {each.id: each for each in definition.nodes}
    nodes["which"].choice.branches[0].condition = "nothing > 1"
    nodes["one"].condition = "x.all(i, x.all(j, true))"
    nodes["each"].for_each.input = "q"
    nodes["turns"].repeat.carry[0].output = "q"
    nodes["undo"].compensates = "q"
    nodes["go"].signal.type_json = "{"
    nodes["summed"].join.kind = pb.JOIN_KIND_N_OF
    nodes["summed"].join.count = 7
    definition.connections[1].branch = "q"
    said = await refused(
        client.workflows.CreateWorkflow(rpc.CreateWorkflowRequest(name="w", definition=definition))
    )
    assert INVALID == said.code
    index = {each.id: at for at, each in enumerate(definition.nodes)}
    assert {
        (f"nodes[{index['which']}].choice.branches[0].condition", "EXPRESSION_INVALID"),
        (f"nodes[{index['one']}].condition", "EXPRESSION_INVALID"),
        (f"nodes[{index['each']}].for_each.input", "UNKNOWN_INPUT"),
        (f"nodes[{index['turns']}].repeat.carry[0].output", "UNKNOWN_OUTPUT"),
        (f"nodes[{index['undo']}].compensates", "UNKNOWN_NODE"),
        (f"nodes[{index['go']}].signal.type_json", "TYPE_INVALID"),
        (f"nodes[{index['summed']}].join", "JOIN_COUNT"),
        ("connections[1].branch", "UNKNOWN_BRANCH"),
    } <= set(said.violations)


async def test_signals_of_one_name_that_nothing_satisfies_are_refused(client: Client) -> None:
    definition = pb.WorkflowDefinition()
    for name, of in (("a", "int"), ("b", "str")):
        signal = pb.NodeSignal(name="go", type_json=f'{{"t":"{of}"}}')
        definition.nodes.append(pb.WorkflowNode(id=name, signal=signal))
    request = rpc.CreateWorkflowRequest(name="w", definition=definition)
    said = await refused(client.workflows.CreateWorkflow(request))
    assert INVALID == said.code
    assert {("nodes[1].signal.type_json", "WAIT_TYPES_DIFFER")} == set(said.violations)
    definition.nodes[1].signal.type_json = '{"t":"int"}'
    await _made(client, definition)


async def test_what_runs_last_takes_no_output_away(client: Client) -> None:
    increment = await client.node(INCREMENT)
    told = await client.node("def tell(x: int | None = None) -> None: ...")
    undo = await client.node("def undo(x: int) -> None: ...")
    nodes = [place("one", on=increment), place("at_end", on=told), place("undo", on=undo)]
    nodes[1].phase = pb.NODE_PHASE_FINALLY
    nodes[2].compensates = "one"
    edges = [edge(".n -> one.x"), edge("one.result -> at_end.x"), edge("one.result -> undo.x")]
    made = await _made(client, pb.WorkflowDefinition(nodes=nodes, connections=edges))
    assert ["one"] == [each.name for each in made.definition.outputs]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"choice": pb.NodeChoice(branches=[pb.ChoiceBranch(name="1", condition="x")])}, "name"),
        ({"signal": pb.NodeSignal(name="s", type_json="")}, "type_json"),
        ({"repeat": pb.LoopPolicy(condition="x", max_turns=1001)}, "max_turns"),
        ({"for_each": pb.MapPolicy(input="x", depth=4)}, "depth"),
        ({"for_each": pb.MapPolicy(input="x", max_failed_ratio=1.5)}, "max_failed_ratio"),
        ({"condition": "x" * 4097}, "condition"),
        ({"queue_timeout": Duration(seconds=10**9)}, "queue_timeout"),
        ({"cache_ttl": Duration(nanos=1)}, "cache_ttl"),
        ({"phase": 77}, "phase"),
    ],
)
async def test_what_is_out_of_bounds_is_refused(
    client: Client, fields: dict[str, Any], field: str
) -> None:
    """B54."""
    node = pb.WorkflowNode(id="a", node_id=str(uuid.uuid4()), **fields)
    definition = pb.WorkflowDefinition(nodes=[node])
    said = await refused(
        client.workflows.CheckWorkflow(rpc.CheckWorkflowRequest(definition=definition))
    )
    assert INVALID == said.code
    assert any(place.endswith(field) for place, _ in said.violations)


# -- workflows in workflows


def _running(name: str, inner: pb.Workflow, **literals: str) -> pb.WorkflowNode:
    given = [pb.LiteralInput(input=key, value_json=text) for key, text in literals.items()]
    node = pb.WorkflowNode(id=name, node_id=inner.id, literals=given)
    node.sub_workflow.SetInParent()
    return node


async def _inner(client: Client, **fields: Any) -> pb.Workflow:
    increment = await client.node(INCREMENT)
    definition = pb.WorkflowDefinition(
        nodes=[place("a", on=increment)], connections=[edge(".n -> a.x")]
    )
    return await _made(client, definition, **fields)


async def _around(client: Client, inner: pb.Workflow, **fields: Any) -> pb.Workflow:
    definition = pb.WorkflowDefinition(nodes=[_running("s", inner, n="1")])
    return await _made(client, definition, **fields)


async def test_a_workflow_runs_in_another_with_its_types(client: Client) -> None:
    inner = await _inner(client, activate=True)
    outer = await _around(client, inner, activate=True)
    assert [("s", "int")] == [(e.name, e.type_expression) for e in outer.definition.outputs]
    wrong = pb.WorkflowDefinition(nodes=[_running("s", inner, n='"x"')])
    said = await refused(
        client.workflows.CreateWorkflow(rpc.CreateWorkflowRequest(name="w", definition=wrong))
    )
    assert [("nodes[0].literals[0].value_json", "VALUE_NOT_OF_TYPE")] == said.violations


async def test_a_draft_in_a_workflow_hinders_its_activation_alone(client: Client) -> None:
    inner = await _inner(client)
    outer = await _around(client, inner)
    assert ["SUB_WORKFLOW_INACTIVE"] == [each.code for each in outer.findings]
    said = await refused(
        client.workflows.ActivateWorkflow(rpc.ActivateWorkflowRequest(workflow_id=outer.id))
    )
    assert DRAFTED == said.code


async def test_a_workflow_never_contains_itself(client: Client) -> None:
    """B56."""
    inner = await _inner(client, activate=True)
    middle = await _around(client, inner, activate=True)
    definition = pb.WorkflowDefinition(nodes=[_running("s", middle)])
    outer = await _made(client, definition, activate=True)
    update = rpc.UpdateWorkflowRequest(
        workflow_id=inner.id,
        definition=pb.WorkflowDefinition(nodes=[_running("s", outer)]),
        update_mask=FieldMask(paths=["definition"]),
    )
    said = await refused(client.workflows.UpdateWorkflow(update))
    assert (INVALID, [("nodes[0]", "SUB_WORKFLOW_CYCLE")]) == (said.code, said.violations)


async def test_workflows_run_in_each_other_eight_deep_and_no_deeper(client: Client) -> None:
    made = await _inner(client, activate=True)
    for _ in range(8):
        node = _running("s", made)
        definition = pb.WorkflowDefinition(nodes=[node])
        if made.definition.inputs:
            definition.connections.append(edge(".n -> s.n"))
        made = await _made(client, definition, activate=True)
    definition = pb.WorkflowDefinition(nodes=[_running("s", made)], connections=[edge(".n -> s.n")])
    said = await refused(
        client.workflows.CreateWorkflow(rpc.CreateWorkflowRequest(name="w", definition=definition))
    )
    assert [("nodes[0]", "SUB_WORKFLOW_TOO_DEEP")] == said.violations


async def test_a_foreign_workflow_is_as_absent_as_none(
    client: Client, registry: Registry, sql: psycopg.Connection
) -> None:
    """X13."""
    theirs = registry.client(factories.user(sql).token)
    foreign = await _inner(theirs, activate=True)
    for workflow_id in (foreign.id, str(uuid.uuid4())):
        node = pb.WorkflowNode(id="s", node_id=workflow_id, sub_workflow=pb.NodeSubWorkflow())
        request = rpc.CreateWorkflowRequest(
            name="w", definition=pb.WorkflowDefinition(nodes=[node])
        )
        said = await refused(client.workflows.CreateWorkflow(request))
        assert [("nodes[0].node_id", "SUB_WORKFLOW_NOT_FOUND")] == said.violations


async def test_a_template_of_others_is_pinned_where_it_runs(
    client: Client, registry: Registry, sql: psycopg.Connection
) -> None:
    theirs = registry.client(factories.user(sql).token)
    node = await theirs.node(INCREMENT)
    await theirs.nodes.UpdateNode(
        node_rpc.UpdateNodeRequest(
            node_id=node.id, is_public=True, update_mask=FieldMask(paths=["is_public"])
        )
    )
    definition = pb.WorkflowDefinition(nodes=[place("a", on=node)], connections=[edge(".n -> a.x")])
    template = await _made(theirs, definition, activate=True)
    await theirs.workflows.UpdateWorkflow(
        rpc.UpdateWorkflowRequest(
            workflow_id=template.id,
            is_template=True,
            update_mask=FieldMask(paths=["is_template"]),
        )
    )
    outer = await _around(client, template, activate=True)
    assert 1 == outer.definition.nodes[0].version
    assert ["NODE_PINNED"] == [each.code for each in outer.findings]


async def test_a_workflow_that_another_runs_is_not_deleted(client: Client) -> None:
    inner = await _inner(client, activate=True)
    outer = await _around(client, inner)
    delete = rpc.DeleteWorkflowRequest(workflow_id=inner.id)
    said = await refused(client.workflows.DeleteWorkflow(delete))
    assert (DRAFTED, "WORKFLOW_IN_USE") == (said.code, said.reason)
    await client.workflows.DeleteWorkflow(rpc.DeleteWorkflowRequest(workflow_id=outer.id))
    await client.workflows.DeleteWorkflow(delete)
    said = await refused(
        client.workflows.UndeleteWorkflow(rpc.UndeleteWorkflowRequest(workflow_id=outer.id))
    )
    assert (DRAFTED, "NODES_DELETED") == (said.code, said.reason)


async def test_of_a_deletion_and_a_use_at_once_one_is_refused(client: Client) -> None:
    inner = await _inner(client, activate=True)
    delete = client.workflows.DeleteWorkflow(rpc.DeleteWorkflowRequest(workflow_id=inner.id))
    outcomes = await asyncio.gather(_around(client, inner), delete, return_exceptions=True)
    assert 1 == sum(isinstance(each, grpc.aio.AioRpcError) for each in outcomes)


async def test_a_template_runs_templates_alone(client: Client) -> None:
    inner = await _inner(client, activate=True)
    outer = await _around(client, inner)

    def shared(workflow: pb.Workflow, *, to: bool) -> rpc.UpdateWorkflowRequest:
        mask = FieldMask(paths=["is_template"])
        return rpc.UpdateWorkflowRequest(workflow_id=workflow.id, is_template=to, update_mask=mask)

    said = await refused(client.workflows.UpdateWorkflow(shared(outer, to=True)))
    assert "NODES_NOT_SHARED" == said.reason
    node = inner.definition.nodes[0].node_id
    await client.nodes.UpdateNode(
        node_rpc.UpdateNodeRequest(
            node_id=node, is_public=True, update_mask=FieldMask(paths=["is_public"])
        )
    )
    await client.workflows.UpdateWorkflow(shared(inner, to=True))
    await client.workflows.UpdateWorkflow(shared(outer, to=True))
    said = await refused(client.workflows.UpdateWorkflow(shared(inner, to=False)))
    assert (DRAFTED, "WORKFLOW_IN_TEMPLATES") == (said.code, said.reason)


async def test_a_template_of_built_in_nodes_is_shared_and_cloned(client: Client) -> None:
    nap = _sleeping("nap", "1.0")
    made = await _made(client, pb.WorkflowDefinition(nodes=[nap]), activate=True)
    await client.workflows.UpdateWorkflow(
        rpc.UpdateWorkflowRequest(
            workflow_id=made.id, is_template=True, update_mask=FieldMask(paths=["is_template"])
        )
    )
    clone = await client.workflows.CloneWorkflow(rpc.CloneWorkflowRequest(workflow_id=made.id))
    assert made.definition == clone.workflow.definition


async def test_the_text_of_the_guide_is_imported_and_can_be_started(client: Client) -> None:
    guide = (Path(__file__).parents[3] / "docs/graphs.md").read_text(encoding="utf-8")
    text = guide.split("```yaml\n")[1].split("```")[0]
    imported = await client.exchange.ImportWorkflow(
        exchange_rpc.ImportWorkflowRequest(
            text=text, format=exchange_rpc.DOCUMENT_FORMAT_YAML, activate=True
        )
    )
    assert imported.workflow.active
