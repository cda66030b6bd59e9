"""The core under random faults with every construct of a graph; a failure replays from its seed."""

from __future__ import annotations

import os
from typing import Any
from uuid import UUID

import pytest

from services.orchestrator.domain.children import EndedChild
from services.orchestrator.domain.plan import Kind, Plan
from services.orchestrator.domain.rows import RunInsert
from services.orchestrator.domain.state import Run, Signal
from services.orchestrator.domain.status import NODE_FINAL, RUN_FINAL, NodeStatus, RunStatus
from services.orchestrator.domain.values import FileValue
from tests.unit.orchestrator.rich_graphs import rich_plan
from tests.unit.orchestrator.store import Store
from tests.unit.orchestrator.worlds import TENANT, World, simulate

SEEDS = 1250 if os.environ.get("QFLOW_TEST_FULL") else 60


class RichWorld(World):
    """Draws rich graphs, sends words, pauses, holds nodes up and skips them."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.by_pins: dict[UUID, Plan] = {}

    def start(self) -> None:
        plan = rich_plan(self.chance, size=self.chance.randint(1, 10))
        run = Run(
            id=next(self.ids),
            plan=plan,
            tenant_id=TENANT,
            created_by=TENANT,
            status=RunStatus.PENDING,
            input_values={"x": b"1"},
        )
        self._know(run.id, plan)
        timeout_ms = self.chance.choice((None, None, None, 4000))
        row = RunInsert(
            run.id, plan.workflow_id, TENANT, TENANT, 1, None, plan.pins_id, 0, "pending", "{}",
            None, None, "3.11", timeout_ms, 1,
        )  # fmt: skip
        self.submit(self.core.start(run, row, now=self.now))

    def _know(self, run_id: UUID, plan: Plan) -> None:
        self.plans[run_id] = plan
        self._know_pins(plan)

    def _know_pins(self, plan: Plan) -> None:
        self.by_pins[plan.pins_id] = plan
        for place in plan.places:
            if place.sub is not None:
                self._know_pins(place.sub)

    def plan_of(self, run_id: UUID) -> Plan:
        return self.by_pins[self.store.runs[run_id]["pins_id"]]

    def result(self) -> tuple[bytes, ...] | FileValue:
        """Give a number, or a large value in a file: some of those are lists."""
        if self.chance.random() < 0.7:
            return (b"1",)
        counts = {"result": self.chance.randint(0, 4)} if self.chance.random() < 0.7 else {}
        file = FileValue(next(self.ids), 70_000, b"h" * 32, counts)
        self.store.files[file.file_id] = file
        return file

    def crash(self) -> None:
        self.faults += 1
        while self.queue and self.chance.random() < 0.5:
            self.commit()
        self.queue.clear()
        self.core = self._begin()
        for run_id, row in self.store.runs.items():
            if row["status"] not in RUN_FINAL:
                run = self.store.restore(run_id, self.plan_of(run_id))
                due_s = {
                    slot: self.chance.random()
                    for slot, record in enumerate(run.records)
                    if record is not None
                    and record.status in (NodeStatus.WAITING, NodeStatus.RETRYING)
                    and self._is_timed(run, slot)
                }
                deadline_s = 1.0 if row["timeout_ms"] else None
                self.core.adopt(run, now=self.now, due_s=due_s, deadline_s=deadline_s)
            else:
                self.core.child_ended(_ended(run_id, row))
        self.submit(self.core.redispatch())
        for runner in list(self.core.runners):
            if runner not in self.held:
                self.submit(self.core.lost(runner))
        for runner in list(self.held):
            self.attach(runner)

    def _is_timed(self, run: Run, slot: int) -> bool:
        record, place = run.records[slot], run.place(slot)
        assert record is not None
        if record.status is NodeStatus.RETRYING:
            return not record.delivery_count
        if place.kind is Kind.SLEEP:
            return True
        return place.wait is not None and place.wait.timeout_ms is not None

    def send(self) -> None:
        runs = [run for run in self.core.runs.values() if run.status not in RUN_FINAL]
        if runs:
            run = self.chance.choice(runs)
            kinds = {place.kind for place in run.plan.places if place.wait is not None}
            if (Kind.APPROVAL, "word") in run.waiting and self.chance.random() < 0.5:
                self.submit(self.core.signal(run.id, "word", self._word(Kind.APPROVAL)))
            elif Kind.SIGNAL in kinds:
                self.submit(self.core.signal(run.id, "word", self._word(Kind.SIGNAL)))

    def _word(self, kind: Kind) -> Signal:
        approval = kind is Kind.APPROVAL
        outputs = (b"true", b'""', b'"a"', b"null") if approval else (b"5",)
        return Signal(next(self.ids), TENANT, outputs, kind)

    def pause(self) -> None:
        runs = [run for run in self.core.runs.values() if run.status not in RUN_FINAL]
        if runs:
            run = self.chance.choice(runs)
            if run.status is RunStatus.PAUSED or self.chance.random() < 0.6:
                self.submit(self.core.resume(run.id, now=self.now))
            else:
                self.submit(self.core.pause(run.id))

    def hold(self) -> None:
        """Hold a node up, let it go, or end it by hand."""
        found = [
            (run, place)
            for run in self.core.runs.values()
            if run.status not in RUN_FINAL and not run.closing and not run.cancelling
            if run.failure is None and not run.expired
            for place in range(len(run.plan.places))
            if run.plan.places[place].phase == 0
            and (run.records[place] is None or _can_be_held(run, place))
        ]
        if not found:
            return
        run, place = self.chance.choice(found)
        record = run.records[place]
        if record is not None and record.status is NodeStatus.PAUSED:
            self.submit(self.core.resume_node(run.id, place))
        elif self.chance.random() < 0.3:
            output = None
            rule = run.plan.places[place]
            plain = rule.kind is Kind.PYTHON and not rule.grouped
            if plain and self.chance.random() < 0.5:
                output = (b"9",)
            self.submit(self.core.skip_node(run.id, place, output))
        elif record is None or record.status is NodeStatus.PENDING:
            self.submit(self.core.pause_node(run.id, place))

    def settle(self) -> None:
        """No more faults: what is held up is let go, words come, everything ends."""
        for _ in range(2000):
            self._settle_runs()
            waiting = [run for run in self.core.runs.values() if run.status not in RUN_FINAL]
            if not waiting:
                return
            for run in waiting:
                if run.id not in self.core.runs or run.status in RUN_FINAL:
                    continue
                if run.status is RunStatus.PAUSED:
                    self.submit(self.core.resume(run.id, now=self.now))
                for place in range(len(run.plan.places)):
                    record = run.records[place]
                    if record is not None and record.status is NodeStatus.PAUSED:
                        self.submit(self.core.resume_node(run.id, place))
                for kind, name in list(run.waiting)[:1]:
                    self.submit(self.core.signal(run.id, name, self._word(kind)))
        raise AssertionError("it never ends")

    def _settle_runs(self) -> None:
        super().settle()


def _can_be_held(run: Run, place: int) -> bool:
    record = run.records[place]
    assert record is not None
    return record.status in (NodeStatus.PAUSED, NodeStatus.PENDING)


def _ended(run_id: UUID, row: dict[str, Any]) -> EndedChild:
    change = row["change"]
    return EndedChild(
        run_id,
        RunStatus(row["status"]),
        change.output_data,
        change.error_type,
        change.error_message,
        change.failed_node_id,
        None,
        change.cpu_us,
        change.memory_peak_bytes,
        change.io_read_bytes,
        change.io_write_bytes,
    )


def simulate_rich(seed: int) -> RichWorld:
    """Run one world with every construct."""
    world = RichWorld(seed)
    simulate(
        seed,
        world=world,
        more=[(world.send, 4), (world.pause, 4), (world.hold, 4)],
    )
    for run_id, row in world.store.runs.items():
        assert row["status"] in RUN_FINAL, run_id
        for node in world.store.nodes.values():
            if node["run_id"] == run_id:
                assert node["status"] in NODE_FINAL, ("I4", node["node_id"], node["status"])
        taken = taken_below(world.store, run_id)
        assert taken == row["change"].cpu_us, "what all its attempts took, each once"
    return world


def taken_below(store: Store, run_id: UUID) -> int:
    """Sum up what the attempts of a run took and those of its sub-workflows, by their own rows."""
    own = {
        node["id"]: node["token"]
        for node in store.nodes.values()
        if node["run_id"] == run_id and node.get("node_type") != "builtin"
    }
    taken: int = sum(store.nodes[node]["cpu_us"] for node in own)
    taken += sum(
        each.cpu_us
        for each in store.attempts
        if own.get(each.node_execution_id, each.token) != each.token
    )
    below = [key for key, run in store.runs.items() if run["parent_execution_id"] == run_id]
    return taken + sum(taken_below(store, each) for each in below)


@pytest.mark.parametrize("block", range(4))
def test_no_construct_loses_or_doubles_an_outcome(block: int) -> None:
    """G2, G3, I1, I2, I4, I10, I11, I14, E5 with maps, loops, branches, waits, sub-workflows."""
    for seed in range(block * SEEDS, (block + 1) * SEEDS):
        try:
            simulate_rich(seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}: simulate_rich({seed}) replays it") from error
