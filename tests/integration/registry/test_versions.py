"""Versions of nodes and workflows: listed, returned to, copied, and never half made."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from qflow.registry.v1 import node_pb2, workflow_pb2
from qflow.registry.v1 import node_service_pb2 as node_rpc
from qflow.registry.v1 import workflow_service_pb2 as pb

from tests import factories
from tests.integration.registry.conftest import (
    Client,
    Registry,
    Resolver,
    change_rows,
    edge,
    place,
    refused,
)
from tests.support.database import Database

ABORTED = grpc.StatusCode.ABORTED
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
INCREMENT = "def increment(x: int) -> int: return x + 1"
SHOUT = "def shout(x: str) -> str: return x.upper()"
NEEDY = '# /// script\n# dependencies = ["numpy>=2"]\n# ///\n' + INCREMENT


async def set_code(client: Client, node_id: str, code: str, **fields: Any) -> node_pb2.Node:
    request = node_rpc.UpdateNodeRequest(
        node_id=node_id, code=code, update_mask=FieldMask(paths=["code", "main_function"]), **fields
    )
    changed: node_pb2.Node = (await client.nodes.UpdateNode(request)).node
    return changed


def single(
    node: node_pb2.Node, *, timeout_s: int = 0, **fields: Any
) -> workflow_pb2.WorkflowDefinition:
    """One place whose input is the workflow's."""
    definition = workflow_pb2.WorkflowDefinition(
        nodes=[place("a", on=node, **fields)], connections=[edge(".n -> a.x")]
    )
    if timeout_s:
        definition.settings.timeout.FromSeconds(timeout_s)
    return definition


async def create(
    client: Client, definition: workflow_pb2.WorkflowDefinition, **fields: Any
) -> workflow_pb2.Workflow:
    request = pb.CreateWorkflowRequest(name="w", definition=definition, **fields)
    made: workflow_pb2.Workflow = (await client.workflows.CreateWorkflow(request)).workflow
    return made


async def redefine(
    client: Client, workflow_id: str, definition: workflow_pb2.WorkflowDefinition
) -> workflow_pb2.Workflow:
    request = pb.UpdateWorkflowRequest(
        workflow_id=workflow_id,
        definition=definition,
        update_mask=FieldMask(paths=["definition"]),
    )
    changed: workflow_pb2.Workflow = (await client.workflows.UpdateWorkflow(request)).workflow
    return changed


async def codes(calls: list[Awaitable[Any]]) -> list[grpc.StatusCode]:
    """How calls that are made at once end."""
    ended = await asyncio.gather(*calls, return_exceptions=True)
    return [
        each.code() if isinstance(each, grpc.aio.AioRpcError) else grpc.StatusCode.OK
        for each in ended
    ]


# Listing


async def test_versions_of_a_node_come_newest_first_page_by_page(
    client: Client, user: factories.User
) -> None:
    made = await client.node(INCREMENT)
    for number in (2, 3):
        await set_code(client, made.id, f"{INCREMENT}\nNUMBER = {number}\n")
    request = node_rpc.ListNodeVersionsRequest(node_id=made.id, page_size=2)
    first = await client.nodes.ListNodeVersions(request)
    assert [3, 2] == [each.node.version for each in first.versions]
    assert {str(user.id)} == {each.author for each in first.versions}
    assert not first.versions[0].node.code
    request.page_token = first.next_page_token
    rest = await client.nodes.ListNodeVersions(request)
    assert ([1], "") == ([each.node.version for each in rest.versions], rest.next_page_token)
    assert made.create_time == rest.versions[0].node.create_time
    times = [each.create_time.ToNanoseconds() for each in (*first.versions, *rest.versions)]
    assert sorted(times, reverse=True) == times
    whole = node_rpc.ListNodeVersionsRequest(node_id=made.id, view=node_pb2.NODE_VIEW_FULL)
    listed = (await client.nodes.ListNodeVersions(whole)).versions
    assert INCREMENT == listed[-1].node.code


async def test_a_page_token_is_of_one_node_alone(client: Client) -> None:
    first, second = await client.node(INCREMENT), await client.node(SHOUT)
    await set_code(client, first.id, SHOUT)
    request = node_rpc.ListNodeVersionsRequest(node_id=first.id, page_size=1)
    token = (await client.nodes.ListNodeVersions(request)).next_page_token
    other = node_rpc.ListNodeVersionsRequest(node_id=second.id, page_size=1, page_token=token)
    said = await refused(client.nodes.ListNodeVersions(other))
    assert grpc.StatusCode.INVALID_ARGUMENT == said.code


