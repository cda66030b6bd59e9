"""Users over the API: invited, changed, shut out, let in, forgotten; and what is noted of that."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from qflow.auth.v1 import auth_pb2
from qflow.registry.v1 import session_service_pb2 as sessions
from qflow.registry.v1 import user_service_pb2 as pb

from tests import factories
from tests.integration.registry.accounts import PASSWORD, Account, again, caller, signed_in, trail
from tests.integration.registry.conftest import Refusal, Registry, change_rows, refused
from tests.support.database import Database

SYSTEM = "00000000-0000-0000-0000-000000000001"


@pytest.fixture
async def owner(registry: Registry, database: Database) -> Account:
    return await signed_in(registry, database, "owner", role="admin", is_owner=True)


@pytest.fixture
async def admin(registry: Registry, database: Database) -> Account:
    return await signed_in(registry, database, "admin", role="admin")


@pytest.fixture
async def ada(registry: Registry, database: Database) -> Account:
    return await signed_in(registry, database, "ada")


def _invite(email: str = "eve@example.org", **fields: Any) -> pb.InviteUserRequest:
    return pb.InviteUserRequest(**{"email": email, "role": auth_pb2.ROLE_USER, **fields})


async def _who(account: Account) -> Refusal:
    return await refused(account.sessions.GetCaller(sessions.GetCallerRequest()))


async def test_whoever_is_invited_sets_a_password_once_and_signs_in(
    registry: Registry, admin: Account, sql: psycopg.Connection
) -> None:
    invited = await admin.users.InviteUser(_invite("Eve@Example.org", first_name="Eve"))
    assert invited.user.email == "eve@example.org"
    assert invited.user.state == pb.USER_STATE_INVITED
    assert invited.invitation_token.startswith("qf_invite_")
    anybody = caller(registry)
    early = await refused(
        anybody.sessions.SignIn(sessions.SignInRequest(email="eve@example.org", password=PASSWORD))
    )
    assert early.reason == "SIGN_IN_REFUSED"

    accept = pb.AcceptInvitationRequest(token=invited.invitation_token, password=PASSWORD)
    accepted = await anybody.users.AcceptInvitation(accept)
    assert accepted.user.state == pb.USER_STATE_ACTIVE
    eve = await again(registry, "eve")
    assert eve.id == invited.user.id
    used = await refused(anybody.users.AcceptInvitation(accept))
    assert (used.code, used.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_REFUSED")
    actions = [action for _, action, _, _ in trail(sql)]
    assert actions == ["user.invite", "user.redeem_invitation"]


async def test_of_two_who_accept_one_invitation_one_is_let_in(
    registry: Registry, admin: Account
) -> None:
    invited = await admin.users.InviteUser(_invite())
    anybody = caller(registry)
    passwords = ["the first horse", "the second horse"]
    calls = [
        anybody.users.AcceptInvitation(
            pb.AcceptInvitationRequest(token=invited.invitation_token, password=password)
        )
        for password in passwords
    ]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    [lost] = [each for each in outcomes if isinstance(each, grpc.aio.AioRpcError)]
    assert lost.code() == grpc.StatusCode.UNAUTHENTICATED
    winner = passwords[1 if isinstance(outcomes[0], grpc.aio.AioRpcError) else 0]
    assert (await again(registry, "eve", password=winner)).id == invited.user.id


@pytest.mark.parametrize("made", ["expired", "replaced", "a reset", "bogus", "deactivated"])
async def test_an_invitation_that_does_not_hold_is_refused_in_one_way(
    registry: Registry, admin: Account, sql: psycopg.Connection, made: str
) -> None:
    """X3: by the database's clock."""
    invited = await admin.users.InviteUser(_invite())
    token = invited.invitation_token
    if made == "expired":
        await change_rows(sql, "UPDATE credential_tokens SET expires_at = now() - interval '1 s'")
    elif made == "deactivated":
        await admin.users.DeactivateUser(pb.DeactivateUserRequest(user_id=invited.user.id))
    elif made == "bogus":
        token = token[:-1] + ("b" if token[-1] != "b" else "c")
    else:
        reset = await admin.users.CreatePasswordReset(
            pb.CreatePasswordResetRequest(user_id=invited.user.id)
        )
        token = reset.reset_token if made == "a reset" else token
    said = await refused(
        caller(registry).users.AcceptInvitation(
            pb.AcceptInvitationRequest(token=token, password=PASSWORD)
        )
    )
    assert (said.code, said.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_REFUSED")
    [(password_hash,)] = sql.execute(
        "SELECT password_hash FROM users WHERE id = %s", (invited.user.id,)
    )
    assert password_hash is None


async def test_no_token_is_stored_and_a_repeated_call_shows_none(
    admin: Account, sql: psycopg.Connection
) -> None:
    """X53, I25."""
    request = _invite(request_id=str(uuid.uuid4()))
    first = await admin.users.InviteUser(request)
    second = await admin.users.InviteUser(request)
    assert (first.user, first.expire_time) == (second.user, second.expire_time)
    assert second.invitation_token == ""
    tables = [
        name
        for (name,) in sql.execute(
            "SELECT relname FROM pg_class WHERE relkind = 'r'"
            " AND relnamespace = 'public'::regnamespace"
        )
    ]
    raw = first.invitation_token.encode()
    for table in tables:
        for (row,) in sql.execute(f"SELECT t::text FROM {table} t".encode()):
            assert raw.decode() not in row
            assert raw.hex() not in row
    another = await refused(
        admin.users.InviteUser(_invite("x@example.org", request_id=request.request_id))
    )
    assert another.reason == "REQUEST_ID_REUSED"


@pytest.mark.parametrize(
    "email",
    ["a@b@example.org", "a@example.org\r\nBcc: x", "a" * 300 + "@example.org", "a b@c", "@c", "a@"],
)
async def test_what_is_no_address_is_refused_at_its_field(admin: Account, email: str) -> None:
    """B82."""
    said = await refused(admin.users.InviteUser(_invite(email)))
    assert said.code == grpc.StatusCode.INVALID_ARGUMENT
    assert [field for field, _ in said.violations] == ["email"]


async def test_an_address_is_one_users(admin: Account, ada: Account) -> None:
    said = await refused(admin.users.InviteUser(_invite("ADA@example.org")))
    assert (said.code, said.reason) == (grpc.StatusCode.ALREADY_EXISTS, "USER_EXISTS")
    taken = await refused(admin.users.InviteUser(_invite("system@qflow.invalid")))
    assert taken.reason == "USER_EXISTS"


async def test_what_is_only_validated_is_not_stored(
    admin: Account, ada: Account, sql: psycopg.Connection
) -> None:
    rehearsed = await admin.users.InviteUser(_invite(validate_only=True))
    assert (rehearsed.user.id, rehearsed.invitation_token) == ("", "")
    said = await refused(admin.users.InviteUser(_invite("ada@example.org", validate_only=True)))
    assert said.reason == "USER_EXISTS"
    changed = await admin.users.UpdateUser(
        pb.UpdateUserRequest(
            user_id=ada.id,
            role=auth_pb2.ROLE_VIEWER,
            update_mask=FieldMask(paths=["role"]),
            validate_only=True,
        )
    )
    assert changed.user.role == auth_pb2.ROLE_VIEWER
    stored = sql.execute("SELECT email, role FROM users WHERE id <> %s ORDER BY 1", (SYSTEM,))
    assert stored.fetchall() == [("ada@example.org", "user"), ("admin@example.org", "admin")]
    assert trail(sql) == []
    assert (await ada.sessions.GetCaller(sessions.GetCallerRequest())).caller.user_id == ada.id


async def test_users_see_themselves_and_administrators_everybody(
    admin: Account, ada: Account, sql: psycopg.Connection
) -> None:
    """X21, X23."""
    own = (await ada.users.GetUser(pb.GetUserRequest())).user
    assert own == (await ada.users.GetUser(pb.GetUserRequest(user_id=ada.id))).user
    assert own == (await admin.users.GetUser(pb.GetUserRequest(user_id=ada.id))).user
    for foreign in (admin.id, str(uuid.uuid4()), SYSTEM):
        said = await refused(ada.users.GetUser(pb.GetUserRequest(user_id=foreign)))
        assert (said.code, said.reason) == (grpc.StatusCode.NOT_FOUND, "USER_NOT_FOUND")
    denied = await refused(ada.users.ListUsers(pb.ListUsersRequest()))
    assert denied.code == grpc.StatusCode.PERMISSION_DENIED

    first = await admin.users.ListUsers(pb.ListUsersRequest(page_size=1))
    rest = await admin.users.ListUsers(
        pb.ListUsersRequest(page_size=1, page_token=first.next_page_token)
    )
    listed = [user.id for page in (first, rest) for user in page.users]
    assert listed == sorted([ada.id, admin.id], reverse=True)  # ids grow with time
    assert rest.next_page_token == ""
    actions = [(actor, action) for actor, action, _, _ in trail(sql)]
    assert actions == [(admin.id, "user.read"), (admin.id, "users.list"), (admin.id, "users.list")]


async def test_a_new_role_ends_the_sessions_and_is_noted(
    registry: Registry, admin: Account, ada: Account, sql: psycopg.Connection
) -> None:
    """X5, X23, X52."""
    request = pb.UpdateUserRequest(
        user_id=ada.id, role=auth_pb2.ROLE_VIEWER, update_mask=FieldMask(paths=["role"])
    )
    changed = await admin.users.UpdateUser(request)
    assert changed.user.role == auth_pb2.ROLE_VIEWER
    assert (await _who(ada)).code == grpc.StatusCode.UNAUTHENTICATED
    now = await again(registry, "ada")
    known = await now.sessions.GetCaller(sessions.GetCallerRequest())
    assert known.caller.role == auth_pb2.ROLE_VIEWER
    assert trail(sql) == [
        (
            admin.id,
            "user.update",
            {"role": "user", "is_owner": False, "state": "active"},
            {"role": "viewer", "is_owner": False, "state": "active", "renamed": False},
        )
    ]


async def test_a_name_is_the_users_own_to_change_and_a_role_is_not(ada: Account) -> None:
    """X17: there is no way to ask for it."""
    changed = await ada.users.UpdateProfile(
        pb.UpdateProfileRequest(first_name="Ada", update_mask=FieldMask(paths=["first_name"]))
    )
    assert (changed.user.first_name, changed.user.last_name) == ("Ada", "")
    said = await refused(
        ada.users.UpdateProfile(pb.UpdateProfileRequest(update_mask=FieldMask(paths=["role"])))
    )
    assert (said.code, said.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UPDATE_MASK_INVALID")
    denied = await refused(
        ada.users.UpdateUser(
            pb.UpdateUserRequest(
                user_id=ada.id, role=auth_pb2.ROLE_ADMIN, update_mask=FieldMask(paths=["role"])
            )
        )
    )
    assert denied.code == grpc.StatusCode.PERMISSION_DENIED


async def test_a_viewer_keeps_its_own_account_too(registry: Registry, database: Database) -> None:
    viewer = await signed_in(registry, database, "vic", role="viewer")
    request = pb.UpdateProfileRequest(
        last_name="Vic",
        update_mask=FieldMask(paths=["last_name"]),
        request_id=str(uuid.uuid4()),
    )
    first = await viewer.users.UpdateProfile(request)
    assert first == await viewer.users.UpdateProfile(request)
    assert first.user.last_name == "Vic"


async def test_a_change_of_what_has_changed_since_is_refused(admin: Account, ada: Account) -> None:
    read = (await admin.users.GetUser(pb.GetUserRequest(user_id=ada.id))).user
    mask = FieldMask(paths=["first_name"])
    await ada.users.UpdateProfile(pb.UpdateProfileRequest(first_name="A", update_mask=mask))
    for call in (
        admin.users.UpdateUser(
            pb.UpdateUserRequest(user_id=ada.id, first_name="B", update_mask=mask, etag=read.etag)
        ),
        admin.users.DeactivateUser(pb.DeactivateUserRequest(user_id=ada.id, etag=read.etag)),
        admin.users.AnonymizeUser(pb.AnonymizeUserRequest(user_id=ada.id, etag=read.etag)),
    ):
        said = await refused(call)
        assert (said.code, said.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
        assert said.facts["etag"] != read.etag


async def test_who_is_deactivated_is_out_at_once_and_comes_back_as_before(
    registry: Registry, admin: Account, ada: Account
) -> None:
    """X5."""
    out = await admin.users.DeactivateUser(pb.DeactivateUserRequest(user_id=ada.id))
    assert out.user.state == pb.USER_STATE_DEACTIVATED
    assert (await _who(ada)).code == grpc.StatusCode.UNAUTHENTICATED
    request = sessions.SignInRequest(email="ada@example.org", password=PASSWORD)
    assert (await refused(caller(registry).sessions.SignIn(request))).reason == "SIGN_IN_REFUSED"

    back = await admin.users.ReactivateUser(pb.ReactivateUserRequest(user_id=ada.id))
    assert back.user.state == pb.USER_STATE_ACTIVE
    assert (await again(registry, "ada")).id == ada.id
    assert (await _who(ada)).code == grpc.StatusCode.UNAUTHENTICATED  # the old session stays ended


async def test_who_is_anonymised_leaves_what_was_made_and_nothing_personal(
    registry: Registry, admin: Account, ada: Account, sql: psycopg.Connection
) -> None:
    mask = FieldMask(paths=["first_name", "last_name"])
    await ada.users.UpdateProfile(
        pb.UpdateProfileRequest(first_name="Augusta", last_name="Lovelace", update_mask=mask)
    )
    node = factories.node(sql, factories.User(uuid.UUID(ada.id), ada.token))
    gone = (await admin.users.AnonymizeUser(pb.AnonymizeUserRequest(user_id=ada.id))).user
    assert gone.state == pb.USER_STATE_ANONYMIZED
    assert gone.email == f"anonymized-{ada.id}@qflow.invalid"
    assert (await _who(ada)).code == grpc.StatusCode.UNAUTHENTICATED
    kept = sql.execute("SELECT created_by FROM python_nodes WHERE id = %s", (node.id,)).fetchone()
    assert kept == (uuid.UUID(ada.id),)
    for table in ("users", "tenants", "user_sessions", "audit_events", "credential_tokens"):
        for (row,) in sql.execute(f"SELECT t::text FROM {table} t".encode()):
            for personal in ("ada@example.org", "Augusta", "Lovelace"):
                assert personal not in row, table

    repeated = await admin.users.AnonymizeUser(pb.AnonymizeUserRequest(user_id=ada.id))
    assert repeated.user == gone
    for call in (
        admin.users.ReactivateUser(pb.ReactivateUserRequest(user_id=ada.id)),
        admin.users.DeactivateUser(pb.DeactivateUserRequest(user_id=ada.id)),
        admin.users.UpdateUser(pb.UpdateUserRequest(user_id=ada.id, update_mask=mask)),
    ):
        said = await refused(call)
        assert (said.code, said.reason) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "USER_ANONYMIZED",
        )
    # The address is free again.
    assert (await admin.users.InviteUser(_invite("ada@example.org"))).user.id != ada.id


async def test_the_owner_is_neither_demoted_nor_shut_out_nor_forgotten(
    owner: Account, admin: Account, sql: psycopg.Connection
) -> None:
    """X19: not even by the owner."""
    for one in (admin, owner):
        for call in (
            one.users.UpdateUser(
                pb.UpdateUserRequest(
                    user_id=owner.id,
                    role=auth_pb2.ROLE_USER,
                    update_mask=FieldMask(paths=["role"]),
                )
            ),
            one.users.DeactivateUser(pb.DeactivateUserRequest(user_id=owner.id)),
            one.users.AnonymizeUser(pb.AnonymizeUserRequest(user_id=owner.id)),
        ):
            said = await refused(call)
            assert (said.code, said.reason) == (
                grpc.StatusCode.FAILED_PRECONDITION,
                "USER_IS_OWNER",
            )
    assert trail(sql) == []


async def test_the_owner_alone_makes_another_the_owner(
    owner: Account, admin: Account, ada: Account, sql: psycopg.Connection
) -> None:
    """X19, I26."""
    request = pb.TransferOwnershipRequest(user_id=ada.id)
    denied = await refused(admin.users.TransferOwnership(request))
    assert (denied.code, denied.reason) == (grpc.StatusCode.PERMISSION_DENIED, "NOT_THE_OWNER")
    taken = await refused(
        admin.users.CreatePasswordReset(pb.CreatePasswordResetRequest(user_id=owner.id))
    )
    assert taken.reason == "NOT_THE_OWNER"  # or the owner's password would be the administrator's
    invited = (await admin.users.InviteUser(_invite())).user
    absent = await refused(
        owner.users.TransferOwnership(pb.TransferOwnershipRequest(user_id=invited.id))
    )
    assert (absent.code, absent.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "USER_NOT_ACTIVE",
    )

    made = (await owner.users.TransferOwnership(request)).user
    assert (made.is_owner, made.role) == (True, auth_pb2.ROLE_ADMIN)
    owners = sql.execute("SELECT id::text FROM users WHERE is_owner").fetchall()
    assert owners == [(ada.id,)]
    again_denied = await refused(owner.users.TransferOwnership(request))
    assert again_denied.reason == "NOT_THE_OWNER"
    await admin.users.DeactivateUser(pb.DeactivateUserRequest(user_id=owner.id))


async def test_ownership_given_to_many_at_once_is_one_users(
    owner: Account, admin: Account, ada: Account, sql: psycopg.Connection
) -> None:
    """I26."""
    calls = [
        owner.users.TransferOwnership(pb.TransferOwnershipRequest(user_id=each.id))
        for each in (admin, ada) * 5
    ]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert len([each for each in outcomes if not isinstance(each, BaseException)]) == 1
    assert sql.execute("SELECT count(*) FROM users WHERE is_owner").fetchone() == (1,)


async def test_the_suites_own_user_is_nobody_to_administrators(admin: Account) -> None:
    for call in (
        admin.users.GetUser(pb.GetUserRequest(user_id=SYSTEM)),
        admin.users.ReactivateUser(pb.ReactivateUserRequest(user_id=SYSTEM)),
        admin.users.CreatePasswordReset(pb.CreatePasswordResetRequest(user_id=SYSTEM)),
        admin.users.AnonymizeUser(pb.AnonymizeUserRequest(user_id=SYSTEM)),
    ):
        assert (await refused(call)).code == grpc.StatusCode.NOT_FOUND
