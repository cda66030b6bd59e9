"""Export and import through the contract: stable texts, whole imports, faults with their places."""

from __future__ import annotations

import json
import uuid
from graphlib import TopologicalSorter
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from qflow.registry.v1 import exchange_service_pb2 as pb
from qflow.registry.v1 import node_service_pb2 as node_rpc
from qflow.registry.v1 import workflow_pb2
from qflow.registry.v1 import workflow_service_pb2 as workflow_rpc

from services.registry.domain.document import plain, read_json
from services.registry.domain.yaml_text import read_yaml
from tests import factories
from tests.integration.registry.conftest import Client, Registry, change_rows, edge, place, refused

INVALID = grpc.StatusCode.INVALID_ARGUMENT
INCREMENT = 'def increment(x: int) -> int:\n    """Add one."""\n    return x + 1\n'
HALVE = "def halve(x: float, note: str = 'a: b') -> float:\n\n    return x / 2  # ½ \t\n"
YAML, JSON = pb.DOCUMENT_FORMAT_YAML, pb.DOCUMENT_FORMAT_JSON


async def _stored(client: Client) -> workflow_pb2.Workflow:
    """A workflow that has something of everything."""
    increment = await client.node(INCREMENT)
    halve = (
        await client.nodes.CreateNode(
            node_rpc.CreateNodeRequest(name='½ "half": [x]', description="", code=HALVE)
        )
    ).node
    definition = workflow_pb2.WorkflowDefinition(
        nodes=[
            place("a", on=increment, retry=workflow_pb2.RetryPolicy(max_retries=2)),
            place("b", on=increment, version=1, timeout=Duration(seconds=5)),
            place("c", on=halve, literals={"note": '"line\\n{\\"k\\": 1e+16}"'}),
            place("d", on=halve, literals={"x": "1e0"}, memory_limit_bytes=32 << 20),
        ],
        connections=[
            edge(".n -> a.x"),
            edge("a.result -> b.x"),
            edge("b.result -> c.x"),
        ],
        inputs=[workflow_pb2.WorkflowInput(name="n", type_json='{"t":"int"}', default_json="5")],
        outputs=[
            workflow_pb2.WorkflowOutput(name="half", source_node="c", source_output="result"),
            workflow_pb2.WorkflowOutput(name="d", source_node="d", source_output="result"),
        ],
        settings=workflow_pb2.WorkflowSettings(timeout=Duration(seconds=90)),
    )
    request = workflow_rpc.CreateWorkflowRequest(
        name="yes", description="Two\nlines: of it\n", definition=definition
    )
    stored: workflow_pb2.Workflow = (await client.workflows.CreateWorkflow(request)).workflow
    return stored


async def _export(client: Client, workflow_id: str, **fields: Any) -> str:
    request = pb.ExportWorkflowRequest(workflow_id=workflow_id, **fields)
    return str((await client.exchange.ExportWorkflow(request)).text)


async def _import(client: Client, text: str, **fields: Any) -> pb.ImportWorkflowResponse:
    request = pb.ImportWorkflowRequest(text=text, **fields)
    answer: pb.ImportWorkflowResponse = await client.exchange.ImportWorkflow(request)
    return answer


@pytest.mark.parametrize("form", [YAML, JSON])
@pytest.mark.parametrize("include_nodes", [True, False])
async def test_what_is_imported_is_exported_byte_for_byte(
    client: Client, *, form: int, include_nodes: bool
) -> None:
    stored = await _stored(client)
    text = await _export(client, stored.id, format=form, include_nodes=include_nodes)
    assert stored.definition.nodes[0].node_id not in text
    imported = await _import(client, text)
    assert not any(each.created for each in imported.nodes)
    assert imported.workflow.id != stored.id
    again = await _export(client, imported.workflow.id, format=form, include_nodes=include_nodes)
    assert text == again
    assert stored.definition == imported.workflow.definition


async def test_a_text_is_whole_where_its_nodes_do_not_exist(
    client: Client, registry: Registry, sql: psycopg.Connection
) -> None:
    stored = await _stored(client)
    other = registry.client(factories.user(sql).token)
    for form in (YAML, JSON):
        text = await _export(client, stored.id, format=form, include_nodes=True)
        imported = await _import(other, text)
        assert [each.created for each in imported.nodes] == [form == YAML] * 2
        assert text == await _export(other, imported.workflow.id, format=form, include_nodes=True)
        node = await other.nodes.GetNode(node_rpc.GetNodeRequest(node_id=imported.nodes[1].node_id))
        assert (node.node.code, node.node.description) == (HALVE, "")


