"""Aliases of workflows: promote, roll back, history, and what races."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from qflow.registry.v1 import node_service_pb2 as node_rpc
from qflow.registry.v1 import workflow_alias_service_pb2 as pb
from qflow.registry.v1 import workflow_pb2
from qflow.registry.v1 import workflow_service_pb2 as workflow_rpc
from qflow.registry.v1.workflow_alias_service_pb2_grpc import WorkflowAliasServiceStub

from tests import factories
from tests.integration.registry.conftest import Client, Registry, change_rows, edge, place, refused

SET, BACK, DELETE = (
    pb.WORKFLOW_ALIAS_CHANGE_KIND_SET,
    pb.WORKFLOW_ALIAS_CHANGE_KIND_ROLL_BACK,
    pb.WORKFLOW_ALIAS_CHANGE_KIND_DELETE,
)


@dataclass
class Aliases:
    """A workflow with versions 1 to 3, and a way to its aliases."""

    client: Client
    workflow_id: str

    @property
    def stub(self) -> Any:
        return WorkflowAliasServiceStub(self.client.channel)

    async def set(self, version: int, **fields: object) -> pb.WorkflowAlias:
        request = pb.SetWorkflowAliasRequest(
            workflow_id=self.workflow_id,
            version=version,
            **{"alias": "prod", **fields},  # type: ignore[arg-type]
        )
        answer: pb.SetWorkflowAliasResponse = await self.stub.SetWorkflowAlias(request)
        return answer.workflow_alias

    async def roll_back(self, **fields: object) -> pb.WorkflowAlias:
        request = pb.RollbackWorkflowAliasRequest(
            workflow_id=self.workflow_id,
            alias="prod",
            **fields,  # type: ignore[arg-type]
        )
        answer: pb.RollbackWorkflowAliasResponse = await self.stub.RollbackWorkflowAlias(request)
        return answer.workflow_alias

    async def delete(self, **fields: object) -> None:
        await self.stub.DeleteWorkflowAlias(
            pb.DeleteWorkflowAliasRequest(
                workflow_id=self.workflow_id,
                alias="prod",
                **fields,  # type: ignore[arg-type]
            )
        )

    async def get(self) -> pb.WorkflowAlias:
        request = pb.GetWorkflowAliasRequest(workflow_id=self.workflow_id, alias="prod")
        answer: pb.GetWorkflowAliasResponse = await self.stub.GetWorkflowAlias(request)
        return answer.workflow_alias

    async def history(self) -> list[tuple[int, int, int]]:
        request = pb.ListWorkflowAliasChangesRequest(workflow_id=self.workflow_id)
        answer = await self.stub.ListWorkflowAliasChanges(request)
        return [(each.kind, each.from_version, each.to_version) for each in answer.changes]


@pytest.fixture
async def aliases(client: Client) -> Aliases:
    node = await client.node("def increment(x: int) -> int: return x + 1")
    definition = workflow_pb2.WorkflowDefinition(
        nodes=[place("a", on=node)], connections=[edge(".n -> a.x")]
    )
    made = await client.workflows.CreateWorkflow(
        workflow_rpc.CreateWorkflowRequest(name="w", definition=definition, activate=True)
    )
    for seconds in (60, 61):
        definition.settings.timeout.FromSeconds(seconds)
        await client.workflows.UpdateWorkflow(
            workflow_rpc.UpdateWorkflowRequest(
                workflow_id=made.workflow.id,
                definition=definition,
                update_mask=FieldMask(paths=["definition"]),
            )
        )
    return Aliases(client, made.workflow.id)


async def test_an_alias_is_made_promoted_and_rolled_back_step_by_step(
    aliases: Aliases, user: factories.User
) -> None:
    first = await aliases.set(1, expected_version=0)
    assert (first.alias, first.version, first.created_by) == ("prod", 1, str(user.id))
    second = await aliases.set(2, etag=first.etag)
    third = await aliases.set(3, expected_version=2)
    assert len({first.etag, second.etag, third.etag}) == 3
    assert await aliases.get() == third
    assert (await aliases.roll_back(etag=third.etag)).version == 2
    back = await aliases.roll_back()
    assert (back.version, back.updated_by) == (1, str(user.id))
    said = await refused(aliases.roll_back())
    assert (said.code, said.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "ALIAS_NOTHING_BEFORE",
    )
    assert await aliases.history() == [
        (BACK, 2, 1),
        (BACK, 3, 2),
        (SET, 2, 3),
        (SET, 1, 2),
        (SET, 0, 1),
    ]


async def test_rolling_back_after_a_rollback_never_returns_to_what_was_rolled_back_from(
    aliases: Aliases,
) -> None:
    await aliases.set(1)
    await aliases.set(2)
    assert (await aliases.roll_back()).version == 1
    await aliases.set(3)
    assert (await aliases.roll_back()).version == 1


async def test_a_removed_alias_is_gone_and_its_history_stays(aliases: Aliases) -> None:
    await aliases.set(1)
    await aliases.set(2)
    await aliases.delete()
    for call in (aliases.get(), aliases.roll_back(), aliases.delete()):
        said = await refused(call)
        assert (said.code, said.reason) == (grpc.StatusCode.NOT_FOUND, "ALIAS_NOT_FOUND")
        assert said.violations == [("alias", "ALIAS_NOT_FOUND")]
    await aliases.set(3)
    assert (await refused(aliases.roll_back())).reason == "ALIAS_NOTHING_BEFORE"
    assert await aliases.history() == [(SET, 0, 3), (DELETE, 2, 0), (SET, 1, 2), (SET, 0, 1)]


async def test_what_changes_nothing_leaves_no_trace(aliases: Aliases) -> None:
    first = await aliases.set(1)
    assert await aliases.set(1) == first
    checked = await aliases.set(2, validate_only=True)
    assert checked.version == 2
    assert (await aliases.get()).version == 1
    assert len(await aliases.history()) == 1


async def test_of_two_promotions_with_the_same_expectation_one_is_aborted(
    aliases: Aliases,
) -> None:
    """One of two wins; the other is told."""
    first = await aliases.set(1)
    outcomes = await asyncio.gather(
        aliases.set(2, etag=first.etag),
        aliases.set(3, expected_version=1),
        return_exceptions=True,
    )
    lost = [each for each in outcomes if isinstance(each, grpc.aio.AioRpcError)]
    assert [each.code() for each in lost] == [grpc.StatusCode.ABORTED]
    assert len(await aliases.history()) == 2
    assert (await refused(aliases.set(2, expected_version=0))).reason == "ALIAS_MOVED"
    assert (await refused(aliases.set(2, etag=first.etag))).reason == "ETAG_MISMATCH"


async def test_of_two_that_make_the_same_alias_one_is_aborted(aliases: Aliases) -> None:
    outcomes = await asyncio.gather(
        *(aliases.set(version, expected_version=0) for version in (1, 2, 3)),
        return_exceptions=True,
    )
    lost = [each for each in outcomes if isinstance(each, grpc.aio.AioRpcError)]
    assert [each.code() for each in lost] == [grpc.StatusCode.ABORTED] * 2
    assert len(await aliases.history()) == 1


async def test_a_repeated_call_answers_as_the_first_did(aliases: Aliases) -> None:
    """F26: also where another call moved the alias in between."""
    await aliases.set(1)
    request_id = str(uuid.uuid4())
    second = await aliases.set(2, request_id=request_id)
    await aliases.set(3)
    assert await aliases.set(2, request_id=request_id) == second
    assert (await refused(aliases.set(1, request_id=request_id))).reason == "REQUEST_ID_REUSED"
    back = str(uuid.uuid4())
    assert (await aliases.roll_back(request_id=back)).version == 2
    assert (await aliases.roll_back(request_id=back)).version == 2
    assert (await aliases.get()).version == 2


async def test_a_version_that_cannot_run_gets_no_alias(
    aliases: Aliases, sql: psycopg.Connection
) -> None:
    sql.execute(
        "INSERT INTO workflow_versions (workflow_id, version, name, nodes, connections, settings,"
        " input_types, output_types, python_version, created_by)"
        " SELECT workflow_id, 4, name, nodes, '[]', settings, '[]', output_types, python_version,"
        " created_by FROM workflow_versions WHERE workflow_id = %s AND version = 3",
        (aliases.workflow_id,),
    )
    said = await refused(aliases.set(4))
    assert (said.code, said.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "WORKFLOW_INCOMPLETE",
    )
    assert said.violations == [("nodes[0]", "INPUT_MISSING")]
    said = await refused(aliases.set(5))
    assert (said.code, said.reason) == (grpc.StatusCode.NOT_FOUND, "VERSION_NOT_FOUND")
    assert said.violations == [("version", "VERSION_NOT_FOUND")]


@pytest.mark.parametrize("name", ["", "Prod", "1prod", "a" * 64, "a b", "a\n"])
async def test_a_name_that_is_none_is_refused(name: str, aliases: Aliases) -> None:
    request = pb.SetWorkflowAliasRequest(workflow_id=aliases.workflow_id, alias=name, version=1)
    said = await refused(aliases.stub.SetWorkflowAlias(request))
    assert said.code == grpc.StatusCode.INVALID_ARGUMENT
    assert said.violations[0][0] == "alias"


async def test_a_workflow_has_at_most_a_hundred_aliases_on_pages(
    aliases: Aliases,
) -> None:
    for number in range(100):
        await aliases.stub.SetWorkflowAlias(
            pb.SetWorkflowAliasRequest(
                workflow_id=aliases.workflow_id, alias=f"a{number}", version=1
            )
        )
    said = await refused(aliases.set(1))
    assert (said.code, said.reason) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "ALIASES_TOO_MANY",
    )
    request = pb.ListWorkflowAliasesRequest(workflow_id=aliases.workflow_id, page_size=60)
    page = await aliases.stub.ListWorkflowAliases(request)
    request.page_token = page.next_page_token
    rest = await aliases.stub.ListWorkflowAliases(request)
    names = [each.alias for each in [*page.workflow_aliases, *rest.workflow_aliases]]
    assert names == [f"a{number}" for number in reversed(range(100))]
    assert not rest.next_page_token


async def test_whoever_may_only_read_a_workflow_sees_its_aliases_and_moves_none(
    aliases: Aliases, registry: Registry, sql: psycopg.Connection
) -> None:
    """X14."""
    await aliases.set(1)
    stranger = Aliases(registry.client(factories.user(sql).token), aliases.workflow_id)
    assert (await refused(stranger.get())).reason == "WORKFLOW_NOT_FOUND"
    await change_rows(
        sql, "UPDATE workflows SET is_template = true WHERE id = %s", (aliases.workflow_id,)
    )
    seen = await stranger.get()
    assert (seen.version, seen.updated_by) == (1, "")
    assert await stranger.history() == []
    for call in (stranger.set(2), stranger.roll_back(), stranger.delete()):
        said = await refused(call)
        assert (said.code, said.reason) == (grpc.StatusCode.PERMISSION_DENIED, "NOT_YOURS")


async def test_a_version_that_would_need_another_conversion_gets_no_alias(client: Client) -> None:
    """A version is immutable: it cannot take the conversion that its nodes ask for now."""
    source = await client.node("def first(x: float) -> float: return x")
    sink = await client.node("def second(x: float) -> float: return x")
    definition = workflow_pb2.WorkflowDefinition(
        nodes=[place("a", on=source), place("b", on=sink)],
        connections=[edge(".n -> a.x"), edge("a.result -> b.x")],
        inputs=[workflow_pb2.WorkflowInput(name="n")],
    )
    request = workflow_rpc.CreateWorkflowRequest(name="w", definition=definition, activate=True)
    made = (await client.workflows.CreateWorkflow(request)).workflow
    aliases = Aliases(client, made.id)
    assert 1 == (await aliases.set(1)).version
    await client.nodes.UpdateNode(
        node_rpc.UpdateNodeRequest(
            node_id=source.id,
            code="def first(x: float) -> int: return 1",
            update_mask=FieldMask(paths=["code"]),
        )
    )
    said = await refused(aliases.set(1, alias="other"))
    assert (grpc.StatusCode.FAILED_PRECONDITION, "VERSION_OUTDATED") == (said.code, said.reason)
    assert [("connections[1]", "VERSION_OUTDATED")] == said.violations
