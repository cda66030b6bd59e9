from __future__ import annotations

import grpc
import psycopg
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from qflow.registry.v1 import node_impact_pb2, variable_service_pb2, workflow_pb2
from qflow.registry.v1 import node_service_pb2 as pb
from qflow.registry.v1 import workflow_service_pb2 as workflow_rpc
from qflow.registry.v1.variable_service_pb2_grpc import VariableServiceStub

from tests import factories
from tests.integration.registry.conftest import Client, Registry, change_rows, edge, place, refused

ERROR = workflow_pb2.FINDING_SEVERITY_ERROR
SOURCE = "def f(x: int) -> int: return x"
FLOATS = "def f(x: float) -> float: return x"
TEXT_INPUT = "def f(x: str) -> int: return 1"
TEXTS = "def f(x: int) -> str: return str(x)"
RENAMED = "def f(y: int) -> int: return y"


async def _workflow(
    client: Client, name: str, nodes: list[workflow_pb2.WorkflowNode], edges: list[str]
) -> workflow_pb2.Workflow:
    definition = workflow_pb2.WorkflowDefinition(
        nodes=nodes, connections=[edge(each) for each in edges]
    )
    request = workflow_rpc.CreateWorkflowRequest(name=name, definition=definition, activate=True)
    made: workflow_pb2.Workflow = (await client.workflows.CreateWorkflow(request)).workflow
    return made


async def _analyze(
    client: Client, node_id: str, code: str = "", **fields: object
) -> pb.AnalyzeNodeChangeResponse:
    request = pb.AnalyzeNodeChangeRequest(node_id=node_id, code=code, **fields)  # type: ignore[arg-type]
    answer: pb.AnalyzeNodeChangeResponse = await client.nodes.AnalyzeNodeChange(request)
    return answer


async def test_a_change_is_told_edge_by_edge_before_it_is_made(client: Client) -> None:
    changed, other = await client.node(SOURCE), await client.node(SOURCE)
    made = await _workflow(
        client,
        "w",
        [place("a", on=changed), place("b", on=other)],
        [".n -> a.x", "a.result -> b.x"],
    )
    same = await _analyze(client, changed.id, f"# a comment\n{SOURCE}")
    assert same.same_signature
    assert [each.impact for each in same.workflows] == [node_impact_pb2.IMPACT_NONE]

    converted = (await _analyze(client, changed.id, SOURCE.replace("x: int", "x: float"))).workflows
    assert [(each.workflow_id, each.impact, list(each.places)) for each in converted] == [
        (made.id, node_impact_pb2.IMPACT_CONVERTS, ["a"])
    ]
    change = converted[0].edges[0]
    assert (change.place, change.before.verdict) == ("connections[0]", workflow_pb2.VERDICT_EXACT)
    assert change.after.conversion == "int_to_float"
    assert not converted[0].findings

    broken = (await _analyze(client, changed.id, TEXTS)).workflows[0]
    assert broken.impact == node_impact_pb2.IMPACT_BREAKS
    assert broken.edges[0].after.verdict == workflow_pb2.VERDICT_REFUTED
    finding = broken.findings[0]
    assert (finding.place, finding.code) == ("connections[1]", "TYPE_REFUTED")
    assert finding.counter_example_json == '"text"'
    assert "str_to_int" in finding.conversions

    gone = (await _analyze(client, changed.id, RENAMED)).workflows[0]
    assert {each.code for each in gone.findings} == {"UNKNOWN_INPUT", "INPUT_MISSING"}
    assert gone.edges[0].after.verdict == workflow_pb2.VERDICT_UNSPECIFIED


