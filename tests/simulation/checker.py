"""What must hold: looked at with every flush, with every word to a runner, and at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import timedelta
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from services.kit.ids import uuid_from_bytes
from services.orchestrator.domain.plan import Kind, Phase
from services.orchestrator.domain.records import NodeRecord
from services.orchestrator.domain.state import Group, Run
from services.orchestrator.domain.status import NODE_FINAL, RUN_FINAL, NodeStatus
from services.orchestrator.domain.transition import Transition
from services.orchestrator.engine.journal import Committed
from services.orchestrator.storage import recovery
from tests.simulation.database import _signals
from tests.simulation.ends import End
from tests.simulation.oracle import DELIVERIES_MAX, Reading

if TYPE_CHECKING:
    from tests.simulation.processes import Orchestrator
    from tests.simulation.world import World

_BEGUN: Final = ("running", "waiting")
_EARLY_MAX: Final = timedelta(seconds=1)  # timers count from a decision, rows from its commit
# What rows do not hold, because it is not needed once memory is gone. All other fields of a run
# and of its records must be what the rows say, those to come as well.
_RUN_ONLY: Final = frozenset(
    {"plan", "watchers", "output_data", "expired", "failure", "records", "completed_at"}
    | {"groups", "parent", "options", "asleep", "limit_turns", "queue_left_s", "seeded", "queued"}
)
_RECORD_ONLY: Final = frozenset(
    {"alone", "killing", "serialization_us", "due_ms", "started_at", "completed_at", "failure"}
    | {"overdue", "age_s", "due_s"}
)
_GROUP_ONLY: Final = frozenset({"queued", "filling", "elements", "source"})
_HELD: Final = frozenset({NodeStatus.PAUSED, NodeStatus.PENDING})


class _Fields:
    """Fields of a class that are held against each other, all at once while they are the same."""

    def __init__(self, of: type[Any], without: frozenset[str]) -> None:
        fields = dataclasses.fields(of)
        self._names = [each.name for each in fields if each.name not in without]
        self._read = attrgetter(*self._names)

    def unlike(self, mine: Any, theirs: Any) -> list[tuple[str, Any, Any]]:
        """Give the fields in which two differ, with what each has there."""
        a, b = self._read(mine), self._read(theirs)
        if a == b:
            return []
        return [each for each in zip(self._names, a, b, strict=True) if each[1] != each[2]]


_RUN_FIELDS: Final = _Fields(Run, _RUN_ONLY)
_RECORD_FIELDS: Final = _Fields(NodeRecord, _RECORD_ONLY)
_GROUP_FIELDS: Final = _Fields(Group, _GROUP_ONLY)


class Checker:
    """Predicates over the store, the memory of orchestrators, and what runners are told."""

    def __init__(self, world: World, compared_every: int) -> None:
        self.world = world
        self._compared_every = compared_every

    # --- with every flush -----------------------------------------------------------------------

    def follow(self, orchestrator: Orchestrator) -> None:
        """Compare its memory with the rows after each of its flushes."""
        journal = orchestrator.engine.journal
        release = journal._release

        def released(committed: Committed) -> None:
            release(committed)
            if self.world.store.flushes % self._compared_every == 0:
                self._compare(orchestrator, committed.batch)

        journal._release = released

    def written(self, batch: Sequence[Transition]) -> None:
        """Look at the rows that a flush has just written."""
        store = self.world.store
        for t in batch:
            self._pauses(t)
            for begun in t.node_inserts:
                if begun.id in store.nodes:
                    self._begins(store.nodes[begun.id])
            for placed in t.placed.values():
                if placed.id in store.nodes:
                    self._placed(placed.status, store.nodes[placed.id])
            for copied in t.copies:
                self._begins(store.nodes[copied.id])
                self._node(store.nodes[copied.id])
            for done in t.completes:
                self._completed(store.nodes[done.id], done.token)
            for moved in t.changes.values():
                self._moved(moved, store.nodes[moved.id])
            for change in t.run_changes:
                self._run(store.runs[change.id])

    def _completed(self, row: dict[str, Any], token: int) -> None:
        if row["runner_incarnation"] is not None:
            told = self.world.ledger.produced.get((row["id"], token))
            assert told is not None or self._is_by_hand(row), (
                "I11: no attempt of that token gave a result"
            )
        self._node(row)

    def _pauses(self, t: Transition) -> None:
        paused = self.world.store.paused
        for change in t.run_changes:
            if change.status == "paused":
                paused.add(change.id)
            else:
                paused.discard(change.id)

    def _is_by_hand(self, row: dict[str, Any]) -> bool:
        return (row["run_id"], row["node_id"]) in self.world.by_hand

    def _placed(self, status: str, row: dict[str, Any]) -> None:
        if status in _BEGUN:
            self._begins(row)
        elif status == "skipped" and not self._is_by_hand(row):
            Reading(self.world, row["run_id"]).check_join(row, begins=False)
        self._node(row)

    def _moved(self, moved: Any, row: dict[str, Any]) -> None:
        assert moved.new_token >= moved.token, "I10: tokens grow"
        same = moved.new_token == moved.token
        assert not (same and moved.status == "running"), "I10: a token stands for two"
        assert row["delivery_count"] <= DELIVERIES_MAX, "I36"
        if moved.starts and moved.status in _BEGUN:
            self._begins(row)
        self._node(row)

    def _begins(self, row: dict[str, Any]) -> None:
        """Nothing begins in a run that is over, paused or not due, or before what it reads."""
        world = self.world
        run = world.store.runs[row["run_id"]]
        # What the cache has may be the last of its run: both are over with one flush.
        last = row["cache_hit"] and run["completed_at"] == row["completed_at"]
        assert run["completed_at"] is None or last, "I8: a node begins in a run that is over"
        held = self._held_up(run)
        assert not held, f"{row['node_id']} begins, and its run is paused"
        plan = world.plan_of(row["run_id"])
        place = plan.places[plan.index[row["definition_node_id"]]]
        if place.phase is not Phase.MAIN:
            return  # what closes a run waits for neither a time nor sources
        if run["start_at"] is not None and not world.clock_moved:
            assert world.store.clock() >= run["start_at"], f"run {run['id']} begins before its time"
        if row["node_id"] == place.id:
            Reading(world, row["run_id"]).check_join(row, begins=True)

    def _held_up(self, run: dict[str, Any]) -> bool:
        """Say whether a run, or one that it is a part of, is paused."""
        store = self.world.store
        if not store.paused:
            return False
        while run["id"] not in store.paused:
            if run["parent_execution_id"] is None:
                return False
            run = store.runs[run["parent_execution_id"]]
        return True

    def _node(self, row: dict[str, Any]) -> None:
        over = row["status"] in NODE_FINAL
        assert over == (row["completed_at"] is not None), "I1"
        if not over:
            return
        if row["started_at"] is not None:
            assert row["completed_at"] >= row["started_at"], "I6"
        if row["status"] == "completed":
            assert row["output_data"] is not None, "I5"
            reading = Reading(self.world, row["run_id"])
            reading.check_value(row)
            if not self.world.clock_moved:
                self._slept(row, reading)

    def _slept(self, row: dict[str, Any], reading: Reading) -> None:
        place = reading.place(row)
        if place.kind is Kind.SLEEP and not self._is_by_hand(row):
            asked = timedelta(seconds=reading.inputs(row)["seconds"])
            lasted = row["completed_at"] - row["started_at"]
            assert lasted + _EARLY_MAX >= asked, f"it slept {lasted} of {asked}"

    def _run(self, row: dict[str, Any]) -> None:
        over = row["status"] in RUN_FINAL
        assert over == (row["completed_at"] is not None), "I1"
        if over:
            assert row["completed_at"] >= (row["started_at"] or row["created_at"]), "I6"
            End(self.world, row["id"]).check()

    # --- what runners are told ------------------------------------------------------------------

    def told(self, frame: Any) -> None:
        """Look at a frame that reaches a runner: no Ack may be ahead of what is committed."""
        nodes = self.world.store.nodes
        for ack in frame.acks:
            row = nodes[uuid_from_bytes(ack.attempt_ref)]
            open_ = row["status"] == "running" and row["attempt_token"] == ack.token
            assert not open_, "G2: an Ack before its result is committed"

    # --- memory is a cache of the rows ----------------------------------------------------------

    def _compare(self, orchestrator: Orchestrator, batch: Sequence[Transition]) -> None:
        engine = orchestrator.engine
        row = self.world.store.members[engine.member.id]
        if engine.recovering or row.state == "fenced" or row.epoch != engine.member.epoch:
            return  # it has to load all that anew, or another one has it
        queued = engine.journal._queue.run_ids()
        for run_id in dict.fromkeys(t.run_id for t in batch):
            run = engine.core.runs.get(run_id)
            if run is None or self.world.store.shards[run.shard] != engine.member.id:
                continue
            if run_id not in queued and run.status not in RUN_FINAL:
                self.compare(run)

    def compare(self, run: Run) -> None:
        """Hold a run in memory against what its rows restore to."""
        store = self.world.store
        found = recovery._to_open_run(
            store.open_run(store.runs[run.id]),  # type: ignore[arg-type]
            store.open_nodes(run.id),  # type: ignore[arg-type]
            run.plan,
            [recovery._to_signal(row) for row in _signals(store, [run.id])],  # type: ignore[arg-type]
            {},
        )
        rows = found.run
        for name, mine, theirs in _RUN_FIELDS.unlike(run, rows):
            undoes_nothing = name == "undo" and run.abandoned  # any more
            assert undoes_nothing, f"restored {name} of {run.id}: {mine} is {theirs} in the rows"
        begun = {
            slot
            for slot in run.seeded  # what is held up is given its turn anew
            if (record := run.records[slot]) is not None and record.status not in _HELD
        }
        assert begun == rows.seeded, f"restored seeded: {begun} is {rows.seeded} in the rows"
        assert run.groups.keys() == rows.groups.keys(), "restored groups"
        for slot, group in run.groups.items():
            for name, mine, theirs in _GROUP_FIELDS.unlike(group, rows.groups[slot]):
                raise AssertionError(
                    f"restored {name} of group {slot}: {mine} is {theirs} in the rows"
                )
        for record, restored in zip(run.records, rows.records, strict=True):
            if record is None or restored is None:
                assert record is restored, f"restored records: {record} is {restored} in the rows"
                continue
            for name, mine, theirs in _RECORD_FIELDS.unlike(record, restored):
                raise AssertionError(
                    f"restored {name} of {record.id}: {mine} is {theirs} in the rows"
                )