async def test_versions_of_a_workflow_come_newest_first(
    client: Client, user: factories.User
) -> None:
    node = await client.node(INCREMENT)
    made = await create(client, single(node))
    await redefine(client, made.id, single(node, timeout_s=60))
    request = pb.ListWorkflowVersionsRequest(workflow_id=made.id, page_size=1)
    first = await client.workflows.ListWorkflowVersions(request)
    assert [2] == [each.workflow.version for each in first.versions]
    assert 60 == first.versions[0].workflow.definition.settings.timeout.seconds
    assert not first.versions[0].workflow.definition.nodes
    request.page_token = first.next_page_token
    rest = await client.workflows.ListWorkflowVersions(request)
    assert ([1], "") == ([each.workflow.version for each in rest.versions], rest.next_page_token)
    assert str(user.id) == rest.versions[0].author


# Returning to an older version


async def test_a_rollback_of_a_node_is_a_new_version_with_the_old_content(
    client: Client, resolver: Resolver, sql: psycopg.Connection
) -> None:
    """I17. Nothing is resolved again: the same requirements have their lock."""
    first = await client.node(NEEDY)
    second = await set_code(client, first.id, SHOUT)
    request = node_rpc.RollbackNodeRequest(
        node_id=first.id, version=1, etag=second.etag, request_id=str(uuid.uuid4())
    )
    back = (await client.nodes.RollbackNode(request)).node
    assert (3, NEEDY, "increment") == (back.version, back.code, back.main_function)
    assert (first.inputs, first.outputs) == (back.inputs, back.outputs)
    assert first.requirements == back.requirements
    assert node_pb2.LOCK_STATE_LOCKED == back.lock_state
    assert 1 == len(resolver.asked)
    [(locks,)] = sql.execute("SELECT count(DISTINCT lock) FROM node_version_locks").fetchall()
    assert 1 == locks
    read = (await client.nodes.GetNode(node_rpc.GetNodeRequest(node_id=first.id))).node
    assert back == read
    assert back == (await client.nodes.RollbackNode(request)).node  # I12
    request.request_id = ""
    said = await refused(client.nodes.RollbackNode(request))
    assert (ABORTED, "ETAG_MISMATCH", back.etag) == (said.code, said.reason, said.facts["etag"])


async def test_a_lock_that_failed_is_asked_for_again(
    client: Client, resolver: Resolver, sql: psycopg.Connection
) -> None:
    first = await client.node(NEEDY)
    await change_rows(
        sql, "UPDATE node_version_locks SET state = 'failed', error = 'no such distribution'"
    )
    await set_code(client, first.id, SHOUT)
    request = node_rpc.RollbackNodeRequest(node_id=first.id, version=1)
    back = (await client.nodes.RollbackNode(request)).node
    assert (node_pb2.LOCK_STATE_LOCKED, "") == (back.lock_state, back.lock_error)
    assert 2 == len(resolver.asked)


async def test_a_rollback_keeps_the_name_and_to_the_current_version_changes_nothing(
    client: Client,
) -> None:
    made = await client.node(INCREMENT)
    await set_code(client, made.id, SHOUT)
    rename = node_rpc.UpdateNodeRequest(
        node_id=made.id, name="renamed", update_mask=FieldMask(paths=["name"])
    )
    renamed = (await client.nodes.UpdateNode(rename)).node
    request = node_rpc.RollbackNodeRequest(node_id=made.id, version=2)
    assert renamed.etag == (await client.nodes.RollbackNode(request)).node.etag
    request.version = 1
    back = (await client.nodes.RollbackNode(request)).node
    assert ("renamed", 3) == (back.name, back.version)
    request.version = 9
    said = await refused(client.nodes.RollbackNode(request))
    assert grpc.StatusCode.NOT_FOUND == said.code


async def test_a_rollback_that_is_only_checked_stores_nothing(client: Client) -> None:
    node = await client.node(INCREMENT)
    changed = await set_code(client, node.id, f"{INCREMENT}\nNEW = 1\n")
    ask = node_rpc.RollbackNodeRequest(node_id=node.id, version=1, validate_only=True)
    shown = (await client.nodes.RollbackNode(ask)).node
    assert (3, INCREMENT) == (shown.version, shown.code)
    read = (await client.nodes.GetNode(node_rpc.GetNodeRequest(node_id=node.id))).node
    assert changed.etag == read.etag

    made = await create(client, single(node))
    second = await redefine(client, made.id, single(node, timeout_s=60))
    again = pb.RollbackWorkflowRequest(workflow_id=made.id, version=1, validate_only=True)
    shown_too = (await client.workflows.RollbackWorkflow(again)).workflow
    assert 3 == shown_too.version
    stored = await client.workflows.GetWorkflow(pb.GetWorkflowRequest(workflow_id=made.id))
    assert second.etag == stored.workflow.etag


