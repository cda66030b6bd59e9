"""UserService."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from google.protobuf.message import Message
from qflow.registry.v1 import user_service_pb2 as pb
from qflow.registry.v1 import user_service_pb2_grpc as pb_grpc

from services.kit.caller import current_caller
from services.kit.idempotency import Replayed
from services.kit.rpc import codec
from services.kit.rpc.pages import Pages
from services.kit.rpc.request_key import request_key
from services.registry.domain import accounts
from services.registry.domain.accounts import Account
from services.registry.rpc.peers import peer_of
from services.registry.rpc.user_codec import lifetime_from, role_from, user_to_pb
from services.registry.usecases import credentials, users
from services.registry.usecases.credentials import Reset
from services.registry.usecases.identity import Identity
from services.registry.usecases.users import Draft, Invited

_LIST: Final = "registry.ListUsers"
# A response with a user only; the generated classes have no common type for that.
R = TypeVar("R", bound=Any)


class UserServicer(pb_grpc.UserServiceServicer):
    """Serves users and their passwords."""

    def __init__(self, deps: Identity) -> None:
        self._deps = deps

    async def InviteUser(
        self, request: pb.InviteUserRequest, context: Any
    ) -> pb.InviteUserResponse:
        """See the contract."""
        answer = await users.invite_user(
            self._deps,
            current_caller(),
            Draft(
                first_name=request.first_name,
                last_name=request.last_name,
                role=role_from(request.role),
            ),
            email=request.email,
            lifetime=lifetime_from(request, users.INVITATION),
            key=request_key(request, "registry.InviteUser", _invited),
            validate_only=request.validate_only,
        )
        if isinstance(answer, Replayed):
            return pb.InviteUserResponse.FromString(answer.response)
        invited = _invited(answer)
        invited.invitation_token = answer.token
        return invited

    async def AcceptInvitation(
        self, request: pb.AcceptInvitationRequest, context: Any
    ) -> pb.AcceptInvitationResponse:
        """See the contract."""
        account = await credentials.accept_invitation(
            self._deps, token=request.token, password=request.password
        )
        return pb.AcceptInvitationResponse(user=user_to_pb(account))

    async def ListUsers(self, request: pb.ListUsersRequest, context: Any) -> pb.ListUsersResponse:
        """See the contract."""
        pages = Pages(_LIST, request)
        found = await users.list_users(
            self._deps, current_caller(), after=pages.after_moment(), limit=pages.limit
        )
        shown, token = await pages.cut(
            found, encode=user_to_pb, key=lambda account: (account.created_at, account.id)
        )
        return pb.ListUsersResponse(users=shown, next_page_token=token)

    async def GetUser(self, request: pb.GetUserRequest, context: Any) -> pb.GetUserResponse:
        """See the contract."""
        account = await users.get_user(
            self._deps, current_caller(), codec.uuid_or_none(request.user_id, field="user_id")
        )
        return pb.GetUserResponse(user=user_to_pb(account))

    async def UpdateProfile(
        self, request: pb.UpdateProfileRequest, context: Any
    ) -> pb.UpdateProfileResponse:
        """See the contract."""
        caller = current_caller()
        answer = await users.update_user(
            self._deps,
            caller,
            caller.user_id,
            Draft(first_name=request.first_name, last_name=request.last_name),
            mask=list(request.update_mask.paths),
            allowed=accounts.PROFILE_FIELDS,
            etag=request.etag,
            key=request_key(request, "registry.UpdateProfile", _answer(pb.UpdateProfileResponse)),
            validate_only=request.validate_only,
        )
        return _answered(pb.UpdateProfileResponse, answer)

    async def UpdateUser(
        self, request: pb.UpdateUserRequest, context: Any
    ) -> pb.UpdateUserResponse:
        """See the contract."""
        mask = list(request.update_mask.paths)
        answer = await users.update_user(
            self._deps,
            current_caller(),
            codec.uuid_from(request.user_id, field="user_id"),
            Draft(
                first_name=request.first_name,
                last_name=request.last_name,
                role=role_from(request.role) if "role" in mask else "",
            ),
            mask=mask,
            etag=request.etag,
            key=request_key(request, "registry.UpdateUser", _answer(pb.UpdateUserResponse)),
            validate_only=request.validate_only,
        )
        return _answered(pb.UpdateUserResponse, answer)

    async def TransferOwnership(
        self, request: pb.TransferOwnershipRequest, context: Any
    ) -> pb.TransferOwnershipResponse:
        """See the contract."""
        answer = await users.transfer_ownership(
            self._deps,
            current_caller(),
            codec.uuid_from(request.user_id, field="user_id"),
            key=request_key(
                request, "registry.TransferOwnership", _answer(pb.TransferOwnershipResponse)
            ),
        )
        return _answered(pb.TransferOwnershipResponse, answer)

    async def DeactivateUser(
        self, request: pb.DeactivateUserRequest, context: Any
    ) -> pb.DeactivateUserResponse:
        """See the contract."""
        return await self._become(request, pb.DeactivateUserResponse, users.deactivate_user)

    async def ReactivateUser(
        self, request: pb.ReactivateUserRequest, context: Any
    ) -> pb.ReactivateUserResponse:
        """See the contract."""
        return await self._become(request, pb.ReactivateUserResponse, users.reactivate_user)

    async def AnonymizeUser(
        self, request: pb.AnonymizeUserRequest, context: Any
    ) -> pb.AnonymizeUserResponse:
        """See the contract."""
        return await self._become(request, pb.AnonymizeUserResponse, users.anonymize_user)

    async def _become(
        self, request: Any, response: type[R], change: Callable[..., Awaitable[Account | Replayed]]
    ) -> R:
        name = response.DESCRIPTOR.name.removesuffix("Response")
        answer = await change(
            self._deps,
            current_caller(),
            codec.uuid_from(request.user_id, field="user_id"),
            etag=request.etag,
            key=request_key(request, f"registry.{name}", _answer(response)),
        )
        return _answered(response, answer)

    async def ChangePassword(
        self, request: pb.ChangePasswordRequest, context: Any
    ) -> pb.ChangePasswordResponse:
        """See the contract."""
        revoked = await credentials.change_password(
            self._deps,
            current_caller(),
            old=request.old_password,
            new=request.new_password,
            peer=peer_of(context),
        )
        return pb.ChangePasswordResponse(revoked_sessions=revoked)

    async def CreatePasswordReset(
        self, request: pb.CreatePasswordResetRequest, context: Any
    ) -> pb.CreatePasswordResetResponse:
        """See the contract."""
        answer = await credentials.create_reset(
            self._deps,
            current_caller(),
            codec.uuid_from(request.user_id, field="user_id"),
            lifetime=lifetime_from(request, credentials.RESET),
            key=request_key(request, "registry.CreatePasswordReset", _reset),
        )
        if isinstance(answer, Replayed):
            return pb.CreatePasswordResetResponse.FromString(answer.response)
        reset = _reset(answer)
        reset.reset_token = answer.token
        return reset

    async def ResetPassword(
        self, request: pb.ResetPasswordRequest, context: Any
    ) -> pb.ResetPasswordResponse:
        """See the contract."""
        revoked = await credentials.reset_password(
            self._deps, token=request.token, password=request.password
        )
        return pb.ResetPasswordResponse(revoked_sessions=revoked)


def _answer(response: type[R]) -> Callable[[Account], Message]:
    return lambda account: response(user=user_to_pb(account))


def _answered(response: type[R], answer: Account | Replayed) -> R:
    if isinstance(answer, Replayed):
        replayed: R = response.FromString(answer.response)
        return replayed
    answered: R = response(user=user_to_pb(answer))
    return answered


def _invited(invited: Invited) -> pb.InviteUserResponse:
    """Encode the response stored for retries: without the token itself."""
    return pb.InviteUserResponse(
        user=user_to_pb(invited.account), expire_time=codec.timestamp(invited.expires_at)
    )


def _reset(reset: Reset) -> pb.CreatePasswordResetResponse:
    """Encode the response stored for retries: without the token itself."""
    return pb.CreatePasswordResetResponse(expire_time=codec.timestamp(reset.expires_at))
