"""Keys of limits, the queue of what waits for them against a model, and the core under limits."""

from __future__ import annotations

from collections import Counter
from itertools import count
from typing import NamedTuple
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.orchestrator.domain.core import Core
from services.orchestrator.domain.limit_lanes import WHOLE_RUN, Waiting
from services.orchestrator.domain.limit_queue import LimitQueue
from services.orchestrator.domain.limits import (
    KEY_CHARS_MAX,
    NO_KEY,
    UNKNOWN_KEY,
    Claim,
    Demand,
    Lane,
    Limit,
    Limits,
    compile_key,
    key_of,
)
from services.orchestrator.domain.needs import Offer
from services.orchestrator.domain.plan import Plan
from services.orchestrator.domain.records import NO_USAGE
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import NodeStatus, RunStatus
from services.orchestrator.domain.steps.attempts import Outcome
from tests.unit.orchestrator.graphs import plan_of
from tests.unit.orchestrator.test_core import ONE, TENANT, new_core, start

FEW, ALL = UUID(int=1), UUID(int=2)
A, B = Demand(FEW, "a"), Demand(FEW, "b")
EVERY = Demand(ALL, NO_KEY)


# --- keys ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", NO_KEY),
        ("input.x", "1"),
        ("input.name", '"a"'),
        ("input.x > 0", "true"),
        ("[input.x, input.name]", '[1, "a"]'),
        ("input.missing", UNKNOWN_KEY),
        ("input.long", UNKNOWN_KEY),  # longer than a key reads
        ("size(input)", "2"),
    ],
)
def test_a_key_is_the_text_of_what_its_expression_gives(text: str, expected: str) -> None:
    values = {"x": b"1", "long": b'"' + b"y" * 5000 + b'"', "name": b'"a"'}
    assert expected == key_of(compile_key(text), values)


def test_a_key_is_compiled_once_however_often_limits_are_read() -> None:
    assert compile_key("input.x % 2") is compile_key("input.x % 2")


def test_a_long_key_is_known_by_its_digest() -> None:
    key = compile_key("input.x")
    one, other = (key_of(key, {"x": b'"%s"' % (each * 500)}) for each in (b"a", b"b"))
    assert one != other
    assert max(len(one), len(other)) <= KEY_CHARS_MAX


def test_inputs_of_a_megabyte_in_all_have_a_key_by_those_that_come_first() -> None:
    values = {f"x{at}": b'"' + b"y" * 4000 + b'"' for at in range(250)}
    assert UNKNOWN_KEY != key_of(compile_key("input.x0"), values)
    assert UNKNOWN_KEY == key_of(compile_key("input.x200"), values)


# --- the queue ----------------------------------------------------------------------------------


class Step(NamedTuple):
    """What happens to the queue, with what it is about."""

    what: str
    lane: Lane
    run: int
    priority: int


_LANES: tuple[Lane, ...] = ((A,), (B,), (EVERY,), (A, EVERY), (B, EVERY))
_STEPS = st.lists(
    st.builds(
        Step,
        st.sampled_from(("push", "push", "push", "take", "take", "free", "free", "forget")),
        st.sampled_from(_LANES),
        st.integers(0, 5),
        st.integers(0, 1),
    ),
    max_size=60,
)


class Places:
    """The database: how many places each count has, and who has them."""

    def __init__(self, most: dict[UUID, int]) -> None:
        self.most = most
        self.held: list[Claim] = []

    def taken(self) -> Counter[Demand]:
        return Counter(demand for claim in self.held for demand in claim.lane)

    def take(self, claim: Claim) -> UUID | None:
        taken = self.taken()
        for demand in claim.lane:
            if taken[demand] >= self.most[demand.limit_id]:
                return demand.limit_id
        self.held.append(claim)
        return None


def ask(queue: LimitQueue, places: Places) -> list[Waiting]:
    """Do what the loop does; returns who goes on."""
    found, ids = [], count(1)
    while claims := queue.ask(4, lambda: UUID(int=next(ids))):
        for claim in claims:
            refused_by = places.take(claim)
            if refused_by is not None:
                queue.refused(claim, refused_by)
            elif (waiting := queue.granted(claim)) is not None:
                found.append(waiting)
            else:
                places.held.remove(claim)
    queue.abandoned.clear()
    return found


