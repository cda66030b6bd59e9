"""Worlds of the core alone, for constructs and limits: random faults against a reference store.

Runners answer, fail, decline, vanish and come back late; callers cancel; the orchestrator crashes
with transitions unwritten, and the next one begins from rows alone. Time is a number. What journal,
members and streams do under faults is in `tests/simulation`.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any
from uuid import UUID

from services.orchestrator.domain.commands import (
    AckCommand,
    AssignCommand,
    Finished,
    KillCommand,
    SupersededCommand,
)
from services.orchestrator.domain.core import Core
from services.orchestrator.domain.needs import Offer
from services.orchestrator.domain.plan import Plan
from services.orchestrator.domain.records import Failure, Usage
from services.orchestrator.domain.rows import RunInsert
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import RUN_FINAL, RunStatus
from services.orchestrator.domain.steps.attempts import Outcome
from services.orchestrator.domain.transition import Transition
from services.orchestrator.domain.values import FileValue
from tests.unit.orchestrator.graphs import StrictCore, random_plan
from tests.unit.orchestrator.store import Store

TENANT = UUID(int=7)
_OFFER = Offer(pythons=frozenset({"3.11"}), tier="T2")


class World:
    """One orchestrator, a store, some runners, and a clock that only this test turns."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.ids = (UUID(int=number) for number in count(1000))
        self.store = Store()
        self.plans: dict[UUID, Plan] = {}
        self.now = 0.0
        self.epoch = 0
        self.queue: deque[Transition] = deque()
        self.held: dict[UUID, dict[UUID, int]] = {}  # attempts by runner: node row → token
        self.results: dict[UUID, list[Outcome]] = {}  # kept until their Ack
        self.faults = 0
        self.core = self._begin()

    def _begin(self) -> Core:
        self.epoch += 1
        core = StrictCore(epoch=self.epoch, new_id=lambda: next(self.ids), draw=self.chance.random)
        core.unlocked = {UUID(int=at) for at in range(3)}
        return core

    def start(self) -> None:
        plan = random_plan(self.chance, size=self.chance.randint(1, 12))
        run = Run(
            id=next(self.ids),
            plan=plan,
            tenant_id=TENANT,
            created_by=TENANT,
            status=RunStatus.PENDING,
            input_values={"x": b"1"},
        )
        self.plans[run.id] = plan
        row = RunInsert(
            run.id, plan.workflow_id, TENANT, TENANT, 1, None, plan.pins_id, 0, "pending", "{}",
            None, None, "3.11", None, 1,
        )  # fmt: skip
        self.submit(self.core.start(run, row, now=self.now))

    def plan_of(self, run_id: UUID) -> Plan:
        """Give the plan of a run."""
        return self.plans[run_id]

    def submit(self, transitions: list[Transition]) -> None:
        self.queue.extend(transitions)

    def commit(self) -> None:
        """Write the oldest transition and let out what hangs on it."""
        t = self.queue.popleft()
        self.store.apply(t)
        for command in t.commands:
            match command:
                case AssignCommand():
                    self._assign(command)
                case AckCommand():
                    self._forget(command.runner, command.attempt_ref, command.token)
                case SupersededCommand() if command.runner in self.held:
                    if self.held[command.runner].get(command.attempt_ref) == command.token:
                        del self.held[command.runner][command.attempt_ref]
                    self._forget(command.runner, command.attempt_ref, command.token)
                case Finished():
                    self.core.forget(command.run_id)
                case KillCommand() if command.runner in self.held:
                    if self.held[command.runner].pop(command.attempt_ref, None) is not None:
                        killed = Failure(error_type="cancelled", message="", killed=True)
                        self._finish(command.runner, command.attempt_ref, command.token, killed)

    def _assign(self, command: AssignCommand) -> None:
        run = self.core.runs.get(command.run_id)
        record = run.records[command.slot] if run else None
        if record is None or command.runner not in self.held:
            return
        if command.token in (record.token, record.killing):
            assert run is not None
            if not run.has_inputs(command.slot):
                self.submit(self.core.declined(command.runner, record.id, command.token))
                return
            for at in range(len(run.bindings(command.slot))):
                run.value(command.slot, at)  # as it would be sent
            kept = self.results[command.runner]
            kept[:] = [
                each
                for each in kept
                if each.attempt_ref != record.id or each.token >= command.token
            ]
            if all(each.attempt_ref != record.id for each in kept):
                self.held[command.runner][record.id] = command.token

    def _forget(self, runner: UUID, ref: UUID, token: int) -> None:
        kept = self.results.get(runner, [])
        kept[:] = [each for each in kept if (each.attempt_ref, each.token) != (ref, token)]

    def _finish(self, runner: UUID, ref: UUID, token: int, result: Any) -> None:
        outcome = Outcome(ref, token, result, Usage(cpu_us=3))
        self.results[runner].append(outcome)
        self.say(runner, [outcome])

    def say(self, runner: UUID, outcomes: Sequence[Outcome]) -> None:
        """Send results in one message, each perhaps twice."""
        told = [each for each in outcomes for _ in range(self.chance.choice((1, 1, 2)))]
        self.submit(self.core.outcomes(runner, told, now=self.now))

    def attach(self, runner: UUID) -> None:
        held = self.held.setdefault(runner, {})
        kept = self.results.setdefault(runner, [])
        inventory = held | {each.attempt_ref: each.token for each in kept}
        transitions = self.core.attached(runner, _OFFER, inventory)
        self.submit(transitions)
        self.submit(self.core.granted(runner, self.chance.randint(1, 4), 1))
        self.say(runner, kept)

    def work(self) -> None:
        runner = self.chance.choice(list(self.held))
        if not self.held[runner]:
            return
        outcomes: list[Outcome] = []
        for _ in range(self.chance.randint(1, min(4, len(self.held[runner])))):
            ref = self.chance.choice(list(self.held[runner]))
            token = self.held[runner].pop(ref)
            roll = self.chance.random()
            if roll < 0.8:
                outcomes.append(Outcome(ref, token, self.result(), Usage(cpu_us=3)))
            elif roll < 0.93:
                retryable = self.chance.random() < 0.8
                failure = Failure(error_type="user_error", message="no", retryable=retryable)
                outcomes.append(Outcome(ref, token, failure, Usage(cpu_us=3)))
            else:
                self.submit(self.core.declined(runner, ref, token))
        self.results[runner] += outcomes
        self.say(runner, outcomes)

    def result(self) -> tuple[bytes, ...] | FileValue:
        """Give what an attempt gives."""
        return (b"1",)

    def lose(self) -> None:
        """A runner dies, or lives on and is told that it is late."""
        self.faults += 1
        runner = self.chance.choice(list(self.held))
        if runner in self.core.runners:
            self.core.detached(runner)
        self.submit(self.core.lost(runner))
        del self.held[runner]
        late = self.results.pop(runner)
        for outcome in late:
            for t in self.core.outcomes(runner, [outcome], now=self.now):
                assert (0, 0) == t.cost(), "a late word changes nothing"
        self.attach(next(self.ids))

    def blink(self) -> None:
        """A runner loses its stream and comes back."""
        self.faults += 1
        runner = self.chance.choice(list(self.held))
        if runner in self.core.runners:
            self.core.detached(runner)
        self.attach(runner)

    def crash(self) -> None:
        """What is not written is gone; the next orchestrator reads the rows."""
        self.faults += 1
        while self.queue and self.chance.random() < 0.5:
            self.commit()
        self.queue.clear()
        self.core = self._begin()
        for run_id, row in self.store.runs.items():
            if row["status"] not in RUN_FINAL:
                run = self.store.restore(run_id, self.plans[run_id])
                self.core.adopt(run, now=self.now, due_s={}, deadline_s=None)
        self.submit(self.core.redispatch())
        for runner in list(self.core.runners):
            if runner not in self.held:  # fenced before the crash: the sweep finds it again
                self.submit(self.core.lost(runner))
        for runner in list(self.held):
            self.attach(runner)

    def cancel(self) -> None:
        if self.core.runs:
            self.submit(self.core.cancel(self.chance.choice(list(self.core.runs))))

    def tick(self) -> None:
        self.now += self.chance.random()
        self.submit(self.core.due(now=self.now))

    def settle(self) -> None:
        """No more faults: everything that was accepted ends."""
        for _ in range(20_000):
            while self.queue:
                self.commit()
            busy = [runner for runner, held in self.held.items() if held]
            if busy:
                ref, token = self.held[busy[0]].popitem()
                self._finish(busy[0], ref, token, (b"1",))
            elif self.core.next_timer is not None:
                self.now = max(self.now, self.core.next_timer)
                self.submit(self.core.due(now=self.now))
            if not self.queue and not any(self.held.values()) and self.core.next_timer is None:
                return
        raise AssertionError("it never ends")


