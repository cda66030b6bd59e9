"""What must hold: looked at with every flush, with every word to a runner, and at the end."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from services.kit.ids import uuid_from_bytes
from services.orchestrator.domain.rows import Transition
from services.orchestrator.domain.state import NodeRecord, Run
from services.orchestrator.domain.status import NODE_FINAL, RUN_FINAL
from services.orchestrator.engine.journal import Committed
from services.orchestrator.storage import recovery
from tests.simulation import graphs
from tests.simulation.database import _signals

if TYPE_CHECKING:
    from tests.simulation.processes import Orchestrator
    from tests.simulation.world import World

DELIVERIES_MAX: Final = 3
_START_MAX: Final = timedelta(seconds=1)
# What rows do not hold, because it is not needed once memory is gone. All other fields of a run
# and of its records must be what the rows say, those to come as well.
_RUN_ONLY: Final = frozenset(
    {"plan", "watchers", "output_data", "expired", "failure", "records", "completed_at"}
)
_RECORD_ONLY: Final = frozenset(
    {"alone", "killing", "serialization_us", "due_ms", "started_at", "completed_at", "failure"}
)
_RUN_FIELDS: Final = [each.name for each in dataclasses.fields(Run) if each.name not in _RUN_ONLY]
_RECORD_FIELDS: Final = [
    each.name for each in dataclasses.fields(NodeRecord) if each.name not in _RECORD_ONLY
]


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
            for begun in t.node_inserts:
                if begun.id in store.nodes:
                    self._begins(store.nodes[begun.id])
            for done in t.completes:
                told = self.world.ledger.produced.get((done.id, done.token))
                assert told is not None, "I11: no attempt of that token gave a result"
                assert json.loads(done.output_data or "") == {"result": int(told)}
                self._node(store.nodes[done.id])
            for moved in t.changes.values():
                row = store.nodes[moved.id]
                assert moved.new_token >= moved.token, "I10: tokens grow"
                same = moved.new_token == moved.token
                assert not (same and moved.status == "running"), "I10: a token stands for two"
                assert row["delivery_count"] <= DELIVERIES_MAX, "I36"
                self._node(row)
            for change in t.run_changes:
                self._run(store.runs[change.id])

    def _begins(self, row: dict[str, Any]) -> None:
        run = self.world.store.runs[row["run_id"]]
        assert run["completed_at"] is None, "I8: a node begins in a run that is over"
        plan = self.world.plan_of(row["run_id"])
        rows = self.world.store.nodes_of[row["run_id"]]
        for each in plan.places[plan.index[row["node_id"]]].inputs:
            if each.source >= 0:
                source = rows.get(plan.places[each.source].id)
                assert source is not None, "I7: begun before what it reads"
                assert source["status"] == "completed", "I7: begun before what it reads"
                assert row["started_at"] >= source["completed_at"], "I7: times"

    def _node(self, row: dict[str, Any]) -> None:
        over = row["status"] in NODE_FINAL
        assert over == (row["completed_at"] is not None), "I1"
        assert not over or row["completed_at"] >= row["started_at"], "I6"
        assert row["status"] != "completed" or row["output_data"] is not None, "I5"

    def _run(self, row: dict[str, Any]) -> None:
        over = row["status"] in RUN_FINAL
        assert over == (row["completed_at"] is not None), "I1"
        if over:
            assert row["completed_at"] >= (row["started_at"] or row["created_at"]), "I6"
            self.world.store.check_ends(row["id"])
            self._outcome(row)

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
        queued = {each.transition.run_id for each in engine.journal._queue}
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
        for name in _RUN_FIELDS:
            mine, theirs = getattr(run, name), getattr(rows, name)
            assert mine == theirs, f"restored {name} of {run.id}: {mine} is {theirs} in the rows"
        for mine, theirs in zip(run.records, rows.records, strict=True):
            if mine is None or theirs is None:
                assert mine is theirs, f"restored records: {mine} is {theirs} in the rows"
                continue
            for name in _RECORD_FIELDS:
                a, b = getattr(mine, name), getattr(theirs, name)
                assert a == b, f"restored {name} of {mine.id}: {a} is {b} in the rows"

    # --- the oracle -----------------------------------------------------------------------------

    def _outcome(self, row: dict[str, Any]) -> None:
        """Hold the end of a run against a plain evaluation of its graph."""
        world, run_id = self.world, row["id"]
        plan = world.plan_of(run_id)
        values = graphs.evaluate(plan, world.given[run_id])
        rows = world.store.nodes_of[run_id]
        for node in rows.values():
            if node["status"] == "completed":
                told = json.loads(node["output_data"])["result"]
                assert told == values[node["node_id"]], "a value that the graph does not give"
        scripts = world.scripts[run_id]
        doomed = {each.id for each in plan.places if scripts[each.id].dooms(each.retry.max_retries)}
        match row["status"]:
            case "completed":
                assert len(rows) == len(plan.places), "I5: a completed run lacks a node"
                assert all(each["status"] == "completed" for each in rows.values()), "I5"
                assert row["output_data"] == graphs.output_text(plan, values)
                assert not doomed & rows.keys(), "completed, and a node of it cannot succeed"
                assert run_id not in world.cancelled, "I14: only cancelled can follow"
            case "cancelled":
                assert run_id in world.cancel_asked, "cancelled, and nobody asked for it"
            case _:
                assert run_id not in world.cancelled, "I14: only cancelled can follow"
                self._failed(row, doomed)

    def _failed(self, row: dict[str, Any], doomed: set[str]) -> None:
        world, run_id = self.world, row["id"]
        plan = world.plan_of(run_id)
        match row["error_type"]:
            case "user_error":
                assert row["failed_node_id"] in doomed, "failed, and that node would succeed"
                node = world.store.nodes_of[run_id][row["failed_node_id"]]
                script = world.scripts[run_id][row["failed_node_id"]]
                if not script.fatal:
                    assert node["retry_count"] == node["max_retries"], "given up too early"
            case "runner_lost":
                node = world.store.nodes_of[run_id][row["failed_node_id"]]
                assert node["delivery_count"] == DELIVERIES_MAX, "I36: given up too early"
            case "deadline_exceeded":
                assert plan.timeout_ms is not None, "its time was up, and it has no deadline"
                # It counts from the start's arrival, the row from the start's commit.
                early = row["completed_at"] + _START_MAX < row["deadline_at"]
                assert not early or world.clock_moved, "its time was not up"
            case "dependency_error":
                place = plan.places[plan.index[row["failed_node_id"]]]
                assert world.store.locks[place.node_version_id] == "failed"
            case "engine_error":
                assert run_id in world.poisoned, "the engine failed a run without a cause"
            case other:
                raise AssertionError(f"failed for {other}")
