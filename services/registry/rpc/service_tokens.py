"""ServiceTokenService."""

from __future__ import annotations

from typing import Any

from qflow.registry.v1 import service_token_service_pb2 as pb
from qflow.registry.v1 import service_token_service_pb2_grpc as pb_grpc

from services.kit.caller import current_caller
from services.kit.idempotency import Replayed
from services.kit.rpc import codec
from services.kit.rpc.request_key import request_key
from services.registry.rpc.scopes import scopes_of
from services.registry.rpc.user_codec import lifetime_from
from services.registry.storage.service_tokens import ServiceToken
from services.registry.usecases import service_tokens
from services.registry.usecases.identity import Identity
from services.registry.usecases.service_tokens import Made


class ServiceTokenServicer(pb_grpc.ServiceTokenServiceServicer):
    """Serves the service tokens of users."""

    def __init__(self, deps: Identity) -> None:
        self._deps = deps

    async def CreateServiceToken(
        self, request: pb.CreateServiceTokenRequest, context: Any
    ) -> pb.CreateServiceTokenResponse:
        """See the contract."""
        caller = current_caller()
        answer = await service_tokens.create_token(
            self._deps,
            caller,
            name=request.name,
            scopes=list(request.scopes),
            of_role=scopes_of(caller.role),
            lifetime=lifetime_from(request, service_tokens.LIFETIME),
            key=request_key(request, "registry.CreateServiceToken", _kept),
            validate_only=request.validate_only,
        )
        if isinstance(answer, Replayed):
            return pb.CreateServiceTokenResponse.FromString(answer.response)
        created = _kept(answer)
        created.token = answer.token
        if request.validate_only:
            created.service_token.ClearField("id")
        return created

    async def ListServiceTokens(
        self, request: pb.ListServiceTokensRequest, context: Any
    ) -> pb.ListServiceTokensResponse:
        """See the contract."""
        found = await service_tokens.list_tokens(
            self._deps, current_caller(), codec.uuid_or_none(request.user_id, field="user_id")
        )
        return pb.ListServiceTokensResponse(service_tokens=[_token_to_pb(each) for each in found])

    async def RevokeServiceToken(
        self, request: pb.RevokeServiceTokenRequest, context: Any
    ) -> pb.RevokeServiceTokenResponse:
        """See the contract."""
        await service_tokens.revoke_token(
            self._deps,
            current_caller(),
            codec.uuid_from(request.service_token_id, field="service_token_id"),
            key=request_key(
                request, "registry.RevokeServiceToken", lambda _: pb.RevokeServiceTokenResponse()
            ),
        )
        return pb.RevokeServiceTokenResponse()


def _kept(made: Made) -> pb.CreateServiceTokenResponse:
    """Encode the response stored for retries: without the token itself."""
    return pb.CreateServiceTokenResponse(service_token=_token_to_pb(made.known))


def _token_to_pb(token: ServiceToken) -> pb.ServiceToken:
    return pb.ServiceToken(
        id=str(token.id),
        user_id=str(token.user_id),
        name=token.name,
        scopes=token.scopes,
        create_time=codec.timestamp(token.created_at),
        expire_time=codec.timestamp(token.expires_at),
        last_use_time=codec.timestamp(token.last_used_at),
    )