async def test_a_workflow_is_rolled_back(client: Client) -> None:
    """I17."""
    node = await client.node(INCREMENT)
    first = await create(client, single(node), activate=True)
    second = await redefine(client, first.id, single(node, timeout_s=60))
    request = pb.RollbackWorkflowRequest(
        workflow_id=first.id, version=1, etag=second.etag, request_id=str(uuid.uuid4())
    )
    back = (await client.workflows.RollbackWorkflow(request)).workflow
    assert (3, True) == (back.version, back.active)
    assert first.definition == back.definition
    assert back == (await client.workflows.RollbackWorkflow(request)).workflow
    request.request_id = ""
    assert ABORTED == (await refused(client.workflows.RollbackWorkflow(request))).code


async def test_a_workflow_is_checked_against_its_nodes_as_they_are_now(client: Client) -> None:
    """A floating place whose node has other types by now, and a node that is deleted."""
    node, other = await client.node(INCREMENT), await client.node(INCREMENT)
    definition = single(node)
    definition.inputs.add(name="n", type_json='{"t":"int"}')
    made = await create(client, definition)
    await redefine(client, made.id, single(other))
    await set_code(client, node.id, "def total(x: list[int]) -> int: return sum(x)")
    request = pb.RollbackWorkflowRequest(workflow_id=made.id, version=1)
    said = await refused(client.workflows.RollbackWorkflow(request))
    assert (PRECONDITION, "DEFINITION_OUTDATED") == (said.code, said.reason)
    assert [("connections[0]", "TYPE_REFUTED")] == said.violations

    await client.nodes.DeleteNode(node_rpc.DeleteNodeRequest(node_id=node.id))
    said = await refused(client.workflows.RollbackWorkflow(request))
    assert (PRECONDITION, "DEFINITION_OUTDATED") == (said.code, said.reason)
    assert ("nodes[0].node_id", "NODE_NOT_FOUND") in said.violations
    assert node.id in said.text


@pytest.mark.parametrize("kind", ["node", "workflow"])
async def test_of_changes_with_the_same_etag_one_is_made(
    client: Client, sql: psycopg.Connection, kind: str
) -> None:
    """I17: two updates and two rollbacks at once."""
    node = await client.node(INCREMENT)
    if kind == "node":
        current = await set_code(client, node.id, SHOUT)
        thing_id = node.id

        def change(etag: str, number: int) -> Awaitable[Any]:
            if number % 2:
                request = node_rpc.RollbackNodeRequest(node_id=thing_id, version=1, etag=etag)
                return client.nodes.RollbackNode(request)  # type: ignore[no-any-return]
            return set_code(client, thing_id, f"{INCREMENT}\nN = {number}\n", etag=etag)

        etag = current.etag
    else:
        made = await create(client, single(node))
        thing_id = made.id
        etag = (await redefine(client, thing_id, single(node, timeout_s=60))).etag

        def change(etag: str, number: int) -> Awaitable[Any]:
            if number % 2:
                request = pb.RollbackWorkflowRequest(workflow_id=thing_id, version=1, etag=etag)
                return client.workflows.RollbackWorkflow(request)  # type: ignore[no-any-return]
            update = pb.UpdateWorkflowRequest(
                workflow_id=thing_id,
                etag=etag,
                definition=single(node, timeout_s=number + 1),
                update_mask=FieldMask(paths=["definition"]),
            )
            return client.workflows.UpdateWorkflow(update)  # type: ignore[no-any-return]

    ended = await codes([change(etag, number) for number in range(4)])
    assert [grpc.StatusCode.OK] + [ABORTED] * 3 == sorted(ended, key=lambda each: each.value[0])
    assert_contiguous(sql)


def assert_contiguous(sql: psycopg.Connection) -> None:
    """I17: versions are 1 to n, and the current one is the last."""
    for table, versions, key in (
        ("python_nodes", "python_node_versions", "node_id"),
        ("workflows", "workflow_versions", "workflow_id"),
    ):
        query = f"""
            SELECT t.version, array_agg(v.version ORDER BY v.version)
              FROM {table} t JOIN {versions} v ON v.{key} = t.id GROUP BY t.id
        """
        for current, stored in sql.execute(query.encode()):
            assert list(range(1, current + 1)) == stored, table


