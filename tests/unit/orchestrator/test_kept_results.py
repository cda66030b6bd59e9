"""Which results of a run stand for another, by how its places and their parts ended."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import replace

import pytest

from services.kit.errors import FailedPrecondition
from services.orchestrator.domain.compile import compile_plan
from services.orchestrator.domain.plan import Definition, Plan
from services.orchestrator.domain.status import NodeStatus, RunStatus
from services.orchestrator.domain.undoing import Heir, Undoing
from services.orchestrator.storage.node_executions import NodeExecution
from services.orchestrator.usecases.kept_results import Found, standing
from tests.unit.orchestrator.test_compatibility import INT, edge, version

DONE, FAILED, ASIDE = NodeStatus.COMPLETED, NodeStatus.FAILED, NodeStatus.QUARANTINED
NAMES = ("quote", "pay", "ship", "note", "refund")


@pytest.fixture
def plan() -> Plan:
    """quote → pay → ship, quote → note; pay is a map that refund undoes."""
    definition = Definition(
        workflow_id=uuid.uuid4(),
        version=1,
        nodes=[
            {"id": "quote"},
            {"id": "pay", "map": {"input": "x", "max_failed": 1}},
            {"id": "ship"},
            {"id": "note"},
            {"id": "refund", "compensates": "pay"},
        ],
        connections=[
            edge("quote", "result", "pay", "x"),
            edge("pay", "result", "ship", "x"),
            edge("quote", "result", "note", "x"),
            edge("pay", "result", "refund", "x"),
        ],
        settings={},
        input_types=[],
        output_types=[],
    )
    one = version({"x": INT}, {"result": INT})
    return compile_plan(definition, dict.fromkeys(NAMES, one), pins_id=uuid.uuid4())


def found(plan: Plan, parts: Mapping[str, NodeStatus] | None = None, **ends: NodeStatus) -> Found:
    wholes = {
        plan.index[name]: NodeExecution(node_id=name, status=status)
        for name, status in ends.items()
    }
    undone = {at: wholes[at].status for at in plan.compensations if at in wholes}
    undoing = Undoing(plan, RunStatus.FAILED, undone)
    return Found(wholes, {plan.index["pay"]: parts} if parts else {}, undoing)


def names(plan: Plan, places: list[int]) -> list[str]:
    return [plan.places[at].id for at in places]


@pytest.mark.parametrize(
    ("refund", "stands"),
    [
        (DONE, ["quote", "note"]),
        (NodeStatus.RUNNING, ["quote", "note"]),  # of an open run that is forked
        (NodeStatus.RETRYING, ["quote", "note"]),
        (FAILED, ["quote", "pay", "note"]),
        (NodeStatus.SKIPPED, ["quote", "pay", "note"]),
        (NodeStatus.CANCELLED, ["quote", "pay", "note"]),
    ],
)
def test_what_was_undone_does_not_stand(plan: Plan, refund: NodeStatus, stands: list[str]) -> None:
    """Nor would what hangs on it; what does not, stands."""
    seen = found(plan, quote=DONE, pay=DONE, ship=FAILED, note=DONE, refund=refund)
    assert stands == names(plan, standing(plan, seen, lost=(), in_part=()))


def test_what_stands_is_given_in_the_order_in_which_it_ended(plan: Plan) -> None:
    """That is the order in which it is undone, backwards: two that were taken over came first."""
    ends = {"note": (1, 2), "quote": (1, 1), "ship": (4, 3), "pay": (3, 4)}
    wholes = {
        plan.index[name]: NodeExecution(
            node_id=name, status=DONE, revision=revision, execution_order=order
        )
        for name, (revision, order) in ends.items()
    }
    seen = Found(wholes, {}, Undoing(plan, RunStatus.FAILED, {}))
    stands = names(plan, standing(plan, seen, lost=(), in_part=()))
    assert ["quote", "note", "pay", "ship"] == stands


def test_what_a_run_that_is_open_may_yet_undo_does_not_stand(plan: Plan) -> None:
    over = found(plan, quote=DONE, pay=DONE, ship=FAILED, note=DONE)
    opened = replace(over, undoing=replace(over.undoing, status=RunStatus.RUNNING))
    for seen, stands in ((opened, ["quote", "note"]), (over, ["quote", "pay", "note"])):
        assert stands == names(plan, standing(plan, seen, lost=(), in_part=()))


def test_of_a_map_that_was_undone_no_element_stands(plan: Plan) -> None:
    parts = {"pay[0]": DONE, "pay[1]": ASIDE}
    seen = found(plan, parts, quote=DONE, pay=DONE, ship=FAILED, note=DONE, refund=DONE)
    pay = plan.index["pay"]
    assert {pay} == seen.poisoned()
    assert ["quote", "note"] == names(plan, standing(plan, seen, lost=(), in_part={pay}))


def test_what_hangs_on_a_map_that_goes_on_does_not_stand(plan: Plan) -> None:
    """It ended as the map failed, which may complete by now."""
    parts = {"pay[0]": DONE, "pay[1]": FAILED}
    seen = found(plan, parts, quote=DONE, pay=FAILED, ship=NodeStatus.SKIPPED, note=DONE)
    pay = plan.index["pay"]
    stands = names(plan, standing(plan, seen, lost=(), in_part={pay}))
    assert ["quote", "note", "pay"] == stands


@pytest.mark.parametrize(
    ("end", "part", "goes_on"),
    [
        *((FAILED, DONE, True), (NodeStatus.CANCELLED, DONE, True), (DONE, DONE, False)),
        *((FAILED, ASIDE, False), (FAILED, NodeStatus.CANCELLED, False)),
    ],
)
def test_a_map_goes_on_where_it_ended_badly_and_some_of_it_did_not(
    plan: Plan, end: NodeStatus, part: NodeStatus, *, goes_on: bool
) -> None:
    """Nothing of another is kept: it runs as if it had never begun, and nobody's heir has it."""
    seen = found(plan, {"pay[0]": part, "pay[1]": FAILED}, quote=DONE, pay=end)
    assert ({plan.index["pay"]} if goes_on else set()) == seen.broken(plan)


