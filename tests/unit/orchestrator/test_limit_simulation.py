"""The core under limits and random faults: never more than they allow, and no place leaks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from uuid import UUID

import pytest

from services.orchestrator.domain.core import Core
from services.orchestrator.domain.limit_lanes import Group
from services.orchestrator.domain.limits import Claim, Demand, Lane, Limit, compile_key
from services.orchestrator.domain.options import RunOptions
from services.orchestrator.domain.rows import RunInsert
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import RunStatus
from services.orchestrator.domain.transition import Transition
from tests.unit.orchestrator.graphs import random_plan
from tests.unit.orchestrator.worlds import TENANT, World, check_end, simulate

SEEDS = 60
WORKFLOW = UUID(int=50)
RUNS, ATTEMPTS, OWNERS = UUID(int=51), UUID(int=52), UUID(int=53)
MOST = {RUNS: 2, ATTEMPTS: 3, OWNERS: 2}
LIMITS = (
    Limit(
        id=RUNS,
        tenant_id=TENANT,
        name="runs",
        revision=1,
        workflow_id=WORKFLOW,
        key=compile_key("input.x"),
    ),
    Limit(id=ATTEMPTS, tenant_id=TENANT, name="attempts", revision=1),
    Limit(id=OWNERS, tenant_id=TENANT, name="owners", revision=1, per_owner=True),
)


@dataclass(slots=True)
class Slot:
    """A row of limit_slots."""

    demand: Demand
    epoch: int
    row: UUID | None = None


class LimitedWorld(World):
    """A world whose store has places, and in which the limits' loop takes its turns."""

    def __init__(self, seed: int) -> None:
        self.slots: dict[UUID, Slot] = {}
        self.owners: dict[UUID, UUID] = {}  # by run
        super().__init__(seed)

    def _begin(self) -> Core:
        core = super()._begin()
        self.slots = {at: each for at, each in self.slots.items() if each.row is not None}
        rows = {each.row for each in self.slots.values()}
        for row in rows:
            of = {at: each for at, each in self.slots.items() if each.row == row}
            assert row is not None
            core.held[row] = Claim(tuple(each.demand for each in of.values()), tuple(of))
        core.limits_known(LIMITS, now=self.now)
        return core

    def start(self) -> None:
        plan = random_plan(self.chance, size=self.chance.randint(1, 8))
        plan = replace(plan, workflow_id=self.chance.choice((WORKFLOW, plan.workflow_id)))
        run = Run(
            id=next(self.ids),
            plan=plan,
            tenant_id=TENANT,
            created_by=UUID(int=self.chance.randint(1, 2)),
            status=RunStatus.PENDING,
            input_values={"x": b"1"},
            options=RunOptions(priority=self.chance.choice((-1, 0, 0, 1))),
        )
        self.plans[run.id] = plan
        self.owners[run.id] = run.created_by
        timeout_ms = self.chance.choice((None, None, 4000))
        row = RunInsert(
            run.id, plan.workflow_id, TENANT, run.created_by, 1, None, plan.pins_id, 0, "pending",
            "{}", None, None, "3.11", timeout_ms, 1,
        )  # fmt: skip
        self.submit(self.core.start(run, row, now=self.now))

    def commit(self) -> None:
        t = self.queue[0]
        super().commit()
        self._write(t)
        running = [each for each in self.store.nodes.values() if each["status"] == "running"]
        assert len(running) <= MOST[ATTEMPTS], "I32"
        of_owners = Counter(self.owners[each["run_id"]] for each in running)
        assert all(each <= MOST[OWNERS] for each in of_owners.values()), "I32"

    def _write(self, t: Transition) -> None:
        for use in t.uses:
            slot = self.slots[use.id]
            assert slot.epoch == self.epoch, "only who took a place uses it"
            assert slot.row is None
            slot.row = use.node_execution_id or use.run_id
        for free in t.frees:
            slot = self.slots.pop(free.id)
            assert (free.limit_id, free.key) == slot.demand
        self.core.freed(t)

    def turn(self) -> None:
        """What the loop does: give back, once nothing is on its way; ask, and take."""
        limited = self.core.limited
        if not self.queue:
            for each in limited.abandoned:
                slot = self.slots.get(each)
                if slot is not None and slot.row is None:
                    del self.slots[each]
                    limited.freed([slot.demand])
            limited.abandoned.clear()
        taken: list[Claim] = []
        lost = self.chance.random() < 0.05  # the answer to all of it
        for claim in limited.ask(self.chance.randint(1, 4), lambda: next(self.ids)):
            priority = limited._asked[claim.slots[0]][0].priority
            urgent = self._urgent(priority, claim, taken)
            refused_by = self._take(claim)
            if lost:
                self.faults += 1
                limited.unanswered(claim)
            elif refused_by is None:
                assert not urgent, "I35"
                taken.append(claim)
            else:
                limited.refused(claim, refused_by)
        self.submit(self.core.slots_taken(taken, now=self.now))

    def _urgent(self, priority: int, claim: Claim, taken: list[Claim]) -> list[Group]:
        """Give what of a higher priority waits, is given nothing, and could have these places."""
        limited = self.core.limited
        given = Counter(limited._asked[each.slots[0]][0] for each in taken)
        return [
            group
            for groups in limited._lanes.values()
            for group in groups.values()
            if group.priority > priority
            and group.size > given[group]
            and not set(group.lane).isdisjoint(claim.lane)
            and self._full(group.lane) is None
        ]

    def _full(self, lane: Lane) -> UUID | None:
        counts = Counter(each.demand for each in self.slots.values())
        for demand in lane:
            if counts[demand] >= MOST[demand.limit_id]:
                return demand.limit_id
        return None

    def _take(self, claim: Claim) -> UUID | None:
        refused_by = self._full(claim.lane)
        if refused_by is not None:
            return refused_by
        for demand, slot in zip(claim.lane, claim.slots, strict=True):
            self.slots[slot] = Slot(demand, self.epoch)
        return None

    def settle(self) -> None:
        for _ in range(20_000):
            while self.queue:
                self.commit()
            self.turn()
            busy = [runner for runner, held in self.held.items() if held]
            if self.queue or self.core.limited.wanted:
                continue
            if busy:
                ref, token = self.held[busy[0]].popitem()
                self._finish(busy[0], ref, token, (b"1",))
            elif self.core.next_timer is not None:
                self.now = max(self.now, self.core.next_timer)
                self.submit(self.core.due(now=self.now))
            else:
                return
        raise AssertionError("it never ends")


def limited(seed: int) -> LimitedWorld:
    """Run one world; every invariant is an assertion on the way."""
    world = LimitedWorld(seed)
    simulate(seed, world=world, more=[(world.turn, 40)])
    return world


@pytest.mark.parametrize("block", range(4))
def test_no_seed_exceeds_a_limit_or_keeps_a_place(block: int) -> None:
    """I9, I32: by what is committed, through losses, crashes and answers that nobody heard."""
    faults = 0
    for seed in range(block * SEEDS, (block + 1) * SEEDS):
        try:
            world = limited(seed)
            check_end(world)
            assert {} == world.slots, "places leaked"
            assert {} == world.core.held
            assert 0 == world.core.limited.size
        except Exception as error:
            raise AssertionError(f"seed {seed}: limited({seed}) replays it") from error
        faults += world.faults
    assert faults > 100


def test_the_simulation_finds_a_place_that_is_not_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A test that cannot fail proves nothing: a place that a lost attempt keeps is noticed."""

    def forgetful(core: Core, row: UUID, t: Transition) -> None:
        core.held.pop(row, None)

    monkeypatch.setattr(Core, "_give_back", forgetful)
    with pytest.raises(AssertionError):
        limited(1)