async def test_yaml_and_json_hold_the_same(client: Client) -> None:
    stored = await _stored(client)
    for include_nodes in (True, False):
        yaml = await _export(client, stored.id, include_nodes=include_nodes)
        text = await _export(client, stored.id, format=JSON, include_nodes=include_nodes)
        assert plain(read_yaml(yaml)) == plain(read_json(text))
        assert list(json.loads(text))[:2] == ["format", "name"]
    assert "code: |" in await _export(client, stored.id, include_nodes=True)


async def test_a_name_and_activation_are_taken_and_a_repeat_answers_the_same(
    client: Client,
) -> None:
    text = await _export(client, (await _stored(client)).id)
    fields = {"name": "another", "activate": True, "request_id": str(uuid.uuid4())}
    first, second = [await _import(client, text, **fields) for _ in range(2)]
    assert first == second
    assert (first.workflow.name, first.workflow.active) == ("another", True)


async def test_no_way_to_store_a_version_takes_a_graph_whose_nodes_wait_for_each_other(
    client: Client, sql: psycopg.Connection
) -> None:
    """I16, B44: made, changed and imported; what is cloned or gone back to was one of these."""
    increment = await client.node(INCREMENT)
    nodes = [place(name, on=increment) for name in "ab"]
    straight, round_about = (
        workflow_pb2.WorkflowDefinition(
            nodes=nodes,
            connections=[edge(first), edge("a.result -> b.x")],
            inputs=[workflow_pb2.WorkflowInput(name="n", type_json='{"t":"int"}')],
        )
        for first in (".n -> a.x", "b.result -> a.x")
    )
    create, update = workflow_rpc.CreateWorkflowRequest, workflow_rpc.UpdateWorkflowRequest
    made = await client.workflows.CreateWorkflow(create(name="w", definition=straight))
    text = await _export(client, made.workflow.id, format=YAML)
    assert 1 == text.count("{input: 'n', to: a.x}")
    change = update(
        workflow_id=made.workflow.id,
        definition=round_about,
        update_mask=FieldMask(paths=["definition"]),
    )
    for asked in (
        client.workflows.CreateWorkflow(create(name="w", definition=round_about)),
        client.workflows.UpdateWorkflow(change),
        _import(client, text.replace("{input: 'n', to: a.x}", "{from: b.result, to: a.x}")),
    ):
        said = await refused(asked)
        assert INVALID == said.code
        assert ["CYCLE"] == [code for _, code in said.violations]
    stored = sql.execute("SELECT connections FROM workflow_versions").fetchall()
    assert 1 == len(stored)
    for (connections,) in stored:
        after: dict[str, set[str]] = {}
        for each in connections:
            after.setdefault(each["target"], set()).add(each["source"])
        TopologicalSorter(after).prepare()  # raises where there is a circle


async def test_validating_stores_nothing(client: Client, sql: psycopg.Connection) -> None:
    """B32 of an import: the answer is that of a real one, without ids."""
    text = _text("def fresh(x: int) -> int: return x")
    imported = await _import(client, text, validate_only=True)
    assert imported.workflow.id == ""
    assert [(each.key, each.node_id, each.created) for each in imported.nodes] == [("s", "", True)]
    [count] = sql.execute("SELECT count(*) FROM python_nodes").fetchone() or (None,)
    assert count == 0


async def test_a_pinned_node_is_found_by_its_earlier_version(client: Client) -> None:
    node = await client.node(INCREMENT)
    definition = workflow_pb2.WorkflowDefinition(nodes=[place("a", on=node, version=1)])
    made = await client.workflows.CreateWorkflow(
        workflow_rpc.CreateWorkflowRequest(name="w", definition=definition)
    )
    text = await _export(client, made.workflow.id, include_nodes=True)
    await client.nodes.UpdateNode(
        node_rpc.UpdateNodeRequest(
            node_id=node.id,
            code="def other(x: int) -> int: return x",
            main_function="other",
            update_mask=FieldMask(paths=["code", "main_function"]),
        )
    )
    pinned = await _import(client, text)
    assert [(e.node_id, e.version, e.created) for e in pinned.nodes] == [(node.id, 1, False)]
    assert pinned.workflow.definition.nodes[0].version == 1
    # A floating place means the current version, which is another by now.
    floating = await _import(client, text.replace("\n    pinned: true", ""))
    assert [each.created for each in floating.nodes] == [True]


