"""What places require of runners, and who is told what is missing."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import pytest

from services.orchestrator.domain.credits import ReadyQueue
from services.orchestrator.domain.explain import Cause, Ready, RunState, Situation, explain
from services.orchestrator.domain.explain_kept import Kept
from services.orchestrator.domain.needs import Needs, Offer, action_for, needs_of, unmet
from services.orchestrator.domain.status import RunStatus

RUN = UUID(int=1)
PYTHONS = frozenset({"3.11"})
LARGE = Offer(
    pythons=PYTHONS,
    tier="T3",
    labels=frozenset({("zone", "eu"), ("disk", "fast")}),
    cpus=8,
    memory_bytes=32 << 30,
    gpus=1,
)


@pytest.mark.parametrize(
    ("asked", "lacking"),
    [
        ({"isolation": "T3"}, []),
        ({"isolation": "T4"}, ["isolation T4"]),
        ({"labels": {"zone": "eu"}}, []),
        ({"labels": {"zone": "us", "disk": "fast"}}, ["the label zone=us"]),
        ({"labels": {"gpu": ""}}, ["the label gpu="]),
        ({"cpus": 8, "memory_bytes": 32 << 30, "gpus": 1}, []),
        ({"cpus": 9}, ["9 processors"]),
        ({"memory_bytes": 33 << 30}, ["33 GiB of memory"]),
        ({"gpus": 2}, ["2 GPUs"]),
    ],
)
def test_a_place_goes_to_no_runner_that_lacks_what_it_requires(
    asked: dict[str, object], lacking: list[str]
) -> None:
    needs = needs_of("3.11", asked)
    assert needs is not None
    assert lacking == list(needs.lacking(LARGE))
    queue = ReadyQueue()
    queue.push(RUN, 7, needs)
    found = queue.take(LARGE)
    assert (None if lacking else (RUN, 7)) == found
    assert (1 if lacking else 0) == queue.size


def test_what_requires_nothing_waits_for_its_python_alone() -> None:
    assert needs_of("3.11", None) is None
    assert needs_of("3.11", {}) is None
    queue = ReadyQueue()
    queue.push(RUN, 1, "3.12")
    queue.push(RUN, 2, Needs("3.12", gpus=1))
    assert queue.take(LARGE) is None
    queue.push(RUN, 3, "3.11")
    assert (RUN, 3) == queue.take(LARGE)


def test_a_runner_that_may_take_nothing_has_no_tier() -> None:
    assert ["isolation T0"] == list(Needs("3.11", isolation="T0").lacking(Offer(pythons=PYTHONS)))


def test_what_nobody_has_is_named_and_what_helps() -> None:
    small = Offer(pythons=PYTHONS, tier="T2", cpus=2)
    needs = Needs("3.11", isolation="T4", labels=(("zone", "eu"),), cpus=4)
    assert ["isolation T4"] == unmet(needs, [small, LARGE])
    assert "QFLOW_DOCKER_RUNTIME" in action_for(unmet(needs, [small, LARGE]))
    apart = [Offer(pythons=PYTHONS, tier="T2", gpus=1), Offer(pythons=PYTHONS, tier="T3")]
    assert ["all that it asks for at once"] == unmet(Needs("3.11", isolation="T3", gpus=1), apart)


def test_an_explanation_tells_which_requirement_nobody_meets() -> None:
    state = RunState(status=RunStatus.RUNNING)
    ready = [
        Ready(node_id="a", wanted=Needs("3.11", labels=(("zone", "us"),)), locked=False),
        Ready(node_id="b", wanted=Needs("3.11", cpus=2), locked=False),
        Ready(node_id="c", wanted=Needs("3.9", cpus=2), locked=False),
    ]
    told = explain(
        state, [], Situation(ready=ready, offers=[LARGE]), now=datetime(2026, 1, 1, tzinfo=UTC)
    )
    found = {each.cause: (each.nodes, each.message) for each in told}
    assert (("a",), "no runner has the label zone=us") == found[Cause.NO_FITTING_RUNNER]
    assert ("c",) == found[Cause.NO_PYTHON][0]
    assert ("b",) == found[Cause.RUNNERS_FULL][0]


def test_an_explanation_tells_a_runner_that_is_kept_from_one_that_is_full() -> None:
    """Only where the one that is kept could take what waits."""
    state = RunState(status=RunStatus.RUNNING)
    ready = [
        Ready(node_id="a", wanted="3.11", locked=False),
        Ready(node_id="b", wanted=Needs("3.11", gpus=1), locked=False),
    ]
    small = Offer(pythons=PYTHONS, tier="T2")
    situation = Situation(ready=ready, offers=[small, LARGE], kept=Kept(offers=[small]))
    told = explain(state, [], situation, now=datetime(2026, 1, 1, tzinfo=UTC))
    assert [(Cause.RUNNERS_KEPT, ("a",)), (Cause.RUNNERS_FULL, ("b",))] == [
        (each.cause, each.nodes) for each in told
    ]
    assert "wait, or add a runner" == told[0].action


def test_an_explanation_tells_of_a_runner_that_is_started() -> None:
    state = RunState(status=RunStatus.RUNNING)
    ready = [
        Ready(node_id="a", wanted="3.11", locked=False),
        Ready(node_id="b", wanted=Needs("3.11", gpus=99), locked=False),
    ]
    now = datetime(2026, 1, 1, tzinfo=UTC)
    told = explain(state, [], Situation(ready=ready, offers=[], coming=[LARGE]), now=now)
    assert [(Cause.NO_RUNNER, ("a",)), (Cause.NO_RUNNER, ("b",))] == [
        (each.cause, each.nodes) for each in told
    ]
    assert ["a runner is started for them", "no runner is attached"] == [
        each.message for each in told
    ]
    told = explain(state, [], Situation(ready=ready, offers=[], machines_come=True), now=now)
    assert [("a", "b")] == [each.nodes for each in told]


def test_the_queue_counts_what_waits_by_what_it_needs() -> None:
    """Those that must run alone too: they wait for a runner like the others."""
    queue = ReadyQueue()
    needs = Needs("3.11", gpus=1)
    for place in range(3):
        queue.push(RUN, place, "3.11", priority=place)
    queue.push(RUN, 3, needs)
    queue.push(RUN, 4, needs, alone=True)
    assert {"3.11": 3, needs: 2} == queue.waiting()
    queue.forget(RUN)
    assert {} == queue.waiting()
