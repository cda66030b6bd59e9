"""TeamService."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

from qflow.registry.v1 import team_service_pb2 as pb
from qflow.registry.v1 import team_service_pb2_grpc as pb_grpc

from services.kit.caller import current_caller
from services.kit.rpc import codec
from services.kit.rpc.pages import Pages
from services.kit.rpc.request_key import answered, request_key
from services.registry.domain.teams import Invitation, Member, Team
from services.registry.rpc.user_codec import ROLES, lifetime_from, role_from
from services.registry.usecases import teams, transfers
from services.registry.usecases.identity import Identity

_TEAMS: Final = "registry.ListTeams"
_MEMBERS: Final = "registry.ListTeamMembers"
_INVITATIONS: Final = "registry.ListTeamInvitations"
_RECEIVED: Final = "registry.ListReceivedTeamInvitations"


class TeamServicer(pb_grpc.TeamServiceServicer):
    """Serves teams, their members and invitations, and transfers between tenants."""

    def __init__(self, deps: Identity) -> None:
        self._deps = deps

    async def CreateTeam(
        self, request: pb.CreateTeamRequest, context: Any
    ) -> pb.CreateTeamResponse:
        """See the contract."""
        answer = await teams.create_team(
            self._deps,
            current_caller(),
            request.name,
            key=request_key(request, "registry.CreateTeam", _created),
        )
        return answered(pb.CreateTeamResponse, answer, _created)

    async def GetTeam(self, request: pb.GetTeamRequest, context: Any) -> pb.GetTeamResponse:
        """See the contract."""
        found = await teams.get_team(self._deps, current_caller(), _team_id(request))
        return pb.GetTeamResponse(team=_team(found))

    async def ListTeams(self, request: pb.ListTeamsRequest, context: Any) -> pb.ListTeamsResponse:
        """See the contract."""
        pages = Pages(_TEAMS, request)
        found = await teams.list_teams(
            self._deps, current_caller(), after=pages.after_moment(), limit=pages.limit
        )
        shown, token = await pages.cut(
            found, encode=_team, key=lambda each: (each.created_at, each.id)
        )
        return pb.ListTeamsResponse(teams=shown, next_page_token=token)

    async def UpdateTeam(
        self, request: pb.UpdateTeamRequest, context: Any
    ) -> pb.UpdateTeamResponse:
        """See the contract."""
        answer = await teams.rename_team(
            self._deps,
            current_caller(),
            _team_id(request),
            request.name,
            etag=request.etag,
            key=request_key(request, "registry.UpdateTeam", _updated),
        )
        return answered(pb.UpdateTeamResponse, answer, _updated)

    async def DeleteTeam(
        self, request: pb.DeleteTeamRequest, context: Any
    ) -> pb.DeleteTeamResponse:
        """See the contract."""
        answer = await teams.delete_team(
            self._deps,
            current_caller(),
            _team_id(request),
            etag=request.etag,
            key=request_key(request, "registry.DeleteTeam", _deleted),
        )
        return answered(pb.DeleteTeamResponse, answer, _deleted)

    async def InviteTeamMember(
        self, request: pb.InviteTeamMemberRequest, context: Any
    ) -> pb.InviteTeamMemberResponse:
        """See the contract."""
        answer = await teams.invite(
            self._deps,
            current_caller(),
            _team_id(request),
            email=request.email,
            role=role_from(request.role),
            lifetime=lifetime_from(request, teams.INVITATION),
            key=request_key(request, "registry.InviteTeamMember", _invited),
        )
        return answered(pb.InviteTeamMemberResponse, answer, _invited)

    async def ListTeamInvitations(
        self, request: pb.ListTeamInvitationsRequest, context: Any
    ) -> pb.ListTeamInvitationsResponse:
        """See the contract."""
        pages = Pages(_INVITATIONS, request, request.team_id)
        found = await teams.list_invitations(
            self._deps,
            current_caller(),
            _team_id(request),
            after=pages.after_moment(),
            limit=pages.limit,
        )
        shown, token = await pages.cut(
            found, encode=_invitation, key=lambda each: (each.created_at, each.id)
        )
        return pb.ListTeamInvitationsResponse(invitations=shown, next_page_token=token)

    async def ListReceivedTeamInvitations(
        self, request: pb.ListReceivedTeamInvitationsRequest, context: Any
    ) -> pb.ListReceivedTeamInvitationsResponse:
        """See the contract."""
        pages = Pages(_RECEIVED, request)
        found = await teams.list_received(
            self._deps, current_caller(), after=pages.after_moment(), limit=pages.limit
        )
        shown, token = await pages.cut(
            found, encode=_invitation, key=lambda each: (each.created_at, each.id)
        )
        return pb.ListReceivedTeamInvitationsResponse(invitations=shown, next_page_token=token)

    async def DeleteTeamInvitation(
        self, request: pb.DeleteTeamInvitationRequest, context: Any
    ) -> pb.DeleteTeamInvitationResponse:
        """See the contract."""
        await teams.delete_invitation(
            self._deps,
            current_caller(),
            codec.uuid_from(request.invitation_id, field="invitation_id"),
            key=request_key(
                request,
                "registry.DeleteTeamInvitation",
                lambda _: pb.DeleteTeamInvitationResponse(),
            ),
        )
        return pb.DeleteTeamInvitationResponse()

    async def AcceptTeamInvitation(
        self, request: pb.AcceptTeamInvitationRequest, context: Any
    ) -> pb.AcceptTeamInvitationResponse:
        """See the contract."""
        answer = await teams.accept(
            self._deps,
            current_caller(),
            codec.uuid_from(request.invitation_id, field="invitation_id"),
            key=request_key(request, "registry.AcceptTeamInvitation", _joined),
        )
        return answered(pb.AcceptTeamInvitationResponse, answer, _joined)

    async def ListTeamMembers(
        self, request: pb.ListTeamMembersRequest, context: Any
    ) -> pb.ListTeamMembersResponse:
        """See the contract."""
        pages = Pages(_MEMBERS, request, request.team_id)
        found = await teams.list_members(
            self._deps,
            current_caller(),
            _team_id(request),
            after=pages.after_moment(),
            limit=pages.limit,
        )
        shown, token = await pages.cut(
            found, encode=_member, key=lambda each: (each.created_at, each.user_id)
        )
        return pb.ListTeamMembersResponse(members=shown, next_page_token=token)

    async def UpdateTeamMember(
        self, request: pb.UpdateTeamMemberRequest, context: Any
    ) -> pb.UpdateTeamMemberResponse:
        """See the contract."""
        answer = await teams.update_member(
            self._deps,
            current_caller(),
            _team_id(request),
            codec.uuid_from(request.user_id, field="user_id"),
            role_from(request.role),
            etag=request.etag,
            key=request_key(request, "registry.UpdateTeamMember", _changed),
        )
        return answered(pb.UpdateTeamMemberResponse, answer, _changed)

    async def RemoveTeamMember(
        self, request: pb.RemoveTeamMemberRequest, context: Any
    ) -> pb.RemoveTeamMemberResponse:
        """See the contract."""
        await teams.remove_member(
            self._deps,
            current_caller(),
            _team_id(request),
            codec.uuid_from(request.user_id, field="user_id"),
            key=request_key(
                request, "registry.RemoveTeamMember", lambda _: pb.RemoveTeamMemberResponse()
            ),
        )
        return pb.RemoveTeamMemberResponse()

    async def LeaveTeam(self, request: pb.LeaveTeamRequest, context: Any) -> pb.LeaveTeamResponse:
        """See the contract."""
        caller = current_caller()
        await teams.remove_member(
            self._deps,
            caller,
            _team_id(request),
            caller.user_id,
            key=request_key(request, "registry.LeaveTeam", lambda _: pb.LeaveTeamResponse()),
        )
        return pb.LeaveTeamResponse()

    async def TransferNode(
        self, request: pb.TransferNodeRequest, context: Any
    ) -> pb.TransferNodeResponse:
        """See the contract."""
        await transfers.transfer_node(
            self._deps,
            current_caller(),
            codec.uuid_from(request.node_id, field="node_id"),
            codec.uuid_from(request.target_tenant_id, field="target_tenant_id"),
            etag=request.etag,
            key=request_key(request, "registry.TransferNode", lambda _: pb.TransferNodeResponse()),
        )
        return pb.TransferNodeResponse()

    async def TransferWorkflow(
        self, request: pb.TransferWorkflowRequest, context: Any
    ) -> pb.TransferWorkflowResponse:
        """See the contract."""
        answer = await transfers.transfer_workflow(
            self._deps,
            current_caller(),
            codec.uuid_from(request.workflow_id, field="workflow_id"),
            codec.uuid_from(request.target_tenant_id, field="target_tenant_id"),
            etag=request.etag,
            key=request_key(request, "registry.TransferWorkflow", _moved),
        )
        return answered(pb.TransferWorkflowResponse, answer, _moved)


def _team_id(request: Any) -> UUID:
    return codec.uuid_from(request.team_id, field="team_id")


def _created(team: Team) -> pb.CreateTeamResponse:
    return pb.CreateTeamResponse(team=_team(team))


def _deleted(_: Team) -> pb.DeleteTeamResponse:
    return pb.DeleteTeamResponse()


def _updated(team: Team) -> pb.UpdateTeamResponse:
    return pb.UpdateTeamResponse(team=_team(team))


def _joined(team: Team) -> pb.AcceptTeamInvitationResponse:
    return pb.AcceptTeamInvitationResponse(team=_team(team))


def _invited(invitation: Invitation) -> pb.InviteTeamMemberResponse:
    return pb.InviteTeamMemberResponse(invitation=_invitation(invitation))


def _changed(member: Member) -> pb.UpdateTeamMemberResponse:
    return pb.UpdateTeamMemberResponse(member=_member(member))


def _moved(node_ids: list[UUID]) -> pb.TransferWorkflowResponse:
    return pb.TransferWorkflowResponse(node_ids=[str(each) for each in node_ids])


def _team(team: Team) -> pb.Team:
    return pb.Team(
        id=str(team.id),
        name=team.name,
        role=ROLES[team.role],
        etag=team.etag,
        create_time=codec.timestamp(team.created_at),
    )


def _member(member: Member) -> pb.TeamMember:
    return pb.TeamMember(
        user_id=str(member.user_id),
        email=member.email,
        display_name=member.display_name,
        role=ROLES[member.role],
        etag=member.etag,
        create_time=codec.timestamp(member.created_at),
    )


def _invitation(invitation: Invitation) -> pb.TeamInvitation:
    return pb.TeamInvitation(
        id=str(invitation.id),
        team_id=str(invitation.team_id),
        team_name=invitation.team_name,
        email=invitation.email,
        role=ROLES[invitation.role],
        created_by=str(invitation.created_by),
        create_time=codec.timestamp(invitation.created_at),
        expire_time=codec.timestamp(invitation.expires_at),
    )
