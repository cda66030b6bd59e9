"""The audit history in the database: who may add to it, and that nobody changes it."""

from __future__ import annotations

from uuid import UUID, uuid4

import psycopg
import pytest

from migrations.roles import LOGINS
from tests.migrations.subject import Subject

_WRITERS = {
    "qflow_registry_engine",
    "qflow_orchestrator_engine",
    "qflow_runner_engine",
    "qflow_telemetry",
}
_TABLES = ("audit_chains", "audit_records", "audit_seals", "audit_checkpoints")
_CHAIN = b"INSERT INTO audit_chains (id, service) VALUES (%s, 'a')"
_SEAL = (
    b"INSERT INTO audit_seals (chain_id, number, first_record, last_record, previous, digest,"
    b" sealed_at) VALUES (%s, %s, %s, %s, sha256('a'), sha256('b'),"
    b" now() - make_interval(days => %s))"
)
_RECORD = (
    b"INSERT INTO audit_records (chain_id, number, tenant_id, actor_id, session_id, method,"
    b" outcome, reason, targets, before, after, call_id, occurred_at)"
    b" VALUES (%s, %s, gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), '/a/B', 'OK', '',"
    b" '[]', '{}', '{}', 'x', now() - make_interval(days => %s))"
)


def _chain(s: Subject, *, days: int = 0, seals: int = 1) -> UUID:
    """A chain with one record under each seal."""
    chain = uuid4()
    s.db.execute(_CHAIN, (chain,))
    for number in range(1, seals + 1):
        s.db.execute(_SEAL, (chain, number, number, number, days))
        s.db.execute(_RECORD, (chain, number, days))
    return chain


@pytest.mark.parametrize("login", LOGINS)
def test_no_service_changes_or_removes_what_was_noted_of_calls(login: str, mended: Subject) -> None:
    """X23: neither what it wrote itself nor anything else."""
    user = mended.user()
    with mended.acting(user, login, role="admin"):
        if login in _WRITERS:
            _chain(mended)
    _chain(mended)
    with mended.acting(user, login, role="admin"):
        for table in _TABLES:
            for statement in (
                f"UPDATE {table} SET chain_id = chain_id"
                if table != "audit_chains"
                else "UPDATE audit_chains SET service = 'b'",
                f"TRUNCATE {table} CASCADE",
            ):
                with pytest.raises(psycopg.Error), mended.db.transaction():
                    mended.db.execute(statement.encode())
            if login == "qflow_telemetry_maint" and table in {"audit_records", "audit_seals"}:
                removed = mended.db.execute(f"DELETE FROM {table}".encode()).rowcount
                assert removed == 0
            else:
                with pytest.raises(psycopg.Error), mended.db.transaction():
                    mended.db.execute(f"DELETE FROM {table}".encode())


def test_the_owner_of_the_schema_changes_nothing_either(mended: Subject) -> None:
    """X23: a slip of an operator is refused as well."""
    _chain(mended)
    for statement in (
        b"UPDATE audit_records SET outcome = 'NOT_FOUND'",
        b"UPDATE audit_seals SET digest = previous",
        b"DELETE FROM audit_records",
        b"DELETE FROM audit_seals",
        b"DELETE FROM audit_chains",
        b"TRUNCATE audit_records",
    ):
        with pytest.raises(psycopg.Error, match=r"audit history|foreign key"):
            with mended.db.transaction():
                mended.db.execute(statement)
    assert 1 == mended.count("SELECT 1 FROM audit_records")


@pytest.mark.parametrize("login", LOGINS)
def test_a_service_adds_to_its_own_chains_alone(login: str, mended: Subject) -> None:
    """X22, X46."""
    others = _chain(mended)
    user = mended.user()
    with mended.acting(user, login, role="admin"):
        if login in _WRITERS:
            _chain(mended)
        for statement, values in (
            (_RECORD, (others, 2, 0)),
            (_SEAL, (others, 2, 2, 2, 0)),
            (b"INSERT INTO audit_chains (id, service, login) VALUES (%s, 'a', 'b')", (uuid4(),)),
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege), mended.db.transaction():
                mended.db.execute(statement, values)
        if login in _WRITERS:
            with pytest.raises(psycopg.errors.InsufficientPrivilege), mended.db.transaction():
                mended.db.execute(b"SELECT 1 FROM audit_records")
            assert 1 == mended.count("SELECT 1 FROM audit_seals")


def test_what_is_old_goes_and_leaves_a_checkpoint(mended: Subject) -> None:
    """G6, X23."""
    old, young = _chain(mended, days=400, seals=3), _chain(mended, days=100)
    digest = mended.db.execute(
        "SELECT digest FROM audit_seals WHERE chain_id = %s AND number = 3", (old,)
    ).fetchone()
    with mended.acting(None, "qflow_telemetry_maint"):
        removed = [
            mended.db.execute("SELECT cleanup_old_audit_records('365 days', 2)").fetchone()
            for _ in range(3)
        ]
    assert [(2,), (1,), (0,)] == removed
    assert [(young,)] == mended.db.execute("SELECT chain_id FROM audit_records").fetchall()
    assert [(2, 2), (3, 3)] == mended.db.execute(
        "SELECT seal_number, last_record FROM audit_checkpoints WHERE chain_id = %s ORDER BY 1",
        (old,),
    ).fetchall()
    assert (
        digest
        == mended.db.execute(
            "SELECT digest FROM audit_checkpoints ORDER BY seal_number DESC LIMIT 1"
        ).fetchone()
    )


def test_nothing_younger_than_30_days_is_forgotten_whatever_is_asked(mended: Subject) -> None:
    chain = _chain(mended, days=20)
    with mended.acting(None, "qflow_telemetry_maint"):
        assert (0,) == mended.db.execute(
            "SELECT cleanup_old_audit_records('1 second', 100)"
        ).fetchone()
        with pytest.raises(psycopg.errors.RestrictViolation), mended.db.transaction():
            mended.db.execute(
                b"INSERT INTO audit_checkpoints (chain_id, seal_number, last_record, digest)"
                b" VALUES (%s, 1, 1, sha256('b'))",
                (chain,),
            )
    assert 1 == mended.count("SELECT 1 FROM audit_records")
