"""The statements by which places under limits are freed: of nothing that still goes on."""

from __future__ import annotations

from typing import Final
from uuid import UUID

import pytest

from services.kit.ids import uuid7
from services.orchestrator.storage import limit_slots
from tests import factories
from tests.integration.orchestrator.test_member_statements import Table, table

__all__ = ["table"]

_TAKEN_FOR: Final = {
    # What has a place, how that stands, and whether the place is free with the next sweep.
    "a member that lives": ("live", None, None, False),
    "one that rests": ("idle", None, None, False),
    "one that was fenced": ("fenced", None, None, True),
    "a member's former self": ("older epoch", None, None, True),
    "a run that goes on": ("fenced", "running", None, False),
    "a run that is over": ("live", "completed", None, True),
    "an attempt that goes on": ("fenced", "running", "running", False),
    "an attempt that is over": ("live", "running", "completed", True),
}


class Places:
    """Places under one limit, as they stand in the database."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.owner = factories.user(table.sql)
        node = factories.node(table.sql, self.owner)
        self.workflow = factories.workflow(
            table.sql, self.owner, nodes={"a": node}, edges=[("", "x", "a", "x")],
            outputs=[("y", "a")],
        )  # fmt: skip
        self.limit = uuid7()
        table.sql.execute(
            "INSERT INTO execution_limits (id, name, max_running, tenant_id, created_by,"
            " updated_by) VALUES (%s, 'few', 9, %s, %s, %s)",
            (self.limit, *[self.owner.id] * 3),
        )

    def run(self, status: str, node_status: str | None) -> tuple[UUID, UUID | None]:
        run_id, node_id = uuid7(), uuid7()
        self.table.sql.execute(
            "INSERT INTO workflow_executions (id, workflow_id, workflow_version, status, shard,"
            " tenant_id, created_by, started_at, completed_at) VALUES (%s, %s, 1, %s::text, 0, %s,"
            " %s, now(), CASE WHEN %s::text <> 'running' THEN now() END)",
            (run_id, self.workflow, status, self.owner.id, self.owner.id, status),
        )
        if node_status is None:
            return run_id, None
        self.table.sql.execute(
            "INSERT INTO node_executions (id, workflow_execution_id, node_id, definition_node_id,"
            " node_type, status, started_at, completed_at, execution_order, max_retries,"
            " output_data, runner_incarnation)"
            " VALUES (%s, %s, 'a', 'a', 'python', %s::text, now(), CASE WHEN %s::text <> 'running'"
            " THEN now() END, 0, 0, CASE WHEN %s::text = 'completed' THEN '{}'::json END, %s)",
            (node_id, run_id, *[node_status] * 3, uuid7()),
        )
        return run_id, node_id

    def take(
        self, member: UUID, epoch: int, run: UUID | None = None, node: UUID | None = None
    ) -> UUID:
        slot = uuid7()
        self.table.sql.execute(
            "INSERT INTO limit_slots (limit_id, key, ordinal, id, tenant_id, member_id, epoch,"
            " execution_id, node_execution_id) VALUES (%s, '', (SELECT count(*) + 1 FROM"
            " limit_slots), %s, %s, %s, %s, %s, %s)",
            (self.limit, slot, self.owner.id, member, epoch, run, node),
        )
        return slot

    def taken(self) -> int:
        row = self.table.sql.execute("SELECT count(*) FROM limit_slots").fetchone()
        assert row is not None
        return int(row[0])


@pytest.mark.parametrize("whose", _TAKEN_FOR)
async def test_a_place_is_freed_with_what_it_was_taken_for(table: Table, whose: str) -> None:
    """I32, CP28: what goes on keeps its place though the one who took it is gone."""
    state, run_status, node_status, free = _TAKEN_FOR[whose]
    places = Places(table)
    lives = "live" if state == "older epoch" else state
    member = table.member(7, lives)
    run, node = places.run(run_status, node_status) if run_status else (None, None)
    places.take(member, 6 if state == "older epoch" else 7, run, node)
    assert ({places.limit} if free else set()) == await table.ask(limit_slots.sweep)
    assert (0 if free else 1) == places.taken()


async def test_a_place_that_is_made_use_of_is_not_given_back(table: Table) -> None:
    """I32: the claim that was too late to be taken back has begun something."""
    places = Places(table)
    member = table.member(7)
    run, _ = places.run("running", None)
    unused, used = places.take(member, 7), places.take(member, 7, run)
    back = await table.ask(lambda db: limit_slots.give_back(db, [unused, used]))
    assert {places.limit} == back
    assert set() == await table.ask(lambda db: limit_slots.give_back(db, [unused, used]))
    assert 1 == places.taken()
