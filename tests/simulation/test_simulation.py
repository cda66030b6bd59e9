"""Seeded worlds of the engine: core, journal, recovery, sweep, dispatch and the runner's session.

G1, G2, G3, I1 to I8, I10 to I14, I36, E5, rule by rule in `checker.py`, `oracle.py`, `ends.py`,
`ledger.py`, `steering.py` and `clients.py`. A seed that fails is replayed by
`python -m tests.simulation SEED`.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import pytest

from services.orchestrator.domain import (
    cache_queue,
    core,
    dispatch,
    planner,
    restore,
    retry,
    stopping,
    timers,
)
from services.orchestrator.domain import credits as credits_
from services.orchestrator.domain.steps import (
    adoption,
    answers,
    attempts,
    begin,
    follow,
    requests,
    runners,
)
from tests.simulation import bugs, cache, falls, graphs, reach, seeds
from tests.simulation.database import FATES
from tests.simulation.world import World, quiet

_FULL = bool(os.environ.get("QFLOW_TEST_FULL"))
_BUG_SEEDS_MAX = 1000
_STEPS = (begin, attempts, runners, requests, answers, adoption, follow)
_RULES = (core, *_STEPS, dispatch, timers, planner, stopping, credits_, restore, retry, cache_queue)
# What no world comes to, and what does.
_UNREACHED = frozenset(
    {
        # A sub-workflow's end and its parent's word of it are one flush: test_rich_simulation.
        "adoption.Adoption.child_ended",
        # So is a family's stop; what a pause left of one is told by test_holding_what_closes.
        "adoption.Adoption._is_on_a_word",
        "dispatch.Dispatch.pythons",  # asked by starts before they come here
        "credits.Runner.pythons",
        "timers.Timers.__len__",  # asked by metrics
        "credits.ReadyQueue.waiting",  # asked by explanations and the demand of pools
        "credits.ReadyQueue.waiting.<locals>.<dictcomp>",
        "credits.ReadyQueue.waiting.<locals>.<dictcomp>.<genexpr>",
        # A run ends while it is paused, and is cancelled so: test_holding_what_closes.
        "stopping._close_anew",
        "cache_queue._file_part",  # no world has files: test_cache_queue
        "cache_queue.CacheQueue.asked_of",  # asked by explanations
    }
)


def _failed(report: seeds.Report) -> str:
    first = report.failures[0]
    seed = int(first.split(":")[0].removeprefix("seed "))
    return (
        f"{len(report.failures)} of {report.seeds} seeds failed, first {first}\n"
        f"python -m tests.simulation {seed} replays it:\n{seeds.trace_of(seed)}"
    )


@pytest.mark.timeout(900)
def test_everything_accepted_ends_as_it_should_whatever_befalls_the_engine() -> None:
    """E5, F1 to F3, F5 to F7, F9, F10, F26, F30, F33: in every seed three faults or more."""
    report = seeds.live_through_all(10_000) if _FULL else seeds.live_through(range(50))
    assert not report.failures, _failed(report)
    assert report.nodes >= graphs.NODES_MIN * report.seeds  # each by itself: `World` asserts it
    for fate in FATES:
        assert report.hits[f"one flush: {fate}"], f"no flush met this: {fate}"
    assert report.hits["an orchestrator is killed"]
    assert report.hits["an orchestrator is taken over"]
    assert report.hits["a runner is parted from all others"]
    assert report.hits["frame doubled"]
    assert report.hits["attempt declined"]
    assert report.hits["run refused by the journal"]
    for wear in cache.WEARS:
        assert report.hits[wear] or not _FULL, f"nothing kept met this: {wear}"
    assert report.hits["a kept result is given"]


def test_worlds_that_found_something_end_as_they_should_by_now() -> None:
    """What each was about has a test of its own, in test_found_by_worlds for the most part."""
    report = seeds.live_through(
        (94, 139, 1099, 502605, 502995, 702199, 705358, 705490, 717629, 770827, 771999)
    )
    assert not report.failures, _failed(report)


@pytest.mark.timeout(900)
def test_a_step_that_falls_over_is_as_if_it_had_never_been() -> None:
    """Rule 6: its run is forgotten and read again, and all others go on."""
    hits: Counter[str] = Counter()
    quiet()
    # Those that went wrong first: what a step left to do was done for the run as read again, a
    # suspect was given a runner though its run had been forgotten, or kept that for itself; what
    # a lost attempt used was counted once its node was ended by hand, which was the checker's sum.
    for seed in (158, 1266, 2032, 200793, *range(1000 if _FULL else 20)):
        with falls.falling(seed) as fallen:
            world = World(seed, compared_every=seeds.COMPARED_EVERY)
            world.run()
            world.forget()
        hits += fallen
    assert hits["_take_outcome"]
    assert hits["_give_claimed"]
    assert hits["_send_assignment"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("bug", bugs.BUGS)
def test_a_planted_bug_is_found(bug: str) -> None:
    """A simulation that cannot fail proves nothing."""
    with bugs.planted(bug):
        found = seeds.first_failure(_BUG_SEEDS_MAX, tried_first=bugs.FOUND_BY.get(bug, ()))
    assert found is not None, f"{_BUG_SEEDS_MAX} seeds did not find it"


@pytest.mark.timeout(900)
@pytest.mark.skipif(not _FULL, reason="takes hundreds of seeds: make test-all")
def test_the_worlds_reach_every_rule_of_the_core() -> None:
    """A rule that no world comes to is one of which all seeds say nothing."""
    with reach.reached(_RULES) as hit:
        report = seeds.live_through(range(1500))
    assert not report.failures, _failed(report)
    known = {function for rule in _RULES for function in _of(rule, reach.lines_of(rule).values())}
    found = {
        name
        for rule in _RULES
        for line, function in reach.lines_of(rule).items()
        for name in _of(rule, [function])
        if line in hit[str(rule.__file__)]
    }
    assert known - found <= _UNREACHED


def _of(rule: ModuleType, functions: Iterable[str]) -> list[str]:
    return [f"{rule.__name__.rpartition('.')[2]}.{each}" for each in functions]


def test_a_seed_replays_as_it_was_in_any_process() -> None:
    """What one process found another one finds, whatever order its hashes give and time it is."""
    seeds_told = (11, 5)  # in the second a node sleeps, and gives the time
    script = f"from tests.simulation.test_simulation import digest; print(digest(*{seeds_told}))"
    told = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": hashes, "PYTHONPATH": os.pathsep.join(sys.path)},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for hashes in ("1", "2")
    }
    assert {digest(*seeds_told)} == told


def digest(*seeds_told: int) -> str:
    """Sum up all rows that seeds leave, and when each was over."""
    quiet()
    told = hashlib.sha256()
    for seed in seeds_told:
        world = World(seed).run()
        rows = [sorted(row.items(), key=lambda item: item[0]) for row in world.store.nodes.values()]
        told.update(f"{world.loop.time()} {world.loop.turns} {rows}".encode())
    return told.hexdigest()
