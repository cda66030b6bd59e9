"""How long a run may take, and what speaks against it."""

from __future__ import annotations

import random
from functools import cache

import pytest

from services.orchestrator.domain.cautions import (
    CautionCause,
    Environment,
    Named,
    Outlook,
    PythonSeats,
    cautions,
)
from services.orchestrator.domain.forecast import (
    Forecast,
    History,
    Past,
    Role,
    Times,
    distinct,
    forecasts,
    key_of,
    within,
)
from services.orchestrator.domain.plan import Plan
from tests.unit.orchestrator.graphs import plan_of, random_plan
from tests.unit.orchestrator.rich_graphs import Drawing, rich_plan

SECOND = 1e6


def forecast(plan: Plan, history: History) -> Forecast:
    [expected] = forecasts([plan], history)
    return expected


def took(median_s: float, p90_s: float) -> Past:
    return Past(times=Times(median_s * SECOND, p90_s * SECOND), samples=10, ended=10)


def always(plan: Plan, past: Past) -> History:
    """Every version of a plan and of those in it takes the same, and so does every whole."""
    places = [place for _, each in distinct(plan) for place in each.places]
    return {(place.node_version_id, name): past for place in places for name in (None, place.id)}


@pytest.mark.parametrize("seed", range(30))
def test_the_longest_path_is_the_longest_of_all_paths(seed: int) -> None:
    plan = random_plan(random.Random(seed), size=14)
    chance = random.Random(seed)
    history: History = {
        (place.node_version_id, None): took(chance.randint(1, 9), chance.randint(9, 20))
        for place in plan.places
    }
    found = forecast(plan, history)

    @cache
    def longest(at: int) -> tuple[float, float]:
        own = history[plan.places[at].node_version_id, None].times
        assert own is not None
        after = [longest(child) for child in plan.children[at]]
        return (
            own.median_us + max((each[0] for each in after), default=0.0),
            own.p90_us + max((each[1] for each in after), default=0.0),
        )

    wanted = [max(longest(at)[which] for at in plan.roots) for which in (0, 1)]
    assert wanted == list(found.total or ())
    assert wanted[0] == sum(each.median_us for at in found.path if (each := found.past[at].times))
    for before, after in zip(found.path, found.path[1:], strict=False):
        assert after in plan.children[before]


@pytest.mark.parametrize("seed", range(60))
def test_a_forecast_of_any_plan_counts_every_place_once(seed: int) -> None:
    """Nothing is known: all that takes time is counted. All is known: nothing is."""
    plan = rich_plan(random.Random(seed), size=12)
    blind = forecast(plan, {})
    sure = forecast(plan, always(plan, took(1, 2)))
    assert 0 == sure.unknown
    assert sure.total is not None
    assert sure.total.median_us <= sure.total.p90_us
    assert (blind.total is None) == (blind.unknown > 0 and not blind.path)
    assert blind.roles == sure.roles
    assert {Role.MAIN, Role.FINALLY} >= {sure.roles[at] for at in sure.path}


def test_what_only_failures_lead_to_is_not_predicted() -> None:
    drawing = Drawing(random.Random(0))
    a, rescue, after, undo, last = (
        drawing.node(),
        drawing.node(),
        drawing.node(),
        drawing.node(compensates="n0"),
        drawing.node(phase="finally"),
    )
    drawing.order(a, rescue, kind="failure")
    drawing.order(rescue, after)
    plan = drawing.plan()
    found = forecast(plan, always(plan, took(1, 1)))
    assert [
        Role.MAIN, Role.ON_FAILURE, Role.ON_FAILURE, Role.COMPENSATION, Role.FINALLY,
    ] == [found.roles[plan.index[each]] for each in (a, rescue, after, undo, last)]  # fmt: skip
    assert ["n0", "n4"] == [plan.places[at].id for at in found.path]
    assert Times(2 * SECOND, 2 * SECOND) == found.total == found.work


def test_what_a_failure_calls_is_not_predicted_whatever_else_feeds_it() -> None:
    drawing = Drawing(random.Random(0))
    a, rescue, other = drawing.node(), drawing.node(), drawing.node()
    drawing.order(a, rescue, kind="failure")
    drawing.order(other, rescue)
    plan = drawing.plan()
    assert Role.ON_FAILURE is forecast(plan, {}).roles[plan.index[rescue]]


def test_a_run_takes_no_less_than_its_work_on_the_slots_there_are() -> None:
    total, work = Times(2.0, 3.0), Times(20.0, 24.0)
    assert Times(10.0, 12.0) == within(total, work, 2)
    assert total == within(total, work, 100) == within(total, work, 0)
    assert within(None, work, 2) is None


