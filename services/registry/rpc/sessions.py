"""SessionService."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

from qflow.auth.v1 import auth_pb2
from qflow.registry.v1 import session_service_pb2 as pb
from qflow.registry.v1 import session_service_pb2_grpc as pb_grpc

from services.kit.caller import current_caller
from services.kit.pg import Pool
from services.kit.rpc import codec
from services.registry.gateways.passwords import Passwords
from services.registry.usecases import sessions

_ROLES: Final = {
    "viewer": auth_pb2.ROLE_VIEWER,
    "user": auth_pb2.ROLE_USER,
    "admin": auth_pb2.ROLE_ADMIN,
}


class SessionServicer(pb_grpc.SessionServiceServicer):
    """Signing in and out, and saying who calls."""

    def __init__(
        self,
        auth_pool: Pool,
        passwords: Passwords,
        *,
        lifetime: timedelta,
        forget: Callable[[str], None],
    ) -> None:
        self._auth_pool = auth_pool
        self._passwords = passwords
        self._lifetime = lifetime
        self._forget = forget

    async def SignIn(self, request: pb.SignInRequest, context: Any) -> pb.SignInResponse:
        """See the contract."""
        signed_in = await sessions.sign_in(
            self._auth_pool,
            self._passwords,
            email=request.email,
            password=request.password,
            lifetime=self._lifetime,
        )
        user = signed_in.user
        return pb.SignInResponse(
            token=signed_in.token,
            expire_time=codec.timestamp(signed_in.expires_at),
            caller=pb.Caller(
                user_id=str(user.id),
                tenant_id=str(user.id),
                email=user.email,
                role=_ROLES[user.role],
                is_owner=user.is_owner,
            ),
        )

    async def SignOut(self, request: pb.SignOutRequest, context: Any) -> pb.SignOutResponse:
        """See the contract."""
        digest = await sessions.sign_out(self._auth_pool, current_caller())
        if digest is not None:
            self._forget(digest)
        return pb.SignOutResponse()

    async def GetCaller(self, request: pb.GetCallerRequest, context: Any) -> pb.GetCallerResponse:
        """See the contract."""
        caller = current_caller()
        return pb.GetCallerResponse(
            caller=pb.Caller(
                user_id=str(caller.user_id),
                tenant_id=str(caller.tenant_id),
                email=caller.name,
                role=_ROLES[caller.role],
                is_owner=caller.is_owner,
            ),
            expire_time=codec.timestamp(caller.expires_at),
        )