async def test_the_analysis_says_what_then_comes_true(client: Client) -> None:
    """What breaks cannot be activated after the change; what converts can."""
    changed, other = await client.node(SOURCE), await client.node(SOURCE)
    made = await _workflow(
        client,
        "w",
        [place("a", on=changed), place("b", on=other)],
        [".n -> a.x", "a.result -> b.x"],
    )
    for code, impact in (
        (SOURCE.replace("x: int", "x: float"), node_impact_pb2.IMPACT_CONVERTS),
        (FLOATS, node_impact_pb2.IMPACT_BREAKS),
    ):
        told = (await _analyze(client, changed.id, code)).workflows[0]
        assert told.impact == impact
        # As it stands in the rows: nothing was changed by asking.
        assert (await client.nodes.GetNode(pb.GetNodeRequest(node_id=changed.id))).node.version == 1
    await client.nodes.UpdateNode(
        pb.UpdateNodeRequest(node_id=changed.id, code=FLOATS, update_mask=FieldMask(paths=["code"]))
    )
    request = workflow_rpc.CheckWorkflowRequest(definition=made.definition)
    found = (await client.workflows.CheckWorkflow(request)).findings
    assert [(each.place, each.code) for each in found if each.severity == ERROR] == [
        ("connections[1]", "TYPE_REFUTED")
    ]


async def test_pinned_places_are_looked_at_on_request(client: Client) -> None:
    changed = await client.node(SOURCE)
    await _workflow(client, "pinned", [place("a", on=changed, version=1)], [".n -> a.x"])
    assert not (await _analyze(client, changed.id, RENAMED)).workflows
    told = await _analyze(client, changed.id, RENAMED, include_pinned=True)
    assert [(each.name, each.impact) for each in told.workflows] == [
        ("pinned", node_impact_pb2.IMPACT_BREAKS)
    ]


async def test_pages_follow_each_other_and_belong_to_one_question(client: Client) -> None:
    changed = await client.node(SOURCE)
    for name in ("one", "two", "three"):
        await _workflow(client, name, [place("a", on=changed)], [".n -> a.x"])
    first = await _analyze(client, changed.id, RENAMED, page_size=2)
    assert [each.name for each in first.workflows] == ["three", "two"]
    rest = await _analyze(
        client, changed.id, RENAMED, page_size=2, page_token=first.next_page_token
    )
    assert [each.name for each in rest.workflows] == ["one"]
    assert not rest.next_page_token
    other = pb.AnalyzeNodeChangeRequest(
        node_id=changed.id, code=FLOATS, page_size=2, page_token=first.next_page_token
    )
    said = await refused(client.nodes.AnalyzeNodeChange(other))
    assert said.code == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(("code", "reason"), [("def f(:", "SYNTAX_ERROR")])
async def test_a_source_that_is_no_node_is_refused(client: Client, code: str, reason: str) -> None:
    """B31."""
    node = await client.node(SOURCE)
    said = await refused(
        client.nodes.AnalyzeNodeChange(pb.AnalyzeNodeChangeRequest(node_id=node.id, code=code))
    )
    assert (said.code, said.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)


async def test_nobody_is_told_of_anothers_workflows(
    registry: Registry, client: Client, sql: psycopg.Connection
) -> None:
    """X14: a node that everybody may run stands in workflows of many."""
    node = await client.node(SOURCE)
    await change_rows(sql, "UPDATE python_nodes SET is_public = true")
    other = registry.client(factories.user(sql).token)
    await _workflow(other, "theirs", [place("a", on=node)], [".n -> a.x"])
    assert not (await _analyze(client, node.id, RENAMED)).workflows
    told = await _analyze(other, node.id, RENAMED, include_pinned=True)  # another's is pinned
    assert [each.name for each in told.workflows] == ["theirs"]


async def test_a_large_graph_is_checked_in_a_process_of_its_own(client: Client) -> None:
    node = await client.node(SOURCE)
    places = [place(f"n{at}", on=node) for at in range(1_500)]
    edges = [".n -> n0.x", *(f"n{at}.result -> n{at + 1}.x" for at in range(1_499))]
    await _workflow(client, "large", places, edges)
    told = (await _analyze(client, node.id, RENAMED)).workflows[0]
    assert told.impact == node_impact_pb2.IMPACT_BREAKS
    assert (len(told.places), len(told.edges), len(told.findings)) == (100, 100, 100)


