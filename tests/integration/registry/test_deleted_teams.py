"""Teams that are deleted: everybody is out at once, and nobody comes back."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import grpc
import psycopg
from qflow.registry.v1 import node_service_pb2 as nodes
from qflow.registry.v1 import service_token_service_pb2 as tokens
from qflow.registry.v1 import session_service_pb2 as sessions
from qflow.registry.v1 import team_service_pb2 as pb

from tests.integration.registry.conftest import Registry, change_rows, refused
from tests.integration.registry.test_teams import CODE, USER, acting, person, team_of

__all__ = ["person"]


async def test_a_deleted_team_is_nobodys_and_its_tokens_end(
    registry: Registry, person: Any, sql: psycopg.Connection
) -> None:
    ada, ben, eve = person(), person(), person()
    team_id = await team_of(ada, ben)
    made = await ben.tokens.CreateServiceToken(
        tokens.CreateServiceTokenRequest(name="t", scopes=["nodes:read"]), **acting(team_id)
    )
    invite = pb.InviteTeamMemberRequest(team_id=team_id, email=eve.email, role=USER)
    await ada.teams.InviteTeamMember(invite)
    delete = pb.DeleteTeamRequest(team_id=team_id, request_id=team_id)
    told = await refused(ben.teams.DeleteTeam(delete))
    assert (grpc.StatusCode.PERMISSION_DENIED, "NOT_TEAM_ADMIN") == (told.code, told.reason)
    await ada.teams.DeleteTeam(delete)
    await ada.teams.DeleteTeam(delete)  # said again, it is answered again
    for each in (ada, ben):
        call = each.client.sessions.GetCaller(sessions.GetCallerRequest(), **acting(team_id))
        assert "NOT_A_MEMBER" == (await refused(call)).reason
        told = await refused(each.teams.GetTeam(pb.GetTeamRequest(team_id=team_id)))
        assert grpc.StatusCode.NOT_FOUND == told.code
    by_token = registry.client(made.token).nodes.ListNodes(nodes.ListNodesRequest())
    assert grpc.StatusCode.UNAUTHENTICATED == (await refused(by_token)).code
    received = await eve.teams.ListReceivedTeamInvitations(pb.ListReceivedTeamInvitationsRequest())
    assert [] == list(received.invitations)
    left = "SELECT count(*) FROM tenant_members WHERE tenant_id = %s"
    assert (0,) == sql.execute(left, (UUID(team_id),)).fetchone()


async def test_a_team_is_not_deleted_while_it_has_something(person: Any) -> None:
    ada = person()
    team_id = await team_of(ada)
    made = await ada.client.nodes.CreateNode(
        nodes.CreateNodeRequest(name="ours", code=CODE), **acting(team_id)
    )
    delete = pb.DeleteTeamRequest(team_id=team_id)
    told = await refused(ada.teams.DeleteTeam(delete))
    assert (grpc.StatusCode.FAILED_PRECONDITION, "TEAM_NOT_EMPTY") == (told.code, told.reason)
    remove = nodes.DeleteNodeRequest(node_id=made.node.id)
    await ada.client.nodes.DeleteNode(remove, **acting(team_id))
    stale = pb.DeleteTeamRequest(team_id=team_id, etag="0")
    assert "ETAG_MISMATCH" == (await refused(ada.teams.DeleteTeam(stale))).reason
    await ada.teams.DeleteTeam(delete)


async def test_who_founded_a_team_does_not_come_back_once_it_is_deleted(
    person: Any, sql: psycopg.Connection
) -> None:
    """Also where the statement is sent past the service, under its own login."""
    ada = person()
    team_id = await team_of(ada)
    founder = "SELECT set_config('qflow.user_id', %s, false), is_founder(%s)"
    await change_rows(sql, "DELETE FROM tenant_members WHERE tenant_id = %s", (UUID(team_id),))
    assert True is sql.execute(founder, (str(ada.user.id), UUID(team_id))).fetchone()[1]  # type: ignore[index]
    await change_rows(sql, "UPDATE tenants SET deleted_at = now() WHERE id = %s", (UUID(team_id),))
    assert False is sql.execute(founder, (str(ada.user.id), UUID(team_id))).fetchone()[1]  # type: ignore[index]
