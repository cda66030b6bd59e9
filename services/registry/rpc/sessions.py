"""SessionService."""

from __future__ import annotations

from typing import Any, Final

from qflow.auth.v1 import auth_pb2
from qflow.registry.v1 import session_service_pb2 as pb
from qflow.registry.v1 import session_service_pb2_grpc as pb_grpc

from services.kit.caller import Caller, current_caller
from services.kit.rpc import codec
from services.kit.rpc.pages import Pages
from services.kit.rpc.request_key import answered, request_key
from services.registry.rpc.peers import peer_of
from services.registry.rpc.user_codec import ROLES
from services.registry.storage.sessions import Session
from services.registry.usecases import sessions
from services.registry.usecases.identity import Identity

_LIST: Final = "registry.ListSessions"


class SessionServicer(pb_grpc.SessionServiceServicer):
    """Serves sign-in, sign-out, the caller's identity, and sessions."""

    def __init__(self, deps: Identity) -> None:
        self._deps = deps

    async def SignIn(self, request: pb.SignInRequest, context: Any) -> pb.SignInResponse:
        """See the contract."""
        signed_in = await sessions.sign_in(
            self._deps, email=request.email, password=request.password, peer=peer_of(context)
        )
        user = signed_in.user
        return pb.SignInResponse(
            token=signed_in.token,
            expire_time=codec.timestamp(signed_in.expires_at),
            caller=pb.Caller(
                user_id=str(user.id),
                tenant_id=str(user.id),
                email=user.email,
                role=ROLES[user.role],
                is_owner=user.is_owner,
            ),
        )

    async def SignOut(self, request: pb.SignOutRequest, context: Any) -> pb.SignOutResponse:
        """See the contract."""
        await sessions.sign_out(self._deps, current_caller())
        return pb.SignOutResponse()

    async def GetCaller(self, request: pb.GetCallerRequest, context: Any) -> pb.GetCallerResponse:
        """See the contract."""
        caller = current_caller()
        return pb.GetCallerResponse(
            caller=pb.Caller(
                user_id=str(caller.user_id),
                tenant_id=str(caller.tenant_id),
                email=caller.name,
                role=ROLES[caller.role],
                is_owner=caller.is_owner,
                team_role=ROLES[caller.team_role]
                if caller.team_role
                else auth_pb2.ROLE_UNSPECIFIED,
            ),
            expire_time=codec.timestamp(caller.expires_at),
        )

    async def ListSessions(
        self, request: pb.ListSessionsRequest, context: Any
    ) -> pb.ListSessionsResponse:
        """See the contract."""
        pages = Pages(_LIST, request, request.user_id)
        caller = current_caller()
        found = await sessions.list_sessions(
            self._deps,
            caller,
            codec.uuid_or_none(request.user_id, field="user_id"),
            after=pages.after_moment(),
            limit=pages.limit,
        )
        shown, token = await pages.cut(
            found,
            encode=lambda session: _session_to_pb(session, caller),
            key=lambda session: (session.created_at, session.id),
        )
        return pb.ListSessionsResponse(sessions=shown, next_page_token=token)

    async def RevokeSession(
        self, request: pb.RevokeSessionRequest, context: Any
    ) -> pb.RevokeSessionResponse:
        """See the contract."""
        await sessions.revoke_session(
            self._deps,
            current_caller(),
            codec.uuid_from(request.session_id, field="session_id"),
            key=request_key(
                request, "registry.RevokeSession", lambda _: pb.RevokeSessionResponse()
            ),
        )
        return pb.RevokeSessionResponse()

    async def RevokeAllSessions(
        self, request: pb.RevokeAllSessionsRequest, context: Any
    ) -> pb.RevokeAllSessionsResponse:
        """See the contract."""
        answer = await sessions.revoke_all_sessions(
            self._deps,
            current_caller(),
            codec.uuid_or_none(request.user_id, field="user_id"),
            key=request_key(request, "registry.RevokeAllSessions", _revoked),
        )
        return answered(pb.RevokeAllSessionsResponse, answer, _revoked)


def _revoked(count: int) -> pb.RevokeAllSessionsResponse:
    return pb.RevokeAllSessionsResponse(revoked_sessions=count)


def _session_to_pb(session: Session, caller: Caller) -> pb.Session:
    return pb.Session(
        id=str(session.id),
        user_id=str(session.user_id),
        create_time=codec.timestamp(session.created_at),
        expire_time=codec.timestamp(session.expires_at),
        current=session.id == caller.session_id,
    )
