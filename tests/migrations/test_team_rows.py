"""Teams in the database: what a login may do to them whatever its service believes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID, uuid4

import pytest

from tests.migrations.subject import Subject

_AUTH = "qflow_registry_auth"


def _team(s: Subject, **members: UUID) -> UUID:
    team = uuid4()
    s.db.execute("INSERT INTO tenants (id, kind, name) VALUES (%s, 'team', 't')", (team,))
    for role, user in members.items():
        s.db.execute("INSERT INTO tenant_members VALUES (%s, %s, %s)", (team, user, role))
    return team


@contextmanager
def _acting(
    s: Subject, user: UUID, login: str, *, tenant: UUID | None = None, role: str = "user"
) -> Iterator[None]:
    with s.acting(user, login, role=role):
        if tenant is not None:
            s.db.execute("SELECT set_config('qflow.tenant_id', %s, true)", (str(tenant),))
        yield


def test_rows_of_a_team_are_its_own_and_no_members_personal_ones(mended: Subject) -> None:
    """X14, X22: whoever is in it sees them there, and there alone."""
    ada, ben = mended.user(), mended.user()
    team = _team(mended, admin=ada, user=ben)
    node = mended.insert("python_nodes", owner=ada)
    mended.db.execute("UPDATE python_nodes SET tenant_id = %s WHERE id = %s", (team, node))
    read = "SELECT 1 FROM python_nodes"
    for user in (ada, ben):
        with _acting(mended, user, "qflow_registry"):
            assert 0 == mended.count(read)
        with _acting(mended, user, "qflow_registry", tenant=team):
            assert 1 == mended.count(read)
            assert 1 == mended.count("UPDATE python_nodes SET name = 'x'")
        with _acting(mended, user, "qflow_registry", tenant=team, role="viewer"):
            assert 1 == mended.count(read)
            assert 0 == mended.count("UPDATE python_nodes SET name = 'x'")


def test_nobody_puts_themselves_or_others_into_a_team(mended: Subject) -> None:
    """X17, X21: but its founder, and who is invited, as what the invitation says."""
    ada, ben, eve = mended.user(email="ada@x.org"), mended.user(email="ben@x.org"), mended.user()
    team = _team(mended, admin=ada)
    mended.db.execute(
        "INSERT INTO tenant_invitations (id, tenant_id, email, role, created_by, expires_at)"
        " VALUES (gen_random_uuid(), %s, 'ben@x.org', 'viewer', %s, 'tomorrow')",
        (team, ada),
    )
    join = "INSERT INTO tenant_members VALUES (%s, %s, %s)"
    cases = (
        (eve, eve, "viewer", False),
        (ada, eve, "user", False),
        (ben, ben, "admin", False),
        (ben, eve, "viewer", False),
        (ben, ben, "viewer", True),
    )
    for caller, member, role, may in cases:
        with _acting(mended, caller, _AUTH):
            assert may == mended.does(lambda m=member, r=role: mended.count(join, team, m, r))


def test_an_invitation_that_is_over_lets_nobody_in(mended: Subject) -> None:
    ada, ben = mended.user(), mended.user(email="ben@x.org")
    team = _team(mended, admin=ada)
    mended.db.execute(
        "INSERT INTO tenant_invitations (id, tenant_id, email, role, created_by, expires_at)"
        " VALUES (gen_random_uuid(), %s, 'ben@x.org', 'user', %s, now() - interval '1 second')",
        (team, ada),
    )
    with _acting(mended, ben, _AUTH):
        join = "INSERT INTO tenant_members VALUES (%s, %s, 'user')"
        assert not mended.does(lambda: mended.count(join, team, ben))


def test_only_who_leads_a_team_changes_what_others_are_and_invites(mended: Subject) -> None:
    ada, ben, cleo = mended.user(), mended.user(), mended.user()
    team = _team(mended, admin=ada, user=ben, viewer=cleo)
    invite = (
        "INSERT INTO tenant_invitations (id, tenant_id, email, role, created_by, expires_at)"
        " VALUES (gen_random_uuid(), %s, 'x@x.org', 'admin', %s, 'tomorrow')"
    )
    for user, leads in ((ben, False), (cleo, False), (ada, True)):
        with _acting(mended, user, _AUTH):
            promote = "UPDATE tenant_members SET role = 'admin' WHERE user_id = %s"
            assert leads == bool(mended.count(promote, cleo))
            assert leads == mended.does(lambda u=user: mended.count(invite, team, u))
            assert leads == bool(mended.count("UPDATE tenants SET name = 'x' WHERE id = %s", team))
    with _acting(mended, ben, _AUTH):
        assert 0 == mended.count("DELETE FROM tenant_members WHERE user_id = %s", ada)
        assert 1 == mended.count("DELETE FROM tenant_members WHERE user_id = %s", ben)


def test_an_invitation_is_seen_by_both_sides_and_nobody_else(mended: Subject) -> None:
    ada, ben, eve = mended.user(), mended.user(email="ben@x.org"), mended.user()
    team = _team(mended, admin=ada, user=eve)
    mended.db.execute(
        "INSERT INTO tenant_invitations (id, tenant_id, email, role, created_by, expires_at)"
        " VALUES (gen_random_uuid(), %s, 'ben@x.org', 'user', %s, 'tomorrow')",
        (team, ada),
    )
    for user, seen in ((ada, 1), (ben, 1), (eve, 0)):
        with _acting(mended, user, _AUTH):
            assert seen == mended.count("SELECT 1 FROM tenant_invitations")


@pytest.mark.parametrize("table", ["python_nodes", "workflows"])
def test_a_definition_moves_from_who_leads_its_tenant_to_where_they_may_create(
    mended: Subject, table: str
) -> None:
    """X16, X21: by the one login that may write whose it is."""
    ada, ben = mended.user(), mended.user()
    team = _team(mended, admin=ben, user=ada)
    read_only, others = _team(mended, admin=ben, viewer=ada), _team(mended, admin=ben)
    thing = mended.workflow(ada) if table == "workflows" else mended.insert(table, owner=ada)
    move = f"UPDATE {table} SET tenant_id = %s WHERE id = %s"

    def moved(target: UUID) -> bool:
        found = [0]

        def go() -> None:
            found[0] = mended.count(move, target, thing)

        return mended.does(go) and bool(found[0])

    with _acting(mended, ben, _AUTH, tenant=team):
        assert not moved(team)  # it is not ben's to give
    with _acting(mended, ada, _AUTH, role="viewer"):
        assert not moved(team)
    with _acting(mended, ada, _AUTH):
        assert not moved(read_only)
        assert not moved(others)
        assert moved(team)
        assert 1 == mended.count(move, team, thing)
    with _acting(mended, ada, _AUTH, tenant=team):
        assert not moved(ada)  # it is the team's now, which ada does not lead
    with _acting(mended, ben, _AUTH, tenant=team):
        assert moved(ben)


def test_a_token_is_nobodys_in_a_team_that_its_user_is_not_in(mended: Subject) -> None:
    """X4, X9: the database says so each time that it is asked."""
    ada, ben = mended.user(), mended.user(role="admin")
    team = _team(mended, admin=ada, user=ben)
    digest = "b" * 64
    mended.db.execute(
        "INSERT INTO user_sessions (user_id, session_token, expires_at)"
        " VALUES (%s, %s, 'tomorrow')",
        (ben, digest),
    )
    ask = "SELECT tenant_id, role, is_owner, team_role FROM authenticate(%s, %s)"

    def told(tenant: UUID | None) -> object:
        return mended.db.execute(ask, (digest, tenant)).fetchone()

    assert (ben, "admin", False, "") == told(None) == told(ben)
    assert (team, "user", False, "user") == told(team)
    assert (None, "viewer", False, "") == told(ada) == told(uuid4())
    mended.db.execute("DELETE FROM tenant_members WHERE user_id = %s", (ben,))
    assert (None, "viewer", False, "") == told(team)
    assert None is mended.db.execute(ask, ("c" * 64, team)).fetchone()