@settings(max_examples=300, deadline=None)
@given(_STEPS, st.integers(1, 3), st.integers(1, 4))
def test_nobody_waits_while_there_is_a_place_and_nobody_goes_on_twice(
    steps: list[Step], few: int, every: int
) -> None:
    """I32: against a model that looks at everything each time."""
    queue, places = LimitQueue(), Places({FEW: few, ALL: every})
    slots = count()
    waiting: dict[Waiting, Lane] = {}
    for what, lane, number, priority in steps:
        run = UUID(int=100 + number)
        if what == "push":
            each = Waiting(run, next(slots))
            waiting[each] = lane
            queue.push(lane, each, owner=UUID(int=number % 2), priority=priority)
        elif what == "forget":
            queue.forget(run)
            waiting = {each: of for each, of in waiting.items() if each.run_id != run}
        elif what == "free" and places.held:
            claim = places.held.pop(number % len(places.held))
            queue.freed(claim.lane)
        if what in ("take", "free"):
            for each in ask(queue, places):
                del waiting[each]
            taken = places.taken()
            assert all(taken[each] <= places.most[each.limit_id] for each in taken)
            for each, of in waiting.items():
                assert any(taken[d] == places.most[d.limit_id] for d in of), each
        assert len(waiting) == queue.size
    assert waiting.keys() == set(queue.drain())


def test_owners_take_turns_and_so_do_the_runs_of_each() -> None:
    queue, places = LimitQueue(), Places({FEW: 1})
    for owner, run in ((1, 10), (1, 10), (1, 11), (2, 20), (1, 11), (2, 20)):
        each = Waiting(UUID(int=run), queue.size)
        queue.push((A,), each, owner=UUID(int=owner), priority=0)
    order = []
    for _ in range(6):
        [each] = ask(queue, places)
        order.append(each.run_id.int)
        queue.freed(places.held.pop().lane)
    assert [10, 20, 11, 20, 10, 11] == order


def order_of(queue: LimitQueue, places: Places) -> list[int]:
    """Give one place back after the other; returns the runs that went on."""
    order = []
    while queue.size:
        [each] = ask(queue, places)
        order.append(each.run_id.int)
        queue.freed(places.held.pop().lane)
    return order


def test_owners_take_turns_however_many_counts_they_wait_for() -> None:
    """Lanes of the keys a to f share the places of another limit; f is a second owner's."""
    queue, places = LimitQueue(), Places({FEW: 1, ALL: 1})
    for at, key in enumerate("abcdef"):
        owner = 2 if key == "f" else 1
        for again in range(2):
            each = Waiting(UUID(int=10 * at + again), 0)
            queue.push((Demand(FEW, key), EVERY), each, owner=UUID(int=owner), priority=0)
    order = order_of(queue, places)
    assert [0, 50] == order[:2]
    assert 51 == order[3]
    assert [10, 20, 30, 40] == [order[2], *order[4:7]], "those of one owner take turns too"


def test_the_highest_priority_comes_first_in_whichever_lane_it_waits() -> None:
    queue, places = LimitQueue(), Places({FEW: 1, ALL: 1})
    for priority, key in ((0, "a"), (5, "b"), (-1, "c")):
        each = Waiting(UUID(int=10 + priority), 0)
        queue.push((Demand(FEW, key), EVERY), each, owner=TENANT, priority=priority)
    assert [15, 10, 9] == order_of(queue, places)


def test_the_highest_priority_comes_first() -> None:
    queue, places = LimitQueue(), Places({FEW: 1})
    for priority in (0, 5, -1):
        each = Waiting(UUID(int=10 + priority), 0)
        queue.push((A,), each, owner=TENANT, priority=priority)
    order = []
    for _ in range(3):
        [each] = ask(queue, places)
        order.append(each.run_id.int)
        queue.freed(places.held.pop().lane)
    assert [15, 10, 9] == order


def test_a_full_key_holds_up_no_other() -> None:
    queue, places = LimitQueue(), Places({FEW: 1})
    for at in range(50):
        queue.push((A,), Waiting(UUID(int=1), at), owner=TENANT, priority=0)
    queue.push((B,), Waiting(UUID(int=2), 0), owner=TENANT, priority=0)
    assert {1, 2} == {each.run_id.int for each in ask(queue, places)}


