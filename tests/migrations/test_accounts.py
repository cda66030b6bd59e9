"""What accounts are kept in: who may read it, who may change it, and what no row may say."""

from __future__ import annotations

from uuid import UUID, uuid4

import psycopg
import pytest

from migrations.roles import LOGINS
from tests.migrations.subject import Subject

_TABLES = ("credential_tokens", "user_service_tokens", "sign_in_attempts", "audit_events")
_OTHERS = [name for name in LOGINS if name != "qflow_registry_auth"]


def _rows(s: Subject) -> UUID:
    """A user with a row in each table."""
    user = s.user()
    s.db.execute(
        "INSERT INTO credential_tokens (user_id, tenant_id, purpose, token_sha256, expires_at,"
        " created_by) VALUES (%s, %s, 'invitation', %s, 'tomorrow', %s)",
        (user, user, "a" * 64, user),
    )
    _service_token(s, user, "b" * 64)
    s.db.execute(
        "INSERT INTO sign_in_attempts (key, failures, failed_at) VALUES (%s, 1, now())",
        ("c" * 64,),
    )
    s.db.execute(
        "INSERT INTO audit_events (id, tenant_id, actor_id, action, target_kind, target_id)"
        " VALUES (%s, %s, %s, 'user.read', 'user', %s)",
        (uuid4(), user, user, user),
    )
    return user


def _service_token(
    s: Subject, user: UUID, digest: str, *, scopes: str = "{nodes:read}", expires: str = "tomorrow"
) -> None:
    s.db.execute(
        "INSERT INTO user_service_tokens (tenant_id, user_id, name, token_sha256, scopes,"
        " expires_at) VALUES (%s, %s, %s, %s, %s, %s)",
        (user, user, digest, digest, scopes, expires),
    )


@pytest.mark.parametrize("login", _OTHERS)
def test_one_login_alone_touches_what_accounts_are_kept_in(login: str, mended: Subject) -> None:
    """X22, X46: whatever a service that is taken over asks."""
    user = _rows(mended)
    with mended.acting(user, login, role="admin"):
        for table in _TABLES:
            for statement in (
                f"SELECT 1 FROM {table}",
                f"DELETE FROM {table}",
                f"INSERT INTO {table} DEFAULT VALUES",
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege), mended.db.transaction():
                    mended.db.execute(statement.encode())


@pytest.mark.parametrize("login", LOGINS)
def test_no_service_changes_or_removes_what_was_noted(login: str, mended: Subject) -> None:
    """X23, S58."""
    user = _rows(mended)
    with mended.acting(user, login, role="admin"):
        for statement in (
            b"UPDATE audit_events SET actor_id = target_id",
            b"DELETE FROM audit_events",
            b"TRUNCATE audit_events",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege), mended.db.transaction():
                mended.db.execute(statement)
    assert mended.count("SELECT 1 FROM audit_events") == 1


def test_the_login_for_identities_adds_to_the_trail(mended: Subject) -> None:
    user = mended.user()
    with mended.acting(user, "qflow_registry_auth"):
        mended.db.execute(
            "INSERT INTO audit_events (id, tenant_id, actor_id, action, target_kind, target_id)"
            " VALUES (gen_random_uuid(), %s, %s, 'user.read', 'user', %s)",
            (user, user, user),
        )
        assert mended.count("SELECT 1 FROM audit_events") == 1


def test_an_answer_is_kept_for_its_own_caller_a_viewer_too(mended: Subject) -> None:
    user, other = mended.user(), mended.user()
    insert = (
        "INSERT INTO idempotency_keys (tenant_id, caller_id, method, request_id, request_digest)"
        " VALUES (%s, %s, 'm', gen_random_uuid(), 'd')"
    )
    with mended.acting(user, "qflow_registry_auth", role="viewer"):
        mended.db.execute(insert, (user, user))
        assert mended.count("SELECT 1 FROM idempotency_keys") == 1
        for foreign in ((other, other), (user, other), (other, user)):
            assert not mended.does(lambda foreign=foreign: mended.db.execute(insert, foreign))
    with mended.acting(other, "qflow_registry_auth"):
        assert mended.count("SELECT 1 FROM idempotency_keys") == 0


@pytest.mark.parametrize(
    "change",
    [
        "is_active = false",
        "role = 'user'",
        "role = 'viewer'",
        "anonymized_at = now()",
    ],
)
def test_no_statement_leaves_an_owner_who_cannot_act(change: str, mended: Subject) -> None:
    """X19, I26."""
    mended.user(is_owner=True, role="admin")
    mended.user(role="admin")

    def demote() -> None:
        mended.db.execute(f"UPDATE users SET {change} WHERE is_owner".encode())

    assert not mended.does(demote)


def test_whoever_is_anonymised_has_no_name_no_password_and_no_way_in(mended: Subject) -> None:
    user = mended.user(first_name="Ada", password_hash="$argon2id$x")
    for kept in ("is_active = false", "password_hash = NULL", "first_name = NULL"):
        statement = f"UPDATE users SET anonymized_at = now(), {kept} WHERE id = '{user}'".encode()
        assert not mended.does(lambda statement=statement: mended.db.execute(statement))
    mended.db.execute(
        "UPDATE users SET anonymized_at = now(), is_active = false, password_hash = NULL,"
        " first_name = NULL WHERE id = %s",
        (user,),
    )


@pytest.mark.parametrize("digest", ["qf_raw", "A" * 64, "a" * 63, ""])
def test_no_table_takes_a_token_for_its_digest(digest: str, mended: Subject) -> None:
    """I25, X53."""
    user = mended.user()
    assert not mended.does(lambda: _service_token(mended, user, digest))
    assert not mended.does(
        lambda: mended.db.execute(
            "INSERT INTO credential_tokens (user_id, tenant_id, purpose, token_sha256, expires_at,"
            " created_by) VALUES (%s, %s, 'invitation', %s, 'tomorrow', %s)",
            (user, user, digest, user),
        )
    )


@pytest.mark.parametrize("scopes", ["{}", "{NULL}"])
def test_a_token_without_scopes_is_none(scopes: str, mended: Subject) -> None:
    """X17: an empty list would be read as all of them."""
    user = mended.user()
    assert not mended.does(lambda: _service_token(mended, user, "b" * 64, scopes=scopes))


def test_authenticate_finds_a_users_token_while_it_holds(mended: Subject) -> None:
    """X3, X5."""
    user = mended.user(email="a@example.com", role="viewer")
    out = mended.user(is_active=False)
    _service_token(mended, user, "b" * 64, scopes="{nodes:read,files:read}")
    _service_token(mended, user, "c" * 64, expires="now")
    _service_token(mended, out, "d" * 64)
    with mended.acting(None, "qflow_telemetry"):
        found = [
            mended.db.execute(
                "SELECT user_id, tenant_id, role, is_owner, kind, name, scopes"
                "  FROM authenticate(%s)",
                (digit * 64,),
            ).fetchone()
            for digit in "bcd"
        ]
    expected = (user, user, "viewer", False, "user", "a@example.com", ["nodes:read", "files:read"])
    assert found == [expected, None, None]