# Copying


async def test_a_node_is_cloned_with_its_lock(
    registry: Registry, client: Client, resolver: Resolver, sql: psycopg.Connection
) -> None:
    first = await client.node(NEEDY)
    await set_code(client, first.id, SHOUT)
    share = node_rpc.UpdateNodeRequest(
        node_id=first.id, is_public=True, update_mask=FieldMask(paths=["is_public"])
    )
    await client.nodes.UpdateNode(share)
    other_user = factories.user(sql)
    other = registry.client(other_user.token)
    request = node_rpc.CloneNodeRequest(
        node_id=first.id, version=1, name="mine", request_id=str(uuid.uuid4())
    )
    copy = (await other.nodes.CloneNode(request)).node
    assert (1, "mine", NEEDY) == (copy.version, copy.name, copy.code)
    assert node_pb2.NodeOrigin(node_id=first.id, version=1) == copy.cloned_from
    assert (str(other_user.id), False) == (copy.created_by, copy.is_public)
    assert (node_pb2.LOCK_STATE_LOCKED, 1) == (copy.lock_state, len(resolver.asked))
    assert copy == (await other.nodes.CloneNode(request)).node
    assert copy == (await other.nodes.GetNode(node_rpc.GetNodeRequest(node_id=copy.id))).node
    said = await refused(client.nodes.GetNode(node_rpc.GetNodeRequest(node_id=copy.id)))
    assert grpc.StatusCode.NOT_FOUND == said.code
    changed = await set_code(other, copy.id, SHOUT)
    assert 2 == changed.version
    read = node_rpc.GetNodeRequest(node_id=first.id, version=1)
    assert NEEDY == (await client.nodes.GetNode(read)).node.code


async def test_a_clone_that_is_only_checked_stores_nothing(client: Client) -> None:
    node = await client.node(INCREMENT)
    made = await create(client, single(node))
    ask = node_rpc.CloneNodeRequest(node_id=node.id, validate_only=True)
    assert not (await client.nodes.CloneNode(ask)).node.id
    ask_too = pb.CloneWorkflowRequest(workflow_id=made.id, validate_only=True)
    assert not (await client.workflows.CloneWorkflow(ask_too)).workflow.id
    assert 1 == len((await client.nodes.ListNodes(node_rpc.ListNodesRequest())).nodes)
    listed = await client.workflows.ListWorkflows(pb.ListWorkflowsRequest())
    assert 1 == len(listed.workflows)


async def test_a_workflow_is_cloned_at_a_version_into_a_draft(
    client: Client, sql: psycopg.Connection
) -> None:
    node = await client.node(INCREMENT)
    made = await create(client, single(node), activate=True)
    await redefine(client, made.id, single(node, timeout_s=60))
    sql.execute(
        "WITH tag AS (INSERT INTO workflow_tags (name, tenant_id, created_by)"
        " SELECT 'mine', tenant_id, created_by FROM workflows WHERE id = %(id)s RETURNING id)"
        " INSERT INTO workflow_tag_relations SELECT %(id)s, id FROM tag",
        {"id": made.id},
    )
    request = pb.CloneWorkflowRequest(workflow_id=made.id, version=1)
    copy = (await client.workflows.CloneWorkflow(request)).workflow
    assert not copy.tags
    assert (1, "w", False) == (copy.version, copy.name, copy.active)
    assert made.definition == copy.definition
    assert workflow_pb2.WorkflowOrigin(workflow_id=made.id, version=1) == copy.cloned_from
    read = await client.workflows.GetWorkflow(pb.GetWorkflowRequest(workflow_id=copy.id))
    assert copy.cloned_from == read.workflow.cloned_from


async def test_what_is_not_there_is_not_cloned(
    registry: Registry, client: Client, sql: psycopg.Connection
) -> None:
    node = await client.node(INCREMENT)
    other = registry.client(factories.user(sql).token)
    for caller, version in ((other, 0), (client, 7)):
        request = node_rpc.CloneNodeRequest(node_id=node.id, version=version)
        assert grpc.StatusCode.NOT_FOUND == (await refused(caller.nodes.CloneNode(request))).code


# Published whole, or not at all


def _refuse_versions(sql: psycopg.Connection) -> None:
    sql.execute(
        "CREATE FUNCTION fail_here() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE 'between the two inserts' USING ERRCODE = 'disk_full'; END $$"
    )
    for table in ("python_node_versions", "workflow_versions"):
        sql.execute(
            f"CREATE TRIGGER fail BEFORE INSERT ON {table}"
            " FOR EACH ROW EXECUTE FUNCTION fail_here()".encode()
        )