def test_what_was_given_back_while_an_answer_was_under_way_is_asked_for_again() -> None:
    queue = LimitQueue()
    queue.push((A,), Waiting(UUID(int=1), 0), owner=TENANT, priority=0)
    [claim] = queue.ask(10, lambda: UUID(int=5))
    queue.freed([A])
    queue.refused(claim, FEW)
    assert 1 == len(queue.ask(10, lambda: UUID(int=5)))


def test_a_lane_that_a_rate_held_up_is_looked_at_when_its_time_has_come() -> None:
    queue = LimitQueue()
    queue.push((A,), Waiting(UUID(int=1), 0), owner=TENANT, priority=0)
    [claim] = queue.ask(10, lambda: UUID(int=5))
    queue.refused(claim, FEW, at=10.0)
    queue.ripen(9.0)
    assert (False, 10.0) == (queue.wanted, queue.next_due)
    queue.ripen(10.0)
    assert (True, None) == (queue.wanted, queue.next_due)


def test_an_answer_that_nobody_knows_is_given_back_and_asked_for_again() -> None:
    queue = LimitQueue()
    queue.push((A,), Waiting(UUID(int=1), 0), owner=TENANT, priority=0)
    [claim] = queue.ask(10, lambda: UUID(int=5))
    queue.unanswered(claim)
    assert [UUID(int=5)] == queue.abandoned
    assert 1 == len(queue.ask(10, lambda: UUID(int=6)))


# --- the core -----------------------------------------------------------------------------------


def limited(core: Core, plan: Plan, *, runs: bool) -> None:
    workflow_id = plan.workflow_id if runs else None
    limit = Limit(
        id=FEW, tenant_id=TENANT, name="few", revision=1, workflow_id=workflow_id, key=None
    )
    assert [] == core.limits_known([limit], now=0.0)


def taken(core: Core) -> list[Claim]:
    """Take one place for what waits longest."""
    ids = count(500)
    claims = core.limited.ask(1, lambda: UUID(int=next(ids)))
    for claim in claims:
        core.slots_taken([claim], now=1.0)
    return claims


PLAN, CHAIN = plan_of([], 1), plan_of([(0, 1)], 2)


def test_a_limit_is_about_one_user_or_counts_each_by_themselves() -> None:
    """As a run's owner is, whatever else it is counted by."""
    mine, theirs = (run_of_owner(UUID(int=each)) for each in (1, 2))
    every, each, keyed, my = (UUID(int=at) for at in range(1, 5))
    limits = Limits(
        [
            Limit(id=every, tenant_id=TENANT, name="every", revision=1),
            Limit(id=each, tenant_id=TENANT, name="each", revision=1, per_owner=True),
            Limit(
                id=keyed,
                tenant_id=TENANT,
                name="keyed",
                revision=1,
                per_owner=True,
                key=compile_key("input.x"),
            ),
            Limit(id=my, tenant_id=TENANT, name="my", revision=1, owner_id=UUID(int=1)),
        ]
    )
    for run, own in ((mine, [Demand(my, NO_KEY)]), (theirs, [])):
        user = str(run.created_by)
        shared = [Demand(every, NO_KEY), Demand(each, user), Demand(keyed, f"{user} 1")]
        assert (*shared, *own) == limits.of_slot(run, 0)
    assert all(len(demand.key) <= 255 for demand in limits.of_slot(mine, 0))


def run_of_owner(owner: UUID) -> Run:
    return Run(
        id=UUID(int=owner.int + 90),
        plan=PLAN,
        tenant_id=TENANT,
        created_by=owner,
        status=RunStatus.PENDING,
        input_values={"x": b"1"},
    )


def statuses(run: Run) -> list[NodeStatus | None]:
    return [each.status if each else None for each in run.records]


def test_an_attempt_begins_with_its_place_and_gives_it_back_as_it_ends() -> None:
    core = new_core((ONE, 4))
    limited(core, PLAN, runs=False)
    run = start(core, PLAN)
    assert [None] == statuses(run)
    [claim] = core.limited.ask(9, lambda: UUID(int=500))
    [t] = core.slots_taken([claim], now=1.0)
    [record] = run.records
    assert record is not None
    assert [(UUID(int=500), run.id, record.id)] == [tuple(each) for each in t.uses]
    outcome = Outcome(record.id, record.token, (b"1",), NO_USAGE)
    [t] = core.outcomes(ONE, [outcome], now=2.0)
    assert [(UUID(int=500), FEW, NO_KEY)] == [tuple(each) for each in t.frees]
    assert {} == core.held