def same(memory: Run, rows: Run) -> None:
    """Memory is a cache of the rows."""
    for name in ("status", "remaining", "done", "running", "order", "cancelling", "cpu_us"):
        assert getattr(memory, name) == getattr(rows, name), name
    assert (memory.failure or ("", None))[0] == (rows.failure or ("", None))[0]
    assert memory.outputs == rows.outputs
    for mine, theirs in zip(memory.records, rows.records, strict=True):
        if mine is None or theirs is None:
            assert mine is theirs
            continue
        for name in ("id", "status", "token", "runner", "retry_count", "delivery_count", "order"):
            assert getattr(mine, name) == getattr(theirs, name), name


def simulate(
    seed: int,
    *,
    steps: int = 120,
    world: World | None = None,
    more: Sequence[tuple[Callable[[], None], int]] = (),
) -> World:
    """Run one world; every invariant is an assertion on the way."""
    world = world or World(seed)
    for _ in range(world.chance.randint(1, 2)):
        world.attach(next(world.ids))
    actions = [
        (world.start, 6),
        (world.work, 60),
        (world.commit, 70),
        (world.tick, 12),
        (world.lose, 2),
        (world.blink, 3),
        (world.crash, 2),
        (world.cancel, 2),
        *more,
    ]
    names, weights = zip(*actions, strict=True)
    world.start()
    for _ in range(steps):
        action = world.chance.choices(names, weights)[0]
        if action != world.commit or world.queue:
            action()
        if not world.queue:
            compare(world)
    world.settle()
    check_end(world)
    return world


def compare(world: World) -> None:
    """With nothing left to write, memory is what its rows restore to."""
    for run_id, run in world.core.runs.items():
        if run.status not in RUN_FINAL:
            same(run, world.store.restore(run_id, world.plan_of(run_id)))


def check_end(world: World) -> None:
    """Everything ended, once, and nothing leaked."""
    for run_id, row in world.store.runs.items():
        assert row["status"] in RUN_FINAL, f"run {run_id} is stuck"
        for node in world.store.nodes.values():
            if node["run_id"] == run_id:
                assert node["status"] not in ("running", "retrying"), "I4"
    for tokens in world.store.outcomes.values():
        assert 1 == len(tokens), "I11: one committed outcome per node"
    assert not any(runner.in_flight for runner in world.core.runners.values()), "leaked credits"
    assert 0 == world.core.ready.size, "places left waiting"