async def test_a_version_whose_second_half_fails_is_not_there(
    client: Client, sql: psycopg.Connection
) -> None:
    """CP24."""
    node = await client.node(INCREMENT)
    made = await create(client, single(node))
    _refuse_versions(sql)
    calls: list[Awaitable[Any]] = [
        client.node(INCREMENT),
        set_code(client, node.id, SHOUT),
        client.nodes.CloneNode(node_rpc.CloneNodeRequest(node_id=node.id)),
        create(client, single(node)),
        redefine(client, made.id, single(node, timeout_s=60)),
        client.workflows.CloneWorkflow(pb.CloneWorkflowRequest(workflow_id=made.id)),
    ]
    assert {grpc.StatusCode.RESOURCE_EXHAUSTED} == set(await codes(calls))
    for table in ("python_nodes", "python_node_versions", "workflows", "workflow_versions"):
        assert [(1,)] == sql.execute(f"SELECT count(*) FROM {table}".encode()).fetchall()
    assert_contiguous(sql)
    read = (await client.nodes.GetNode(node_rpc.GetNodeRequest(node_id=node.id))).node
    assert node == read


async def _pid_waiting_for(db: psycopg.Connection, table: str) -> int:
    ends_at = time.monotonic() + 30
    while time.monotonic() < ends_at:
        row = db.execute(
            "SELECT pid FROM pg_locks WHERE NOT granted AND relation = %s::regclass"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            (table,),
        ).fetchone()
        if row is not None:
            return int(row[0])
        await asyncio.sleep(0.01)
    raise AssertionError(f"nobody waits for {table}")


@pytest.mark.parametrize("kind", ["node", "workflow"])
async def test_a_version_whose_connection_dies_between_the_two_inserts_is_not_there(
    client: Client, sql: psycopg.Connection, database: Database, kind: str
) -> None:
    """CP24."""
    node = await client.node(INCREMENT)
    made = await create(client, single(node))
    table = "python_node_versions" if kind == "node" else "workflow_versions"
    change: Callable[[], Awaitable[Any]] = (
        (lambda: set_code(client, node.id, SHOUT))
        if kind == "node"
        else (lambda: redefine(client, made.id, single(node, timeout_s=60)))
    )
    with database.connect() as holder:
        with holder.transaction():
            await change_rows(holder, f"LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE".encode())
            publishing = asyncio.ensure_future(change())
            pid = await _pid_waiting_for(sql, table)
            sql.execute("SELECT pg_terminate_backend(%s)", (pid,))
            assert grpc.StatusCode.UNAVAILABLE == (await refused(publishing)).code
    assert_contiguous(sql)
    assert [(1,)] == sql.execute(f"SELECT count(*) FROM {table}".encode()).fetchall()
    await change()
    assert [(2,)] == sql.execute(f"SELECT count(*) FROM {table}".encode()).fetchall()
    assert_contiguous(sql)


async def test_the_same_call_made_twice_at_once_is_answered_alike(client: Client) -> None:
    """I12: whichever comes second finds its own change in its way, and the answer of the first."""
    node = await client.node(INCREMENT)
    request = node_rpc.UpdateNodeRequest(
        node_id=node.id,
        code=f"{INCREMENT}# more\n",
        update_mask=FieldMask(paths=["code"]),
        etag=node.etag,
        request_id=str(uuid.uuid4()),
    )
    answers = await asyncio.gather(*(client.nodes.UpdateNode(request) for _ in range(6)))
    assert {2} == {each.node.version for each in answers}
    assert 1 == len({each.node.etag for each in answers})


async def test_a_version_that_is_missing_is_told_from_what_is_missing_itself(
    registry: Registry, client: Client, sql: psycopg.Connection
) -> None:
    """To a stranger nothing of either is told."""
    node = await client.node(INCREMENT)
    workflow = await create(client, single(node))
    other = registry.client(factories.user(sql).token)
    for asks, reason in ((client, "VERSION_NOT_FOUND"), (other, "_NOT_FOUND")):
        of_node = node_rpc.GetNodeRequest(node_id=node.id, version=2)
        of_workflow = pb.GetWorkflowRequest(workflow_id=workflow.id, version=2)
        for call in (asks.nodes.GetNode(of_node), asks.workflows.GetWorkflow(of_workflow)):
            said = await refused(call)
            assert said.code is grpc.StatusCode.NOT_FOUND
            assert said.reason.endswith(reason)
            assert (asks is client) == ("has versions 1 to 1, not 2" in said.text)
