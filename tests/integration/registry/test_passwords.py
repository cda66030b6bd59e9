"""Passwords over the API: changed by who has the old one, reset by who was given a token."""

from __future__ import annotations

import grpc
import psycopg
import pytest
from qflow.auth.v1 import auth_pb2
from qflow.registry.v1 import session_service_pb2 as sessions
from qflow.registry.v1 import user_service_pb2 as pb

from tests.integration.registry.accounts import PASSWORD, Account, again, caller, signed_in, trail
from tests.integration.registry.conftest import Registry, refused
from tests.support.database import Database

NEW = "another horse"


@pytest.fixture
async def admin(registry: Registry, database: Database) -> Account:
    return await signed_in(registry, database, "admin", role="admin")


@pytest.fixture
async def ada(registry: Registry, database: Database) -> Account:
    return await signed_in(registry, database, "ada")


async def _is_in(account: Account) -> bool:
    try:
        await account.sessions.GetCaller(sessions.GetCallerRequest())
    except grpc.aio.AioRpcError as error:
        return error.code() != grpc.StatusCode.UNAUTHENTICATED
    return True


def _sign_in(password: str) -> sessions.SignInRequest:
    return sessions.SignInRequest(email="ada@example.org", password=password)


async def test_a_new_password_ends_all_other_sessions(
    registry: Registry, ada: Account, sql: psycopg.Connection
) -> None:
    """X52."""
    others = [await again(registry, "ada") for _ in range(2)]
    changed = await ada.users.ChangePassword(
        pb.ChangePasswordRequest(old_password=PASSWORD, new_password=NEW)
    )
    assert changed.revoked_sessions == 2
    assert [await _is_in(each) for each in (ada, *others)] == [True, False, False]
    old = await refused(caller(registry).sessions.SignIn(_sign_in(PASSWORD)))
    assert old.reason == "SIGN_IN_REFUSED"
    assert await _is_in(await again(registry, "ada", password=NEW))
    [(password_hash,)] = sql.execute("SELECT password_hash FROM users WHERE id = %s", (ada.id,))
    assert password_hash.startswith("$argon2id$")  # I25
    assert [(actor, action) for actor, action, _, _ in trail(sql)] == [
        (ada.id, "user.change_password")
    ]


async def test_the_old_password_is_guessed_no_faster_than_at_the_door(ada: Account) -> None:
    """X51: a stolen session is no way around the waits."""
    wrong = pb.ChangePasswordRequest(old_password="wrong horse", new_password=NEW)
    reasons = [(await refused(ada.users.ChangePassword(wrong))).reason for _ in range(12)]
    assert reasons[:10] == ["SIGN_IN_REFUSED"] * 10
    assert "SIGN_IN_DELAYED" in reasons[10:]
    assert await _is_in(ada)


@pytest.mark.parametrize("password", ["", "short", "x" * 1025, "x" * 1_000_000, "correct\0horse"])
async def test_what_is_no_password_is_refused_before_anything_is_hashed(
    admin: Account, ada: Account, sql: psycopg.Connection, password: str
) -> None:
    """B81."""
    reset = await admin.users.CreatePasswordReset(pb.CreatePasswordResetRequest(user_id=ada.id))
    for call in (
        ada.users.ChangePassword(
            pb.ChangePasswordRequest(old_password=PASSWORD, new_password=password)
        ),
        ada.users.ResetPassword(
            pb.ResetPasswordRequest(token=reset.reset_token, password=password)
        ),
        ada.users.AcceptInvitation(pb.AcceptInvitationRequest(token="x", password=password)),
    ):
        said = await refused(call)
        assert said.code == grpc.StatusCode.INVALID_ARGUMENT
        assert {field for field, _ in said.violations} <= {"password", "new_password"}
    assert sql.execute("SELECT count(*) FROM credential_tokens").fetchone() == (1,)


async def test_a_reset_sets_a_password_once_and_ends_every_session(
    registry: Registry, admin: Account, ada: Account
) -> None:
    first = await admin.users.CreatePasswordReset(pb.CreatePasswordResetRequest(user_id=ada.id))
    second = await admin.users.CreatePasswordReset(pb.CreatePasswordResetRequest(user_id=ada.id))
    anybody = caller(registry)
    replaced = pb.ResetPasswordRequest(token=first.reset_token, password=NEW)
    assert (await refused(anybody.users.ResetPassword(replaced))).reason == "TOKEN_REFUSED"
    assert await _is_in(ada)

    request = pb.ResetPasswordRequest(token=second.reset_token, password=NEW)
    assert (await anybody.users.ResetPassword(request)).revoked_sessions == 1
    assert not await _is_in(ada)
    assert (await refused(anybody.users.ResetPassword(request))).reason == "TOKEN_REFUSED"
    assert await _is_in(await again(registry, "ada", password=NEW))


async def test_a_changed_password_ends_a_reset_that_was_asked_for(
    registry: Registry, admin: Account, ada: Account
) -> None:
    reset = await admin.users.CreatePasswordReset(pb.CreatePasswordResetRequest(user_id=ada.id))
    await ada.users.ChangePassword(
        pb.ChangePasswordRequest(old_password=PASSWORD, new_password=NEW)
    )
    late = pb.ResetPasswordRequest(token=reset.reset_token, password="a third horse")
    assert (await refused(caller(registry).users.ResetPassword(late))).reason == "TOKEN_REFUSED"


async def test_whoever_lost_an_invitation_gets_in_by_a_reset(
    registry: Registry, admin: Account
) -> None:
    invited = await admin.users.InviteUser(
        pb.InviteUserRequest(email="eve@example.org", role=auth_pb2.ROLE_USER)
    )
    reset = await admin.users.CreatePasswordReset(
        pb.CreatePasswordResetRequest(user_id=invited.user.id)
    )
    await caller(registry).users.ResetPassword(
        pb.ResetPasswordRequest(token=reset.reset_token, password=NEW)
    )
    assert (await again(registry, "eve", password=NEW)).id == invited.user.id


async def test_who_is_shut_out_gets_no_reset(admin: Account, ada: Account) -> None:
    await admin.users.DeactivateUser(pb.DeactivateUserRequest(user_id=ada.id))
    said = await refused(
        admin.users.CreatePasswordReset(pb.CreatePasswordResetRequest(user_id=ada.id))
    )
    assert (said.code, said.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "USER_NOT_ACTIVE")
