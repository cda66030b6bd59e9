"""What a run says of nodes that the cache is asked for."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from services.orchestrator.domain.cache_queue import Ask, CacheQueue
from services.orchestrator.domain.explain import Cause, RunState, Situation, explain
from services.orchestrator.domain.status import RunStatus

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RUN, OTHER = UUID(int=1), UUID(int=2)


def test_nodes_that_wait_for_the_cache_are_told_of() -> None:
    situation = Situation(ready=[], offers=[], asked=["a", "b"])
    [reason] = explain(RunState(status=RunStatus.RUNNING), [], situation, now=NOW)
    assert (Cause.CACHE_ASKED, ("a", "b"), 2) == (reason.cause, reason.nodes, reason.node_count)
    assert "without an answer they run" in reason.message


def test_a_paused_run_says_nothing_of_the_cache() -> None:
    situation = Situation(ready=[], offers=[], asked=["a"])
    found = explain(RunState(status=RunStatus.PAUSED), [], situation, now=NOW)
    assert [Cause.PAUSED] == [each.cause for each in found]


def test_only_the_runs_own_questions_count() -> None:
    queue = CacheQueue()
    for run, slot in ((RUN, 3), (OTHER, 4), (RUN, 5)):
        queue.wanted[run, slot] = Ask(run, slot, RUN, RUN, "", 1, ())
    assert [3, 5] == queue.asked_of(RUN)