async def test_what_a_variable_feeds_is_looked_at_too(client: Client) -> None:
    node = await client.node(SOURCE)
    variable = variable_service_pb2.SetVariableRequest(
        name="n", type_json='{"t":"int"}', value_json="1"
    )
    await VariableServiceStub(client.channel).SetVariable(variable)
    await _workflow(
        client, "w", [place("a", on=node, variables=[{"input": "x", "variable": "n"}])], []
    )
    told = (await _analyze(client, node.id, TEXT_INPUT)).workflows[0]
    assert told.impact == node_impact_pb2.IMPACT_BREAKS
    assert {each.code for each in told.findings} == {"TYPE_REFUTED"}


async def test_what_starts_what_breaks_is_named(
    client: Client, sql: psycopg.Connection, user: factories.User
) -> None:
    """By the current version, its number or an alias that points at it; others start other code."""
    changed = await client.node(SOURCE)
    made = await _workflow(client, "w", [place("a", on=changed)], [".n -> a.x"])
    other = await _workflow(client, "other", [place("a", on=changed)], [".n -> a.x"])
    sql.execute(
        "INSERT INTO workflow_versions (workflow_id, version, name, nodes, connections,"
        " python_version, created_by)"
        " SELECT workflow_id, 2, name, nodes, connections, python_version, created_by"
        "   FROM workflow_versions"
        "  WHERE workflow_id = %s",
        (made.id,),
    )
    for alias, version in (("prod", 1), ("next", 2)):
        sql.execute(
            "WITH change AS (INSERT INTO workflow_alias_changes"
            "   (workflow_id, alias, kind, to_version, tenant_id, created_by)"
            "   VALUES (%s, %s, 'set', %s, %s, %s) RETURNING *)"
            " INSERT INTO workflow_aliases"
            " (workflow_id, name, version, promotion_id, change_id, tenant_id, created_by)"
            " SELECT workflow_id, alias, to_version, id, id, tenant_id, created_by FROM change",
            (made.id, alias, version, user.id, user.id),
        )
    for name, workflow, version, alias, paused in (
        ("newest", made, 0, "", False),
        ("first", made, 1, "", True),
        ("second", made, 2, "", False),
        ("by prod", made, 0, "prod", False),
        ("by next", made, 0, "next", False),
        ("by nothing", made, 0, "gone", False),
        ("another's", other, 0, "", False),
    ):
        sql.execute(
            "INSERT INTO schedules (workflow_id, name, workflow_version, workflow_alias, paused_at,"
            " timing, overlap, catch_up, catch_up_window_ms, tenant_id, created_by)"
            " VALUES (%s, %s, %s, %s, CASE WHEN %s THEN now() END, '{}', 'skip', 'none', 1, %s,"
            " %s)",
            (workflow.id, name, version, alias, paused, user.id, user.id),
        )
        sql.execute(
            "INSERT INTO triggers (workflow_id, name, workflow_version, workflow_alias, paused_at,"
            " secret_sha256, tenant_id, created_by)"
            " VALUES (%s, %s, %s, %s, CASE WHEN %s THEN now() END, %s, %s, %s)",
            (workflow.id, name, version, alias, paused, "0" * 64, user.id, user.id),
        )
    told = {
        each.workflow_id: each for each in (await _analyze(client, changed.id, RENAMED)).workflows
    }
    assert node_impact_pb2.IMPACT_BREAKS == told[made.id].impact
    for starters in (told[made.id].schedules, told[made.id].triggers):
        assert [("by prod", False), ("first", True), ("newest", False)] == [
            (each.name, each.paused) for each in starters
        ]
    assert ["prod"] == list(told[made.id].aliases)
    for starters in (told[other.id].schedules, told[other.id].triggers):
        assert ["another's"] == [each.name for each in starters]
    assert not told[other.id].aliases
