"""Teams: several users share one tenant, each with a role, and whoever leaves is out."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from typing import Any

import grpc
import psycopg
import pytest
from qflow.auth.v1 import auth_pb2
from qflow.registry.v1 import node_service_pb2 as nodes
from qflow.registry.v1 import service_token_service_pb2 as tokens
from qflow.registry.v1 import session_service_pb2 as sessions
from qflow.registry.v1 import team_service_pb2 as pb
from qflow.registry.v1 import workflow_pb2
from qflow.registry.v1 import workflow_service_pb2 as workflows
from qflow.registry.v1.service_token_service_pb2_grpc import ServiceTokenServiceStub
from qflow.registry.v1.team_service_pb2_grpc import TeamServiceStub

from services.kit.errors import PermissionDenied
from services.kit.ids import token_sha256
from services.kit.pg import open_pool
from services.kit.rpc.identity import Authenticator, Credential
from tests import factories
from tests.integration.registry.conftest import Client, Registry, place, refused
from tests.support.database import Database

USER, ADMIN, VIEWER = auth_pb2.ROLE_USER, auth_pb2.ROLE_ADMIN, auth_pb2.ROLE_VIEWER
CODE = "def one() -> int:\n    return 1\n"
PERMISSION_DENIED = grpc.StatusCode.PERMISSION_DENIED


@dataclass
class Person:
    """A user and their way to the registry."""

    user: factories.User
    client: Client
    teams: Any
    tokens: Any

    @property
    def email(self) -> str:
        return f"{self.user.id}@example.org"


@pytest.fixture
def person(registry: Registry, sql: psycopg.Connection) -> Any:
    def make(role: str = "user") -> Person:
        user = factories.user(sql, role=role)
        client = registry.client(user.token)
        channel = client.channel
        return Person(user, client, TeamServiceStub(channel), ServiceTokenServiceStub(channel))

    return make


async def joined(leader: Person, team_id: str, other: Person, role: Any = USER) -> None:
    invited = await leader.teams.InviteTeamMember(
        pb.InviteTeamMemberRequest(team_id=team_id, email=other.email, role=role)
    )
    await other.teams.AcceptTeamInvitation(
        pb.AcceptTeamInvitationRequest(invitation_id=invited.invitation.id)
    )


async def team_of(leader: Person, *others: Person, role: Any = USER) -> str:
    team_id: str = (await leader.teams.CreateTeam(pb.CreateTeamRequest(name="ours"))).team.id
    for other in others:
        await joined(leader, team_id, other, role)
    return team_id


def acting(team_id: str) -> dict[str, Any]:
    return {"metadata": (("qflow-tenant", team_id),)}


def remove(team_id: str, other: Person) -> pb.RemoveTeamMemberRequest:
    return pb.RemoveTeamMemberRequest(team_id=team_id, user_id=str(other.user.id))


def role_to(team_id: str, other: Person, role: Any) -> pb.UpdateTeamMemberRequest:
    return pb.UpdateTeamMemberRequest(team_id=team_id, user_id=str(other.user.id), role=role)


async def test_what_one_member_makes_the_others_see_and_nobody_else_does(person: Any) -> None:
    ada, ben, eve = person(), person(), person()
    team_id = await team_of(ada, ben)
    made = await ada.client.nodes.CreateNode(
        nodes.CreateNodeRequest(name="ours", code=CODE), **acting(team_id)
    )
    ask = nodes.GetNodeRequest(node_id=made.node.id)
    assert "ours" == (await ben.client.nodes.GetNode(ask, **acting(team_id))).node.name
    # Nor does the one who made it, where they act for themselves.
    for caller in (eve, ben, ada):
        assert grpc.StatusCode.NOT_FOUND == (await refused(caller.client.nodes.GetNode(ask))).code
    told = await refused(eve.client.nodes.GetNode(ask, **acting(team_id)))
    assert (PERMISSION_DENIED, "NOT_A_MEMBER") == (told.code, told.reason)


async def test_a_caller_is_told_for_whom_a_call_acts(person: Any) -> None:
    ada, ben = person("admin"), person()
    team_id = await team_of(ada, ben, role=VIEWER)
    ask = sessions.GetCallerRequest()
    alone = (await ada.client.sessions.GetCaller(ask)).caller
    assert (str(ada.user.id), ADMIN, 0) == (alone.tenant_id, alone.role, alone.team_role)
    # Whoever administers the deployment does not do so from within a team.
    led = (await ada.client.sessions.GetCaller(ask, **acting(team_id))).caller
    assert (team_id, USER, ADMIN) == (led.tenant_id, led.role, led.team_role)
    shown = (await ben.client.sessions.GetCaller(ask, **acting(team_id))).caller
    assert (team_id, VIEWER, VIEWER) == (shown.tenant_id, shown.role, shown.team_role)


@pytest.mark.parametrize("named", ["", "x", "{0d7a1c52-4b0e-4b21-9d0b-0c5b0a8f4f11}"])
async def test_a_tenant_is_named_by_its_id_or_not_at_all(person: Any, named: str) -> None:
    """B18, B20."""
    ada = person()
    call = ada.client.sessions.GetCaller(sessions.GetCallerRequest(), **acting(named))
    told = await refused(call)
    assert (grpc.StatusCode.INVALID_ARGUMENT, "TENANT_INVALID") == (told.code, told.reason)


async def test_two_tenants_at_once_are_refused(person: Any) -> None:
    ada = person()
    team_id = await team_of(ada)
    both = (("qflow-tenant", team_id), ("qflow-tenant", str(ada.user.id)))
    call = ada.client.sessions.GetCaller(sessions.GetCallerRequest(), metadata=both)
    assert "TENANT_INVALID" == (await refused(call)).reason


async def test_a_viewer_of_a_team_reads_and_changes_nothing(person: Any) -> None:
    """X17."""
    ada, ben = person(), person()
    team_id = await team_of(ada, ben, role=VIEWER)
    create = nodes.CreateNodeRequest(name="x", code=CODE)
    told = await refused(ben.client.nodes.CreateNode(create, **acting(team_id)))
    assert (PERMISSION_DENIED, "NOT_ALLOWED") == (told.code, told.reason)
    await ben.client.nodes.CreateNode(create)  # for themselves they may


async def test_an_account_that_may_only_read_does_so_in_every_team(person: Any) -> None:
    """X17: also as one who leads it."""
    ada, ben = person(), person("viewer")
    team_id = await team_of(ada, ben, role=ADMIN)
    create = nodes.CreateNodeRequest(name="x", code=CODE)
    assert (
        PERMISSION_DENIED
        == (await refused(ben.client.nodes.CreateNode(create, **acting(team_id)))).code
    )
    assert (
        PERMISSION_DENIED == (await refused(ben.teams.RemoveTeamMember(remove(team_id, ada)))).code
    )


async def test_only_who_leads_a_team_decides_about_its_members(person: Any) -> None:
    ada, ben, cleo = person(), person(), person()
    team_id = await team_of(ada, ben, cleo)
    invite = pb.InviteTeamMemberRequest(team_id=team_id, email="a@example.org", role=USER)
    for call in (
        ben.teams.InviteTeamMember(invite),
        ben.teams.ListTeamInvitations(pb.ListTeamInvitationsRequest(team_id=team_id)),
        ben.teams.RemoveTeamMember(remove(team_id, cleo)),
        ben.teams.UpdateTeamMember(role_to(team_id, ben, ADMIN)),
        ben.teams.UpdateTeam(pb.UpdateTeamRequest(team_id=team_id, name="mine")),
    ):
        told = await refused(call)
        assert (PERMISSION_DENIED, "NOT_TEAM_ADMIN") == (told.code, told.reason)
    await ada.teams.UpdateTeamMember(role_to(team_id, ben, ADMIN))
    await ben.teams.RemoveTeamMember(remove(team_id, cleo))
    listed = await ben.teams.ListTeamMembers(pb.ListTeamMembersRequest(team_id=team_id))
    assert [ben.email, ada.email] == [each.email for each in listed.members]


async def test_a_removed_member_is_out_at_once_here_and_within_five_seconds_elsewhere(
    person: Any, database: Database
) -> None:
    """X4, X5."""
    ada, ben = person(), person()
    team_id = await team_of(ada, ben)
    pool = await open_pool(database.url("qflow_orchestrator"), application_name="elsewhere")
    now = 100.0
    elsewhere = Authenticator(pool, clock=lambda: now)
    credential = Credential(token_sha256(ben.user.token), uuid.UUID(team_id))
    assert "user" == (await elsewhere.authenticate(credential)).role
    await ada.teams.RemoveTeamMember(remove(team_id, ben))
    told = await refused(
        ben.client.sessions.GetCaller(sessions.GetCallerRequest(), **acting(team_id))
    )
    assert "NOT_A_MEMBER" == told.reason
    now += 5.0
    with pytest.raises(PermissionDenied, match="qflow-tenant"):
        await elsewhere.authenticate(credential)
    await pool.close()


async def test_a_new_role_holds_at_once(person: Any) -> None:
    """X5."""
    ada, ben = person(), person()
    team_id = await team_of(ada, ben)
    create = nodes.CreateNodeRequest(name="x", code=CODE)
    await ben.client.nodes.CreateNode(create, **acting(team_id))
    await ada.teams.UpdateTeamMember(role_to(team_id, ben, VIEWER))
    assert (
        PERMISSION_DENIED
        == (await refused(ben.client.nodes.CreateNode(create, **acting(team_id)))).code
    )


async def test_a_token_made_in_a_team_reaches_that_team_alone_and_ends_with_membership(
    person: Any, registry: Registry
) -> None:
    """X9."""
    ada, ben = person(), person()
    team_id = await team_of(ada, ben)
    make = tokens.CreateServiceTokenRequest(name="ci", scopes=["nodes:read", "nodes:write"])
    made = await ben.tokens.CreateServiceToken(make, **acting(team_id))
    backend = registry.client(made.token)
    node = (
        await backend.nodes.CreateNode(nodes.CreateNodeRequest(name="of the team", code=CODE))
    ).node
    ask = nodes.GetNodeRequest(node_id=node.id)
    await ada.client.nodes.GetNode(ask, **acting(team_id))
    told = await refused(backend.nodes.GetNode(ask, **acting(str(ben.user.id))))
    assert "NOT_A_MEMBER" == told.reason
    await ben.teams.LeaveTeam(pb.LeaveTeamRequest(team_id=team_id))
    assert grpc.StatusCode.UNAUTHENTICATED == (await refused(backend.nodes.GetNode(ask))).code


async def test_somebody_always_leads_a_team(person: Any) -> None:
    """X19."""
    ada, ben = person(), person()
    team_id = await team_of(ada, ben)
    for call in (
        ada.teams.LeaveTeam(pb.LeaveTeamRequest(team_id=team_id)),
        ada.teams.UpdateTeamMember(role_to(team_id, ada, USER)),
    ):
        told = await refused(call)
        assert (grpc.StatusCode.FAILED_PRECONDITION, "LAST_TEAM_ADMIN") == (told.code, told.reason)
    await ada.teams.UpdateTeamMember(role_to(team_id, ben, ADMIN))
    answers = await asyncio.gather(
        ada.teams.LeaveTeam(pb.LeaveTeamRequest(team_id=team_id)),
        ben.teams.LeaveTeam(pb.LeaveTeamRequest(team_id=team_id)),
        return_exceptions=True,
    )
    assert 1 == sum(isinstance(each, grpc.aio.AioRpcError) for each in answers)


async def test_an_invitation_is_for_one_address_and_one_call(person: Any) -> None:
    ada, ben, eve = person(), person(), person()
    team_id = (await ada.teams.CreateTeam(pb.CreateTeamRequest(name="ours"))).team.id
    invite = pb.InviteTeamMemberRequest(team_id=team_id, email=ben.email.upper(), role=USER)
    invitation = (await ada.teams.InviteTeamMember(invite)).invitation
    accept = pb.AcceptTeamInvitationRequest(invitation_id=invitation.id)
    # Not even by who made it, and who sees it.
    for other in (eve, ada):
        told = await refused(other.teams.AcceptTeamInvitation(accept))
        assert (grpc.StatusCode.NOT_FOUND, "INVITATION_NOT_FOUND") == (told.code, told.reason)
    received = await ben.teams.ListReceivedTeamInvitations(pb.ListReceivedTeamInvitationsRequest())
    assert [("ours", USER)] == [(each.team_name, each.role) for each in received.invitations]
    assert "ours" == (await ben.teams.AcceptTeamInvitation(accept)).team.name
    assert "INVITATION_NOT_FOUND" == (await refused(ben.teams.AcceptTeamInvitation(accept))).reason


async def test_inviting_again_replaces_and_turning_down_ends_an_invitation(person: Any) -> None:
    ada, ben = person(), person()
    team_id = (await ada.teams.CreateTeam(pb.CreateTeamRequest(name="ours"))).team.id
    invite = pb.InviteTeamMemberRequest(team_id=team_id, email=ben.email, role=ADMIN)
    first = (await ada.teams.InviteTeamMember(invite)).invitation
    invite.role = VIEWER
    second = (await ada.teams.InviteTeamMember(invite)).invitation
    accept = pb.AcceptTeamInvitationRequest(invitation_id=first.id)
    assert "INVITATION_NOT_FOUND" == (await refused(ben.teams.AcceptTeamInvitation(accept))).reason
    await ben.teams.DeleteTeamInvitation(pb.DeleteTeamInvitationRequest(invitation_id=second.id))
    listed = await ada.teams.ListTeamInvitations(pb.ListTeamInvitationsRequest(team_id=team_id))
    assert [] == list(listed.invitations)


async def test_an_address_that_nobody_has_is_invited_alike(person: Any) -> None:
    """X51: who has an account is not told by it."""
    ada, ben = person(), person()
    team_id = (await ada.teams.CreateTeam(pb.CreateTeamRequest(name="ours"))).team.id
    answers = []
    for email in (ben.email, "nobody@example.org"):
        invite = pb.InviteTeamMemberRequest(team_id=team_id, email=email, role=USER)
        made = (await ada.teams.InviteTeamMember(invite)).invitation
        answers.append((made.role, made.team_name, made.email == email, bool(made.id)))
    assert answers[0] == answers[1]


async def test_a_repeated_call_makes_one_team(person: Any) -> None:
    """F26."""
    ada = person()
    request = pb.CreateTeamRequest(name="once", request_id=str(uuid.uuid4()))
    first, second = [(await ada.teams.CreateTeam(request)).team for _ in range(2)]
    assert first == second
    assert 1 == len((await ada.teams.ListTeams(pb.ListTeamsRequest())).teams)


async def workflow_on(owner: Person, node: Any, **more: Any) -> Any:
    request = workflows.CreateWorkflowRequest(
        name="w", definition=workflow_pb2.WorkflowDefinition(nodes=[place("a", on=node)])
    )
    return (await owner.client.workflows.CreateWorkflow(request, **more)).workflow


async def test_a_workflow_goes_to_a_team_with_its_nodes_and_all_its_versions(person: Any) -> None:
    ada, ben = person(), person()
    team_id = await team_of(ada, ben)
    node = await ada.client.node(CODE)
    made = await workflow_on(ada, node)
    moved = await ada.teams.TransferWorkflow(
        pb.TransferWorkflowRequest(workflow_id=made.id, target_tenant_id=team_id)
    )
    assert [node.id] == list(moved.node_ids)
    ask = workflows.GetWorkflowRequest(workflow_id=made.id, version=1)
    found = (await ben.client.workflows.GetWorkflow(ask, **acting(team_id))).workflow
    assert "w" == found.name
    await ben.client.nodes.GetNode(nodes.GetNodeRequest(node_id=node.id), **acting(team_id))
    assert grpc.StatusCode.NOT_FOUND == (await refused(ada.client.workflows.GetWorkflow(ask))).code
    # It is the team's now: another member changes it, and gives it to nobody.
    rename = workflows.UpdateWorkflowRequest(workflow_id=made.id, name="ours")
    rename.update_mask.paths.append("name")
    await ben.client.workflows.UpdateWorkflow(rename, **acting(team_id))
    back = pb.TransferWorkflowRequest(workflow_id=made.id, target_tenant_id=str(ben.user.id))
    told = await refused(ben.teams.TransferWorkflow(back, **acting(team_id)))
    assert "NOT_TEAM_ADMIN" == told.reason


async def test_nothing_goes_that_something_which_stays_needs(person: Any) -> None:
    ada = person()
    team_id = await team_of(ada)
    node = await ada.client.node(CODE)
    first, second = await workflow_on(ada, node), await workflow_on(ada, node)
    for call in (
        ada.teams.TransferNode(pb.TransferNodeRequest(node_id=node.id, target_tenant_id=team_id)),
        ada.teams.TransferWorkflow(
            pb.TransferWorkflowRequest(workflow_id=first.id, target_tenant_id=team_id)
        ),
    ):
        told = await refused(call)
        assert (grpc.StatusCode.FAILED_PRECONDITION, "NODE_IN_USE") == (told.code, told.reason)
    await ada.client.workflows.DeleteWorkflow(
        workflows.DeleteWorkflowRequest(workflow_id=second.id)
    )
    await ada.teams.TransferWorkflow(
        pb.TransferWorkflowRequest(workflow_id=first.id, target_tenant_id=team_id)
    )


async def test_an_active_workflow_and_one_that_changed_stay(person: Any) -> None:
    """B41."""
    ada = person()
    team_id = await team_of(ada)
    made = await workflow_on(ada, await ada.client.node(CODE))
    stale = pb.TransferWorkflowRequest(workflow_id=made.id, target_tenant_id=team_id, etag="1-1")
    assert "ETAG_MISMATCH" == (await refused(ada.teams.TransferWorkflow(stale))).reason
    await ada.client.workflows.ActivateWorkflow(
        workflows.ActivateWorkflowRequest(workflow_id=made.id)
    )
    move = pb.TransferWorkflowRequest(workflow_id=made.id, target_tenant_id=team_id)
    assert "WORKFLOW_ACTIVE" == (await refused(ada.teams.TransferWorkflow(move))).reason


async def test_a_node_goes_to_where_the_caller_may_create_and_nowhere_else(person: Any) -> None:
    """X16."""
    ada, ben, cleo = person(), person(), person()
    theirs, only_read = await team_of(ben), await team_of(ben, ada, role=VIEWER)
    node = await ada.client.node(CODE)

    def move(tenant_id: object) -> Any:
        return ada.teams.TransferNode(
            pb.TransferNodeRequest(node_id=node.id, target_tenant_id=str(tenant_id))
        )

    for tenant, reason in (
        (theirs, "TEAM_NOT_FOUND"),
        (cleo.user.id, "TEAM_NOT_FOUND"),
        (only_read, "NOT_A_WRITER"),
        (ada.user.id, "ALREADY_THERE"),
    ):
        assert reason == (await refused(move(tenant))).reason
    await move(await team_of(ada))


async def test_what_is_done_to_a_team_is_in_the_trail(person: Any, sql: psycopg.Connection) -> None:
    """X23: with before and after."""
    ada, ben = person(), person()
    team_id = await team_of(ada, ben)
    await ada.teams.UpdateTeamMember(role_to(team_id, ben, VIEWER))
    await ada.teams.RemoveTeamMember(remove(team_id, ben))
    rows = sql.execute(
        "SELECT action, before ->> 'role', after ->> 'role' FROM audit_events"
        " WHERE target_id = %s ORDER BY id",
        (team_id,),
    ).fetchall()
    assert [
        ("team.create", None, None),
        ("team.invite", None, "user"),
        ("team.accept_invitation", None, "user"),
        ("team.update_member", "user", "viewer"),
        ("team.remove_member", "viewer", None),
    ] == rows
