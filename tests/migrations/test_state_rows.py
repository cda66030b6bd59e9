"""Which states a row may be in, each with each: whether it has begun, and whether it is over."""

from __future__ import annotations

from itertools import product
from typing import Any, Final
from uuid import uuid4

import migrations
from tests import factories
from tests.migrations.subject import Subject
from tests.support.database import Database

_OVER: Final = {"completed", "failed", "cancelled"}
_NODE_OVER: Final = _OVER | {"skipped", "quarantined"}
_OPEN: Final = {"pending", "running", "paused"}
_NODE_OPEN: Final = _OPEN | {"retrying", "waiting"}
_TIMES: Final = (None, "now")


def _states(over: set[str], still_open: set[str]) -> tuple[set[Any], set[Any]]:
    """Every status with every pair of times, and of those what a row may be in."""
    known = over | still_open
    states = set(product({*known, "bogus", ""}, _TIMES, _TIMES))
    return states, {
        (status, started, completed)
        for status, started, completed in states
        if status in known
        and (status in over) == (completed is not None)
        and (status != "pending" or started is None)
        and (status != "running" or started is not None)
    }


def _taken(s: Subject, table: str, states: set[Any], **values: Any) -> set[Any]:
    return {
        (status, started, completed)
        for status, started, completed in states
        if s.takes(table, status=status, started_at=started, completed_at=completed, **values)
    }


def test_a_node_is_in_one_of_its_states_and_has_their_times(mended: Subject) -> None:
    """S37, S43, I1."""
    states, allowed = _states(_NODE_OVER, _NODE_OPEN)
    run = mended.execution(mended.user())
    assert allowed == _taken(mended, "node_executions", states, workflow_execution_id=run)


def test_an_execution_is_in_one_of_its_states_and_has_their_times(mended: Subject) -> None:
    """S37, S43, I1."""
    states, allowed = _states(_OVER, _OPEN)
    owner = mended.user()
    workflow = mended.workflow(owner)
    taken = _taken(mended, "workflow_executions", states, owner=owner, workflow_id=workflow)
    assert allowed == taken


def test_nothing_that_flows_is_less_than_nothing(mended: Subject) -> None:
    """Whichever of them it is, and whatever the others are."""
    run = mended.execution(mended.user())
    amounts = (
        *("data_size_bytes", "serialization_time_ms", "transfer_time_ms"),
        *("serialization_time_us", "transfer_time_us"),
    )
    assert mended.takes("node_data_flow", workflow_execution_id=run)
    for one, others in product(amounts, (None, 0, 5)):
        values = dict.fromkeys(amounts, others)
        for amount, taken in ((None, True), (0, True), (-1, False)):
            about: dict[str, Any] = {**values, one: amount, "workflow_execution_id": run}
            assert taken is mended.takes("node_data_flow", **about), about
    for data_type, taken in (("arrow", True), ("npy", True), ("bogus", False)):
        assert taken is mended.takes(
            "node_data_flow", workflow_execution_id=run, data_type=data_type
        )


def test_rows_from_before_the_shorter_checks_are_there_after_them_and_go_back(
    blank: Database,
) -> None:
    """Up with rows in every state, down and up again; they are proven, not only believed."""
    migrations.upgrade(blank.url(), blank.home, revision="0050")
    with blank.connect() as db:
        owner = factories.user(db)
        node = factories.node(db, owner)
        workflow = factories.workflow(
            db, owner, nodes={"a": node}, edges=[("", "x", "a", "x")], outputs=[("o", "a")]
        )
        for status, started, completed in _states(_OVER, _OPEN)[1]:
            db.execute(
                "INSERT INTO workflow_executions (id, workflow_id, workflow_version, tenant_id,"
                " created_by, status, started_at, completed_at)"
                " VALUES (%s, %s, 1, %s, %s, %s, %s, %s)",
                (uuid4(), workflow, owner.id, owner.id, status, started, completed),
            )
        run = db.execute("SELECT id FROM workflow_executions LIMIT 1").fetchall()[0][0]
        for status, started, completed in _states(_NODE_OVER, _NODE_OPEN)[1]:
            db.execute(
                "INSERT INTO node_executions (workflow_execution_id, node_id, node_type, status,"
                " started_at, completed_at) VALUES (%s, %s, 'builtin', %s, %s, %s)",
                (run, str(uuid4()), status, started, completed),
            )
        db.execute(
            "INSERT INTO node_data_flow (workflow_execution_id, source_node_id, target_node_id,"
            " data_type) VALUES (%s, '', 'a', 'npy')",
            (run,),
        )
    for _ in range(2):
        migrations.upgrade(blank.url(), blank.home)
        with blank.connect() as db:
            unproven = "SELECT conname FROM pg_constraint WHERE NOT convalidated"
            assert [] == db.execute(unproven).fetchall()
        migrations.downgrade(blank.url(), revision="0050")
        with blank.connect() as db:
            assert [] == db.execute(unproven).fetchall()