def _text(code: str, rest: str = "", **node: Any) -> str:
    document: dict[str, Any] = {
        "format": "qflow.workflow/1",
        "name": "w",
        "nodes": {"a": {"source": "s", **node}},
        "sources": {
            "s": {"name": "s", "python_version": "3.11", "main_function": "", "code": code}
        },
    }
    return json.dumps(document, indent=1) + rest


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("a: &x 1\nb: *x\n", {"line 1, column 4 (a): anchors", "line 2, column 4 (b): aliases"}),
        ("a: !!python/name:os.system x\n", {"line 1, column 4 (a): tags are refused"}),
        ("a: 1\nb:\n  c: 1\n  c: 2\n", {"line 4, column 3 (b.c): occurs a second time"}),
        ("a: [1\n", {"line 2, column 1: is not YAML"}),
        ('{"a": 1,}', {"line 1, column 9: a key in double quotes"}),
        ("[" * 100, {"line 1, column 66"}),
        ("[" * 50_000, {"nesting depth"}),
        ("x: y\n", {"line 1, column 4 (x): is not known", "line 1, column 1: format is missing"}),
        ("- 1\n", {"line 1, column 1: must be a mapping"}),
        ("format: 1\nname: w\nnodes: {}\nsources: {}\n", {"line 1, column 9 (format): must be"}),
        ("\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"), {"line 1, column 1"}),
    ],
)
async def test_a_text_that_is_none_is_told_with_line_and_column(
    client: Client, text: str, places: set[str]
) -> None:
    said = await refused(_import(client, text))
    assert said.code == INVALID
    for each in places:
        assert each in said.text
    assert {field for field, _ in said.violations} == {"text"}


async def test_all_faults_of_a_text_come_at_once(client: Client) -> None:
    text = """\
format: qflow.workflow/1
name: w
settings: {timeout_ms: 99999999999}
nodes:
  1a: {source: s}
  b:
    source: s
    retry: {max_retries: 1000, factor: 0.5}
    memory_bytes: 7
  c: {source: gone}
  d: {source: broken}
connections:
- {from: b.result, to: d.x}
sources:
  s: {name: s, python_version: '3.11', main_function: f, code: 'def f(x: int) -> int: return x'}
  gone: {name: s, python_version: '3.11', main_function: f, digest: 'sha256:0'}
  broken: {name: '', python_version: '3.11', main_function: f, code: 'def f(:'}
"""
    said = await refused(_import(client, text))
    assert (said.code, said.reason) == (INVALID, "IMPORT_INVALID")
    for each in (
        "line 3, column 24 (settings.timeout_ms)",
        "line 5, column 7 (nodes.1a)",
        "line 8, column 12 (nodes.b.retry)",
        "line 9, column 19 (nodes.b.memory_bytes)",
        "line 16, column 9 (sources.gone): there is no node of this name and content",
        "line 17, column 18 (sources.broken.name)",
        "(sources.broken.code): line 1, column 7",
    ):
        assert each in said.text


async def test_faults_of_code_and_graph_have_the_places_of_the_text(client: Client) -> None:
    said = await refused(_import(client, _text("def f(x: int) -> int:\n  return (")))
    assert (said.code, "(sources.s.code): line 2" in said.text) == (INVALID, True)
    text = _text("def f(x: int) -> int: return x", literals={"x": "no", "y": 1})
    said = await refused(_import(client, text))
    assert {reason for _, reason in said.violations} == {"VALUE_NOT_OF_TYPE", "UNKNOWN_INPUT"}
    assert "line 8, column 10 (nodes.a.literals.x)" in said.text
    said = await refused(_import(client, _text("def f(x: int) -> int: return x"), activate=True))
    assert (said.code, said.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "WORKFLOW_INCOMPLETE",
    )