def test_a_place_whose_slot_is_gone_goes_to_the_next_or_back() -> None:
    core = new_core((ONE, 4))
    limited(core, PLAN, runs=False)
    first, second = start(core, PLAN), start(core, PLAN)
    [claim] = core.limited.ask(1, lambda: UUID(int=500))
    core.cancel(first.id)
    core.slots_taken([claim], now=1.0)
    assert [NodeStatus.RUNNING] == statuses(second)
    third = start(core, PLAN)
    [claim] = core.limited.ask(1, lambda: UUID(int=501))
    core.cancel(third.id)
    core.slots_taken([claim], now=1.0)
    assert [UUID(int=501)] == core.limited.abandoned


def test_a_place_that_waits_for_a_runner_goes_back_when_its_run_is_stopped() -> None:
    core = new_core()
    limited(core, PLAN, runs=False)
    run = start(core, PLAN)
    assert 1 == len(taken(core))
    assert [None] == statuses(run)
    core.cancel(run.id)
    assert 1 == len(core.limited.abandoned)


def test_a_limit_that_is_made_while_a_slot_waits_for_a_runner_holds_for_it() -> None:
    core = new_core()
    run = start(core, PLAN)
    assert 1 == core.ready.size
    limited(core, PLAN, runs=False)
    core.attached(ONE, Offer(pythons=frozenset({"3.11"}), tier="T2"), {})
    core.granted(ONE, 4, 1)
    assert [None] == statuses(run)
    assert 1 == len(taken(core))
    assert [NodeStatus.RUNNING] == statuses(run)


def test_a_run_over_its_limit_is_asleep_until_there_is_a_place_or_no_limit() -> None:
    core = new_core((ONE, 4))
    limited(core, PLAN, runs=True)
    first, second = start(core, PLAN), start(core, PLAN)
    assert 1 == len(taken(core))
    assert ([NodeStatus.RUNNING], [None]) == (statuses(first), statuses(second))
    assert [((FEW, ""), [WHOLE_RUN], 0)] == list(core.limited.positions_of(second.id))
    core.limits_known([], now=1.0)
    assert [NodeStatus.RUNNING] == statuses(second)


def test_a_run_gives_its_place_back_with_its_end_and_not_before() -> None:
    core = new_core((ONE, 4))
    limited(core, CHAIN, runs=True)
    run = start(core, CHAIN)
    assert 1 == len(taken(core))
    freed = []
    for at in range(2):
        record = run.records[at]
        assert record is not None
        outcome = Outcome(record.id, record.token, (b"1",), NO_USAGE)
        transitions = core.outcomes(ONE, [outcome], now=2.0)
        freed.append(sum(len(t.frees) for t in transitions))
    assert RunStatus.COMPLETED is run.status
    assert [0, 1] == freed


def test_an_attempt_that_was_to_be_killed_and_is_gone_gives_its_place_back() -> None:
    """CP16: its runner comes back without it; what undoes the run may need the place."""
    core = new_core((ONE, 4))
    limited(core, PLAN, runs=False)
    run = start(core, PLAN)
    assert 1 == len(taken(core))
    core.cancel(run.id)
    core.detached(ONE)
    written = core.attached(ONE, Offer(pythons=frozenset({"3.11"}), tier="T2"), {})
    assert RunStatus.CANCELLED is run.status
    assert 1 == sum(len(t.frees) for t in written)


def test_an_attempt_that_is_lost_or_declined_gives_its_place_back_and_waits_for_another() -> None:
    core = new_core((ONE, 4))
    limited(core, PLAN, runs=False)
    run = start(core, PLAN)
    assert 1 == len(taken(core))
    record = run.records[0]
    assert record is not None
    [t] = core.declined(ONE, record.id, record.token)
    assert 1 == len(t.frees)
    assert 1 == core.limited.size
    assert 1 == len(taken(core))
    [t] = core.lost(ONE)
    assert 1 == len(t.frees)
    assert 1 == core.limited.size
