"""How runs end: what the rows of one that is over must say, and why it may have failed."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from services.orchestrator.domain.plan import Kind, Phase, Place
from services.orchestrator.domain.status import NODE_FINAL, RUN_FINAL
from tests.simulation.oracle import (
    DELIVERIES_MAX,
    FAILED,
    Reading,
    group_of,
    is_group,
    parts,
    result,
)
from tests.simulation.store import exception_of

if TYPE_CHECKING:
    from uuid import UUID

    from tests.simulation.world import World

Row = dict[str, Any]
_START_MAX: Final = timedelta(seconds=1)
_STOPS: Final = ("deadline_exceeded", "engine_error")  # of a parent: its children are cancelled


class End:
    """One run that is over, and its rows."""

    def __init__(self, world: World, run_id: UUID) -> None:
        self.world = world
        self.run_id = run_id
        self.reading = Reading(world, run_id)
        self.run, self.plan, self.rows = self.reading.run, self.reading.plan, self.reading.rows

    def check(self) -> None:
        """Look at all its rows, and at what it says of itself."""
        for row in self.rows.values():
            assert row["status"] in NODE_FINAL, f"I4: {row['node_id']} is {row['status']}"
        for child in self.world.store.children_of[self.run_id]:
            status = self.world.store.runs[child]["status"]
            assert status in RUN_FINAL, f"a sub-workflow of it is {status} still"
        match self.run["status"]:
            case "completed":
                self._completed()
            case "cancelled":
                assert self._may_be_cancelled(), "cancelled, and nobody asked for it"
            case _:
                assert self.run_id not in self.world.cancelled, "I14: only cancelled can follow"
                self._failed()

    # --- completed ------------------------------------------------------------------------------

    def _completed(self) -> None:
        assert self.run_id not in self.world.cancelled, "I14: only cancelled can follow"
        for place in self.plan.places:
            row = self.rows.get(place.id)
            if place.phase is Phase.COMPENSATION:
                assert row is None, f"{place.id} undoes what a completed run did"
                continue
            assert row is not None, f"I5: a completed run lacks {place.id}"
            if row["status"] in FAILED:
                assert place.handled, f"I5: {place.id} failed, and the run completed"
                self._check_cause(row)
            else:
                assert row["status"] in ("completed", "skipped"), f"I5: {row['status']}"
        told = json.loads(self.run["output_data"])
        assert told == {each.name: self._output(each) for each in self.plan.outputs}

    def _output(self, output: Any) -> Any:
        place = self.plan.places[output.source]
        row = self.rows[place.id]
        return result(row, place.outputs[output.output]) if row["status"] == "completed" else None

    # --- cancelled ------------------------------------------------------------------------------

    def _may_be_cancelled(self) -> bool:
        if self.run_id in self.world.cancel_asked:
            return True
        parent = self.world.store.runs.get(self.run["parent_execution_id"])
        if parent is None:
            return False
        slot = self.world.store.nodes_of[parent["id"]][self.run["parent_node_id"]]
        place = self.world.plan_of(parent["id"]).places
        overdue = any(
            each.total_timeout_ms for each in place if each.id == slot["definition_node_id"]
        )
        return bool(
            parent["cancel_requested_at"] is not None
            or parent["error_type"] in _STOPS
            or parent["id"] in self.world.poisoned
            or parent["deadline_at"] is not None
            or overdue
        )

    # --- failed ---------------------------------------------------------------------------------

    def _failed(self) -> None:
        self._check_undone()
        match self.run["error_type"]:
            case "deadline_exceeded" if not self.run["failed_node_id"]:
                assert self.plan.timeout_ms is not None, "its time was up, and it has no deadline"
                # It counts from the start's arrival, the row from the start's commit.
                early = self.run["completed_at"] + _START_MAX < self.run["deadline_at"]
                assert not early or self.world.clock_moved, "its time was not up"
            case "parent_failed" if not self.run["failed_node_id"]:
                self._check_parent()
            case "engine_error" if not self.run["failed_node_id"]:
                assert self._is_poisoned(), "failed by the engine without a cause"
            case "budget_exceeded" | "quota_exceeded" if not self.run["failed_node_id"]:
                self.world.accounts.check_cause(self.run)
            case "dependency_error" if self._named().kind is Kind.PYTHON:
                # Its row, where it has one, may say what befell it before its lock was known.
                assert self.world.store.locks[self._named().node_version_id] == "failed"
            case _:
                self._check_cause(self.rows[self.run["failed_node_id"]])

    def _check_parent(self) -> None:
        """Hold that what it was a part of failed against the parent's rows."""
        store, parent = self.world.store, self.run["parent_execution_id"]
        rows = store.nodes_of[parent].values()
        failed = any(each["status"] in FAILED for each in rows) or store.runs[parent]["error_type"]
        locked = any(
            store.locks[each.node_version_id] == "failed"
            for each in self.world.plan_of(parent).places
            if each.kind is Kind.PYTHON
        )
        assert failed or locked, "nothing of its parent failed"

    def _named(self) -> Place:
        """Give the place that failed."""
        return self.plan.places[self.plan.index[self.run["failed_node_id"]]]

    def _is_poisoned(self) -> bool:
        """Say whether the journal was made to refuse it, or anything that is a part of it."""
        family = [self.run_id]
        for each in family:  # it grows while it is walked
            family += self.world.store.children_of.get(each, ())
        return not self.world.poisoned.isdisjoint(family)

    def _check_undone(self) -> None:
        """What was completed is undone, the last first; then comes what runs at the very end."""
        if self.run["error_type"] == "engine_error":
            return  # nothing of it begins any more
        named = self.run["failed_node_id"]
        of_main = not named or self.plan.places[self.plan.index[named]].phase is Phase.MAIN
        undone = []
        for at in self.plan.compensations:
            place = self.plan.places[at]
            assert place.compensates is not None
            target = self.rows.get(self.plan.places[place.compensates].id)
            if of_main and target is not None and target["status"] == "completed":
                assert place.id in self.rows, f"{place.id} was to undo {target['node_id']}"
                # One that was held up has its row, and its place in the order, from then.
                undone.append((self.rows[place.id]["revision"], target["revision"]))
        revisions = [revision for _, revision in sorted(undone)]
        assert revisions == sorted(revisions, reverse=True), "undone in another order"
        for at in self.plan.finals:
            assert self.plan.places[at].id in self.rows, "its last nodes did not run"

    def _check_cause(self, row: Row) -> None:
        """Hold why a place failed for good against what befell it."""
        place = self.reading.place(row)
        if is_group(place, row["node_id"]):
            self._check_group(row)
            return
        if place.kind is Kind.WORKFLOW and row["error_type"] != "total_timeout":
            self._check_child(row)
            return
        match row["error_type"]:
            case "runner_lost":
                # Of a run that is ending anyway, what was lost in a map is not begun again.
                given_up = row["delivery_count"] == DELIVERIES_MAX or group_of(row["node_id"])
                assert given_up, "I36: given up too early"
            case "user_error":
                assert self.reading.script(row).failures, "failed, and it would succeed"
                # In a map that has failed nothing is tried again.
                if not group_of(row["node_id"]):
                    assert not self._is_cut_short(row), "given up too early"
            case "total_timeout" if place.total_timeout_ms is None:
                assert place.kind is Kind.WORKFLOW, "its time was not limited"
                self._check_child(row)  # it was a node there that took too long
            case "dependency_error":  # of what closes its run: other nodes stop it without a row
                assert self.world.store.locks[place.node_version_id] == "failed"
            case other:
                self._check_overdue(row, other)

    def _check_overdue(self, row: Row, error_type: str) -> None:
        """Hold that something took too long against whether it was limited at all."""
        place = self.reading.place(row)
        match error_type:
            case "total_timeout" if place.total_timeout_ms is None:
                assert place.kind is Kind.WORKFLOW, "its time was not limited"
                self._check_child(row)  # it was a node there that took too long
            case "total_timeout":
                pass
            case "queue_timeout":
                assert place.queue_timeout_ms is not None, "its wait was not limited"
            case "signal_timeout" | "approval_timeout":
                assert place.wait is not None
                assert place.wait.timeout_ms is not None, "its wait was not limited"
                assert place.wait.default is None, "there was something to give instead"
            case other:
                raise AssertionError(f"{place.id} failed for {other}")

    def _check_group(self, row: Row) -> None:
        place, name = self.reading.place(row), row["node_id"]
        if row["error_type"] == "queue_timeout":
            assert place.queue_timeout_ms is not None, "its wait was not limited"
            return
        if row["error_type"] == "loop_exhausted":
            assert place.loop is not None
            assert place.loop.fails_at_max, "a loop that may end at its last turn"
            return
        found = parts(self.rows, place, name)
        failed = [each for each in found.values() if each["status"] in FAILED]
        allowed = 0
        if place.map is not None:
            elements = self.reading.inputs(row)[place.map.input] or []
            allowed = place.map.allowed(len(elements))
        by_itself = sum(not self._is_cut_short(each) for each in failed)
        assert by_itself > allowed, f"{name} failed, and only {by_itself} parts of it did"
        for each in failed:
            self._check_cause(each)

    def _is_cut_short(self, row: Row) -> bool:
        """Say whether user code failed in a row and would have been tried again by itself."""
        place = self.reading.place(row)
        if place.kind is not Kind.PYTHON or is_group(place, row["node_id"]):
            return False
        if row["error_type"] != "user_error":
            return False
        script = self.reading.script(row)
        tried = script.fatal or row["retry_count"] == row["max_retries"]
        return not (tried and script.dooms(row["max_retries"]))

    def _check_child(self, row: Row) -> None:
        error_type = row["error_type"]
        child = self.world.store.runs.get(row["child_execution_id"])
        assert child is not None, "its execution failed, and never began"
        if child["status"] == "cancelled":
            assert error_type == "sub_workflow_cancelled"
        else:
            assert child["status"] == "failed", f"its execution is {child['status']}"
            assert error_type == child["error_type"]
            raised = self.world.store.exception_type(child)
            assert exception_of(row) == raised, "not the class that its execution raised"
