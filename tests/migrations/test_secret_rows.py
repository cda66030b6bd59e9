"""Secrets in the database: who reads what is sealed, and whose nodes may be granted them."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from migrations.roles import LOGINS
from tests.migrations.subject import Subject


@pytest.mark.parametrize("login", LOGINS)
def test_one_login_reads_what_is_sealed(login: str, mended: Subject) -> None:
    for column in ("wrapped_key", "sealed"):
        assert (login == "qflow_runner_engine",) == mended.db.execute(
            "SELECT has_column_privilege(%s, 'secret_versions', %s, 'SELECT')", (login, column)
        ).fetchone()


def _secret(s: Subject, owner: UUID) -> UUID:
    secret = uuid4()
    s.db.execute(
        "INSERT INTO secrets (id, tenant_id, name, current_version, last_version, created_by,"
        " updated_by) VALUES (%s, %s, 'A', 1, 1, %s, %s)",
        (secret, owner, owner, owner),
    )
    return secret


_VERSION = (
    "INSERT INTO secret_versions (secret_id, version, key_id, wrapped_key, sealed)"
    " VALUES (%s, 1, 'k1', decode(repeat('00', 60), 'hex'), '\\x00')"
)
_GRANT = "INSERT INTO secret_grants (secret_id, node_id) VALUES (%s, %s)"


def test_secrets_are_changed_by_who_leads_their_tenant_alone(mended: Subject) -> None:
    """X14, X17."""
    owner, other = mended.user(), mended.user()
    secret = _secret(mended, owner)
    for user, role, may in (
        (owner, "user", True),
        (owner, "viewer", False),
        (other, "user", False),
    ):
        with mended.acting(user, "qflow_runner", role=role):
            assert (user == owner) == bool(mended.count("SELECT 1 FROM secrets"))
            assert may == mended.does(lambda: mended.count(_VERSION, secret))
            assert may == bool(mended.count("UPDATE secrets SET description = 'x'"))
            if not may:
                assert mended.count("DELETE FROM secrets") == 0


def test_a_member_of_a_team_who_does_not_lead_it_grants_nothing(mended: Subject) -> None:
    ada, ben, team = mended.user(), mended.user(), uuid4()
    mended.db.execute("INSERT INTO tenants (id, kind, name) VALUES (%s, 'team', 't')", (team,))
    for user, role in ((ada, "admin"), (ben, "user")):
        mended.db.execute("INSERT INTO tenant_members VALUES (%s, %s, %s)", (team, user, role))
    secret, node = _secret(mended, ada), mended.insert("python_nodes", owner=ada)
    mended.db.execute("UPDATE secrets SET tenant_id = %s", (team,))
    mended.db.execute("UPDATE python_nodes SET tenant_id = %s", (team,))
    for user, may in ((ada, True), (ben, False)):
        with mended.acting(user, "qflow_runner"):
            mended.db.execute("SELECT set_config('qflow.tenant_id', %s, true)", (str(team),))
            assert 1 == mended.count("SELECT 1 FROM secrets")
            assert may == mended.does(lambda: mended.count(_GRANT, secret, node))


def test_nothing_is_granted_to_a_strangers_node_nor_of_a_strangers_secret(
    mended: Subject,
) -> None:
    """X16, X21."""
    owner, other = mended.user(), mended.user()
    mine, theirs = _secret(mended, owner), _secret(mended, other)
    node = mended.insert("python_nodes", owner=owner)
    public = mended.insert("python_nodes", owner=other, is_public=True)
    with mended.acting(owner, "qflow_runner"):
        assert mended.does(lambda: mended.count(_GRANT, mine, node))
        assert not mended.does(lambda: mended.count(_GRANT, mine, public))
        assert not mended.does(lambda: mended.count(_GRANT, theirs, node))


_INDEX = (
    "INSERT INTO package_indexes (name, url, username, secret_id)"
    " VALUES ('corp', 'https://a.example/', 'u', %s)"
)


def test_indexes_are_changed_by_who_leads_their_tenant_and_send_its_own_secrets_alone(
    mended: Subject,
) -> None:
    """X14, X16, X17: a stranger's secret is sent nowhere."""
    owner, other = mended.user(), mended.user()
    mine, theirs = _secret(mended, owner), _secret(mended, other)
    with mended.acting(owner, "qflow_runner", role="viewer"):
        assert not mended.does(lambda: mended.count(_INDEX, mine))
    with mended.acting(owner, "qflow_runner"):
        assert not mended.does(lambda: mended.count(_INDEX, theirs))
        assert 1 == mended.count(_INDEX, mine)
        assert not mended.does(
            lambda: mended.count("UPDATE package_indexes SET secret_id = %s", theirs)
        )
    for user, role, seen, may in (
        (other, "user", 0, 0),
        (owner, "viewer", 1, 0),
        (owner, "user", 1, 1),
    ):
        with mended.acting(user, "qflow_runner", role=role):
            assert seen == mended.count("SELECT 1 FROM package_indexes")
            assert may == mended.count("UPDATE package_indexes SET url = 'https://b.example/'")
            assert may == mended.count("DELETE FROM package_indexes")
