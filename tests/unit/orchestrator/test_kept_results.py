"""Which results of a run stand for another, by how its places and their parts ended."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import replace

import pytest

from services.orchestrator.domain.compile import compile_plan
from services.orchestrator.domain.plan import Definition, Plan
from services.orchestrator.domain.status import NodeStatus
from services.orchestrator.storage.executions import NodeExecution
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
    return Found(wholes, {plan.index["pay"]: parts} if parts else {})


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
    stands = names(plan, standing(plan, Found(wholes, {}), lost=(), in_part=()))
    assert ["quote", "note", "pay", "ship"] == stands


def test_what_a_run_that_is_open_may_yet_undo_does_not_stand(plan: Plan) -> None:
    wholes = found(plan, quote=DONE, pay=DONE, ship=FAILED, note=DONE).wholes
    for undoes, stands in ((True, ["quote", "note"]), (False, ["quote", "pay", "note"])):
        seen = Found(wholes, {}, undoes=undoes)
        assert stands == names(plan, standing(plan, seen, lost=(), in_part=()))


def test_of_a_map_that_was_undone_no_element_stands(plan: Plan) -> None:
    parts = {"pay[0]": DONE, "pay[1]": ASIDE}
    seen = found(plan, parts, quote=DONE, pay=DONE, ship=FAILED, note=DONE, refund=DONE)
    pay = plan.index["pay"]
    assert {pay} == seen.poisoned()
    assert ["quote", "note"] == names(plan, standing(plan, seen, lost=(), in_part={pay}))


@pytest.mark.parametrize("end", [DONE, FAILED, NodeStatus.CANCELLED])
def test_a_map_has_poison_however_it_ended(plan: Plan, end: NodeStatus) -> None:
    parts = {"pay[0]": DONE, "pay[1]": ASIDE}
    assert {plan.index["pay"]} == found(plan, parts, quote=DONE, pay=end).poisoned()
    assert set() == found(plan, {"pay[0]": DONE, "pay[1]": FAILED}, pay=end).poisoned()


@pytest.mark.parametrize(
    ("stands", "refund", "settled"),
    [
        (True, None, True),  # it completed: nothing was to be undone
        (False, NodeStatus.SKIPPED, True),  # by hand, or as that run was made of one that completed
        (False, FAILED, False),
        (False, None, False),
    ],
)
def test_what_stands_is_nobody_elses_to_undo(
    plan: Plan, refund: NodeStatus | None, *, stands: bool, settled: bool
) -> None:
    ends = {"quote": DONE, "pay": DONE, "ship": FAILED}
    if refund is not None:
        ends["refund"] = refund
    seen = replace(found(plan, None, **ends), stands=stands)
    expected = {plan.index["pay"]: (plan.index["refund"],)} if settled else {}
    assert expected == seen.settled(plan)