async def test_another_tenants_nodes_and_workflow_are_as_absent_ones(
    client: Client, registry: Registry, sql: psycopg.Connection
) -> None:
    """X14."""
    stored = await _stored(client)
    other = registry.client(factories.user(sql).token)
    said = await refused(_import(other, await _export(client, stored.id)))
    assert {reason for _, reason in said.violations} == {"NODE_NOT_FOUND"}
    for workflow_id in (stored.id, str(uuid.uuid4())):
        said = await refused(_export(other, workflow_id))
        assert (said.code, said.reason) == (grpc.StatusCode.NOT_FOUND, "WORKFLOW_NOT_FOUND")


@pytest.mark.slow
async def test_a_large_workflow_goes_out_and_comes_back(client: Client) -> None:
    node = await client.node("def f(x: int = 0) -> int: return x")
    count = 4_000
    definition = workflow_pb2.WorkflowDefinition(
        nodes=[place(f"n{i}", on=node) for i in range(count)],
        connections=[edge(f"n{i}.result -> n{i + 1}.x") for i in range(count - 1)],
    )
    request = workflow_rpc.CreateWorkflowRequest(name="large", definition=definition)
    made = (await client.workflows.CreateWorkflow(request, timeout=40)).workflow
    for form in (YAML, JSON):
        text = await _export(client, made.id, format=form)
        imported = await client.exchange.ImportWorkflow(
            pb.ImportWorkflowRequest(text=text), timeout=40
        )
        assert made.definition == imported.workflow.definition


async def test_variables_and_parameters_go_out_and_come_back(client: Client) -> None:
    node = await client.node("def scale(x: int, k: int) -> int: return x * k")
    definition = workflow_pb2.WorkflowDefinition(
        nodes=[
            place(
                "a",
                on=node,
                parameters=[{"input": "x", "parameter": "by"}],
                variables=[{"input": "k", "variable": "rate"}],
            )
        ],
        parameters=[
            workflow_pb2.WorkflowParameter(
                name="by", type_json='{"t":"int"}', description="how much", default_json="7"
            )
        ],
    )
    request = workflow_rpc.CreateWorkflowRequest(name="w", definition=definition)
    made = (await client.workflows.CreateWorkflow(request)).workflow
    text = await _export(client, made.id, format=YAML)
    assert "by: {type: {t: int}, description: how much, default: 7}" in text
    assert "variables: {k: rate}" in text
    assert "parameters: {x: by}" in text
    again = (await _import(client, text)).workflow
    assert text == await _export(client, again.id, format=YAML)
    assert list(made.definition.parameters) == list(again.definition.parameters)
    wrong = text.replace("{x: by}", "{x: nobody}")
    told = await refused(_import(client, wrong))
    line = 1 + text[: text.index("{x: by}")].count("\n")
    assert "UNKNOWN_PARAMETER" in str(told)
    assert f"line {line}" in str(told)


async def test_another_tenants_node_is_pinned_when_a_text_is_imported(
    client: Client, registry: Registry, sql: psycopg.Connection
) -> None:
    """As when a workflow is stored by any other way: its next version is not to run unasked."""
    theirs = await registry.client(factories.user(sql).token).node(INCREMENT)
    await change_rows(sql, "UPDATE python_nodes SET is_public = true WHERE id = %s", (theirs.id,))
    request = workflow_rpc.CreateWorkflowRequest(
        name="w",
        definition=workflow_pb2.WorkflowDefinition(
            nodes=[place("a", on=theirs)],
            connections=[edge(".n -> a.x")],
            inputs=[workflow_pb2.WorkflowInput(name="n")],
        ),
    )
    made = (await client.workflows.CreateWorkflow(request)).workflow
    text = await _export(client, made.id, format=YAML)
    assert "pinned" in text
    again = (await _import(client, text.replace("\n    pinned: true", ""))).workflow
    assert (theirs.id, 1) == (again.definition.nodes[0].node_id, again.definition.nodes[0].version)
    await change_rows(sql, "UPDATE python_nodes SET is_public = false WHERE id = %s", (theirs.id,))
    said = await refused(_export(client, made.id))
    assert (grpc.StatusCode.FAILED_PRECONDITION, "NODE_MISSING") == (said.code, said.reason)
    assert ["nodes[0]"] == [field for field, _ in said.violations]
