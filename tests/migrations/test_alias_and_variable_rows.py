"""Aliases, their history and variables: whose rows they are, and what never changes."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from tests.migrations.subject import Subject

_CHANGE = (
    "INSERT INTO workflow_alias_changes (id, workflow_id, alias, kind, to_version)"
    " VALUES (%s, %s, %s, 'set', 1)"
)
_ALIAS = (
    "INSERT INTO workflow_aliases (workflow_id, name, version, promotion_id, change_id)"
    " VALUES (%s, %s, %s, %s, %s)"
)


def _alias(s: Subject, workflow: UUID, *, name: str = "prod", version: int = 1) -> None:
    change = uuid4()
    s.db.execute(_CHANGE, (change, workflow, name))
    s.db.execute(_ALIAS.encode(), (workflow, name, version, change, change))


def test_only_its_tenant_moves_an_alias_and_reads_its_history(mended: Subject) -> None:
    """S9, X14."""
    owner, other = mended.user(), mended.user()
    workflow = mended.workflow(owner)
    with mended.acting(owner, "qflow_registry"):
        _alias(mended, workflow)
    with mended.acting(other, "qflow_registry"):
        assert 0 == mended.count("SELECT 1 FROM workflow_aliases")
        assert not mended.does(lambda: _alias(mended, workflow, name="mine"))
    mended.db.execute("UPDATE workflows SET is_template = true")
    for login in ("qflow_registry", "qflow_orchestrator"):
        with mended.acting(other, login):
            assert 1 == mended.count("SELECT 1 FROM workflow_aliases")
        with mended.acting(None, login):
            assert 0 == mended.count("SELECT 1 FROM workflow_aliases")
    with mended.acting(other, "qflow_registry"):
        assert 0 == mended.count("SELECT 1 FROM workflow_alias_changes")
        assert 0 == mended.count("UPDATE workflow_aliases SET version = 1")
        assert 0 == mended.count("DELETE FROM workflow_aliases")
        assert not mended.does(lambda: _alias(mended, workflow, name="mine"))
    with mended.acting(owner, "qflow_registry", role="viewer"):
        assert 1 == mended.count("SELECT 1 FROM workflow_alias_changes")
        assert 0 == mended.count("UPDATE workflow_aliases SET version = 1")
        assert not mended.does(lambda: _alias(mended, workflow, name="mine"))


def test_the_history_of_an_alias_is_only_added_to(mended: Subject) -> None:
    """Not by its tenant, not by the owner of the tables."""
    owner = mended.user()
    workflow = mended.workflow(owner)
    with mended.acting(owner, "qflow_registry"):
        _alias(mended, workflow)
        for change in (
            "UPDATE workflow_alias_changes SET alias = 'other'",
            "DELETE FROM workflow_alias_changes",
        ):
            assert not mended.does(lambda change=change: mended.count(change))
    # Not even the owner of the tables writes over it.
    assert not mended.does(lambda: mended.count("UPDATE workflow_alias_changes SET alias = 'x'"))


@pytest.mark.parametrize(("name", "version"), [("Prod", 1), ("", 1), ("1", 1), ("prod", 2)])
def test_an_alias_has_a_plain_name_and_a_version_that_exists(
    mended: Subject, name: str, version: int
) -> None:
    owner = mended.user()
    workflow = mended.workflow(owner)
    with mended.acting(owner, "qflow_registry"):
        assert not mended.does(lambda: _alias(mended, workflow, name=name, version=version))
        assert mended.does(lambda: _alias(mended, workflow))


def test_aliases_and_their_history_go_with_their_workflow(mended: Subject) -> None:
    owner = mended.user()
    workflow = mended.workflow(owner)
    with mended.acting(owner, "qflow_registry"):
        _alias(mended, workflow)
    mended.db.execute("DELETE FROM workflows WHERE id = %s", (workflow,))
    assert 0 == mended.value("SELECT count(*) FROM workflow_alias_changes")


def _variable(s: Subject, name: str = "by", **values: object) -> None:
    columns = ["name", "type", "value", *values]
    statement = (
        f"INSERT INTO variables ({', '.join(columns)}) VALUES ({', '.join(['%s'] * len(columns))})"
    )
    s.db.execute(statement.encode(), (name, '{"t":"int"}', "1", *values.values()))


def test_variables_are_their_tenants_alone(mended: Subject) -> None:
    """S9, X14: also those of a workflow that others may read."""
    owner, other = mended.user(), mended.user()
    workflow = mended.workflow(owner, is_template=True)
    with mended.acting(owner, "qflow_registry"):
        _variable(mended)
        _variable(mended, workflow_id=workflow)
        assert not mended.does(lambda: _variable(mended, tenant_id=other))
        assert not mended.does(lambda: mended.count("UPDATE variables SET tenant_id = %s", other))
    with mended.acting(other, "qflow_registry"):
        assert 0 == mended.count("SELECT 1 FROM variables")
        assert 0 == mended.count("UPDATE variables SET value = '2'")
        assert 0 == mended.count("DELETE FROM variables")
        assert not mended.does(lambda: _variable(mended, workflow_id=workflow))
        assert mended.does(lambda: _variable(mended))
    with mended.acting(None, "qflow_registry"):
        assert 0 == mended.count("SELECT 1 FROM variables")
    with mended.acting(owner, "qflow_registry", role="viewer"):
        assert 2 == mended.count("SELECT 1 FROM variables")
        assert 0 == mended.count("UPDATE variables SET value = '2'")
        assert not mended.does(lambda: _variable(mended, "new"))


def test_a_variable_is_one_per_name_and_place_and_not_too_large(mended: Subject) -> None:
    owner = mended.user()
    workflow = mended.workflow(owner)
    with mended.acting(owner, "qflow_registry"):
        _variable(mended)
        _variable(mended, workflow_id=workflow)
        assert not mended.does(lambda: _variable(mended))
        assert not mended.does(lambda: _variable(mended, workflow_id=workflow))
        assert not mended.does(lambda: _variable(mended, "a-b"))
        for chars, taken in ((65_534, True), (65_535, False)):
            value = f'"{"x" * chars}"'
            assert taken == mended.does(
                lambda value=value: mended.count("UPDATE variables SET value = %s", value)
            )