def outlook(plan: Plan, history: History, **more: object) -> Outlook:
    facts = {
        "environments": {each.node_version_id: Environment.READY for each in plan.places},
        "total": None,
        "timeout_ms": None,
        "pythons": [PythonSeats("3.11", 1, 1, 1)],
        "runners": 1,
        **more,
    }
    return Outlook(
        places=[Named(each.id, each) for each in plan.places],
        history=history,
        **facts,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("failed", "ended", "warned"), [(3, 5, True), (2, 4, False), (3, 3, False), (3, 4, True)]
)
def test_a_node_fails_often_when_most_of_enough_runs_failed(
    failed: int, ended: int, *, warned: bool
) -> None:
    plan = plan_of([], 1)
    past: History = {(plan.places[0].node_version_id, None): Past(ended=ended, failed=failed)}
    causes = [each.cause for each in cautions(outlook(plan, past))]
    assert ([CautionCause.NODE_FAILS_OFTEN] if warned else []) == causes


def test_what_weighs_most_is_said_first() -> None:
    plan = plan_of([], 12)
    limit_s = plan.places[0].timeout_ms / 1000
    found = cautions(
        outlook(
            plan,
            always(plan, took(1, limit_s + 1)),
            environments=dict.fromkeys(
                (each.node_version_id for each in plan.places), Environment.FAILED
            ),
            total=Times(5 * SECOND, 20 * SECOND),
            timeout_ms=10_000,
            pythons=[PythonSeats("3.11", 1, 1, 0)],
        )
    )
    assert [
        CautionCause.ENVIRONMENT_FAILED,
        CautionCause.DEADLINE_SHORT,
        CautionCause.NODE_TIMEOUT_SHORT,
        CautionCause.RUNNERS_FULL,
    ] == [each.cause for each in found]
    assert "perhaps" in found[1].message
    assert (10, 12) == (len(found[0].nodes), found[0].node_count)


def test_no_runner_is_needed_for_what_none_runs() -> None:
    plan = plan_of([], 1)
    here = outlook(plan, {}, pythons=[PythonSeats("3.11", 0, 0, 0)], runners=0)
    assert [CautionCause.NO_RUNNER] == [each.cause for each in cautions(here)]
    assert [] == cautions(outlook(plan, {}, pythons=[], runners=0))


def test_what_the_cache_has_takes_no_time() -> None:
    """Neither in the sum, nor on the path, nor as a sub-workflow whose past runs had to work."""
    plan = plan_of([(0, 1), (1, 2)], 3)
    history = always(plan, took(3, 4))
    [expected] = forecasts([plan], history, {key_of(plan): {0, 2}})
    assert ((1,), Times(3 * SECOND, 4 * SECOND)) == (expected.path, expected.total)
    assert Times(3 * SECOND, 4 * SECOND) == expected.work
    [nothing_left] = forecasts([plan], history, {key_of(plan): {0, 1, 2}})
    assert ((), Times(0, 0), 0) == (nothing_left.path, nothing_left.total, nothing_left.unknown)
    [unknown] = forecasts([plan], {}, {key_of(plan): {0, 1, 2}})
    assert (Times(0, 0), 0) == (unknown.total, unknown.unknown)
    [in_part] = forecasts([plan], {}, {key_of(plan): {0}})
    assert (None, 2) == (in_part.total, in_part.unknown), "that no time is known is no time"


def test_a_sleep_takes_its_time_and_no_slot() -> None:
    drawing = Drawing(random.Random(0))
    for _ in range(3):
        drawing.node(kind="sleep", parameters={"seconds": "60"})
    found = forecast(drawing.plan(), {})
    assert Times(60 * SECOND, 60 * SECOND) == found.total == within(found.total, found.work, 1)


def test_what_a_sub_workflow_took_as_a_whole_is_known_whatever_is_known_of_its_nodes() -> None:
    drawing = Drawing(random.Random(0))
    drawing.plans[drawing.node(kind="workflow")] = plan_of([], 2)
    plan = drawing.plan()
    place = plan.places[0]
    known = forecast(plan, {(place.node_version_id, place.id): took(3, 4)})
    assert (Times(3 * SECOND, 4 * SECOND), 0) == (known.total, known.unknown)
    blind = forecast(plan, {})
    assert (None, 2) == (blind.total, blind.unknown)
    # Those runs did what the cache has by now.
    history = {**always(plan, took(1, 2)), (place.node_version_id, place.id): took(3, 4)}
    assert place.sub is not None
    [cached] = forecasts([plan], history, {key_of(place.sub): {0}})
    assert Times(SECOND, 2 * SECOND) == cached.total