@pytest.mark.parametrize(
    ("refund", "whole"),
    [
        *((None, True), (FAILED, True), (NodeStatus.SKIPPED, True), (DONE, False)),
        *((NodeStatus.RUNNING, False), (NodeStatus.RETRYING, False)),
    ],
)
def test_a_map_is_gone_on_with_by_one_run_unless_it_was_undone(
    plan: Plan, refund: NodeStatus | None, *, whole: bool
) -> None:
    """Whoever completes it undoes it as a whole; of what is undone nothing is left for that."""
    pay, at = plan.index["pay"], plan.index["refund"]
    heir = Heir(uuid.uuid4(), RunStatus.RUNNING, ())
    undone = {} if refund is None else {at: refund}
    undoing = Undoing(plan, RunStatus.FAILED, undone, heir)
    assert ({pay} if whole else set()) == undoing.whole({pay})
    seen = replace(found(plan, {"pay[0]": DONE}, quote=DONE, pay=FAILED), undoing=undoing)
    if whole:
        with pytest.raises(FailedPrecondition, match="took over the elements of pay"):
            standing(plan, seen, lost=(), in_part={pay})
    else:
        assert ["quote"] == names(plan, standing(plan, seen, lost=(), in_part={pay}))


@pytest.mark.parametrize("end", [DONE, FAILED, NodeStatus.CANCELLED])
def test_a_map_has_poison_however_it_ended(plan: Plan, end: NodeStatus) -> None:
    parts = {"pay[0]": DONE, "pay[1]": ASIDE}
    assert {plan.index["pay"]} == found(plan, parts, quote=DONE, pay=end).poisoned()
    assert set() == found(plan, {"pay[0]": DONE, "pay[1]": FAILED}, pay=end).poisoned()


@pytest.mark.parametrize(
    ("status", "refund", "settled"),
    [
        (RunStatus.COMPLETED, None, True),  # nothing was to be undone
        # By hand, or as that run was made of one that completed.
        (RunStatus.FAILED, NodeStatus.SKIPPED, True),
        (RunStatus.FAILED, FAILED, False),
        (RunStatus.FAILED, None, False),
    ],
)
def test_what_stands_is_nobody_elses_to_undo(
    plan: Plan, status: RunStatus, refund: NodeStatus | None, *, settled: bool
) -> None:
    pay, at = plan.index["pay"], plan.index["refund"]
    seen = Undoing(plan, status, {} if refund is None else {at: refund})
    assert ({pay: (at,)} if settled else {}) == seen.settled()
    assert (set() if settled else {pay}) == seen.passed()


@pytest.mark.parametrize(
    ("heir", "refund", "fate"),
    [
        (RunStatus.RUNNING, FAILED, "gone"),
        (RunStatus.FAILED, FAILED, "gone"),  # undone there, or left for who runs that again
        (RunStatus.COMPLETED, FAILED, "settled"),  # what it stands on
        (RunStatus.COMPLETED, DONE, "gone"),
        (RunStatus.RUNNING, NodeStatus.SKIPPED, "settled"),
    ],
)
def test_what_another_run_took_over_is_not_undone_twice(
    plan: Plan, heir: RunStatus, refund: NodeStatus, fate: str
) -> None:
    pay, at = plan.index["pay"], plan.index["refund"]
    taken = Heir(uuid.uuid4(), heir, ())
    seen = Undoing(plan, RunStatus.FAILED, {at: refund}, taken)
    assert (fate == "gone") is (pay in seen.undone())
    assert (fate == "settled") is (pay in seen.settled())
    assert set() == seen.passed()
    left = replace(seen, heir=replace(taken, skipped={"refund"}))
    assert (refund is DONE) is (pay in left.undone())
