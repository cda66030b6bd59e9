"""What helps a run: told by what it was a run of, and only what its calls take."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from services.orchestrator.domain.explain import (
    Cause,
    FailedParts,
    NodeState,
    Reason,
    RunState,
    Situation,
    explain,
)
from services.orchestrator.domain.remedies import remedy
from services.orchestrator.domain.status import NodeStatus, RunStatus

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HERE = Situation(ready=[], offers=[])


def failed(*, alone: bool = False, parts: FailedParts | None = None) -> Reason:
    state = RunState(
        status=RunStatus.FAILED,
        completed_at=NOW,
        error_type="user_error",
        error_message="neg",
        failed_node_id="m",
        failed_parts=parts,
        alone=alone,
    )
    [reason] = explain(state, [], HERE, now=NOW)
    return reason


@pytest.mark.parametrize("kind", ["user_error", "oom", "timeout", "runner_lost", "quota_exceeded"])
def test_a_run_of_one_node_is_told_of_no_rerun(kind: str) -> None:
    """A rerun with another version is refused for it."""
    assert "Rerun" not in remedy(kind, alone=True, child=None)
    assert "Rerun" in remedy(kind, alone=False, child=None)


def test_a_run_of_one_node_that_was_mended_is_run_anew() -> None:
    assert "then RunNode; " in failed(alone=True).action
    assert "RetryExecution alone" in failed(alone=True).action
    stopped = RunState(
        status=RunStatus.CANCELLED, completed_at=NOW, cancel_requested_at=NOW, alone=True
    )
    assert "RetryExecution" in explain(stopped, [], HERE, now=NOW)[0].action


def test_a_setting_of_a_workflow_is_mended_by_a_new_start() -> None:
    """A rerun has the settings that its workflow had."""
    assert "more memory, then StartExecution" in remedy("oom", alone=False, child=None)


@pytest.mark.parametrize(
    "kind", ["condition_error", "sleep_invalid", "signal_timeout", "approval_timeout"]
)
def test_what_no_version_of_a_node_mends_is_not_told_to_take_one(kind: str) -> None:
    """A rerun with a version is refused at a choice, a sleep, a signal and an approval."""
    assert "version" not in remedy(kind, alone=False, child=None)


def test_a_time_that_was_up_around_another_run_is_that_of_the_place() -> None:
    action = remedy("total_timeout", alone=False, child=UUID(int=7))
    assert "total_timeout), then StartExecution" in action


def test_a_part_that_was_stopped_is_gone_on_from_by_its_whole() -> None:
    whole = UUID(int=7)
    state = RunState(status=RunStatus.CANCELLED, completed_at=NOW, part_of=whole)
    [reason] = explain(state, [], HERE, now=NOW)
    assert f"or execution {whole} did" in reason.message
    assert f"ExplainExecution of {whole}" in reason.action


def test_what_failed_within_another_run_is_explained_there() -> None:
    assert f"ExplainExecution of execution {UUID(int=7)}" in remedy(
        "user_error", alone=False, child=UUID(int=7)
    )


@pytest.mark.parametrize(
    ("max_failed", "ratio", "told"),
    [
        (0, 0.0, "3 of its elements failed (m[1], m[2], m[3]), and it tolerates none"),
        (2, 0.0, "and max_failed is 2"),
        (2, 0.5, "and max_failed is 2 and max_failed_ratio is 0.5"),
    ],
)
def test_a_map_over_its_tolerance_names_its_elements(
    max_failed: int, ratio: float, told: str
) -> None:
    names = ["m[1]", "m[2]", "m[3]"]
    parts = FailedParts(names=names, count=3, max_failed=max_failed, max_failed_ratio=ratio)
    reason = failed(parts=parts)
    assert told in reason.message
    assert (("m", *names), 4) == (reason.nodes, reason.node_count)


@pytest.mark.parametrize(("is_part", "told"), [(False, True), (True, False)])
def test_a_retry_that_is_due_may_be_had_at_once(*, is_part: bool, told: bool) -> None:
    """But not that of an element, which no call takes."""
    node = NodeState(
        node_id="a",
        status=NodeStatus.RETRYING,
        due_at=NOW + timedelta(seconds=1),
        is_part=is_part,
    )
    [reason] = explain(RunState(status=RunStatus.RUNNING), [node], HERE, now=NOW)
    assert Cause.RETRY_DUE == reason.cause
    assert told == ("PauseNode and then ResumeNode try a at once" in reason.action)


def test_a_retry_whose_time_has_come_waits_for_no_time() -> None:
    node = NodeState(node_id="a", status=NodeStatus.RETRYING, due_at=NOW)
    assert [] == explain(RunState(status=RunStatus.RUNNING), [node], HERE, now=NOW)


def test_a_cancelled_run_says_what_closes_it_waits_for() -> None:
    nodes = [
        NodeState(node_id="a", status=NodeStatus.RUNNING),
        NodeState(node_id="ok", status=NodeStatus.WAITING, waits_for="AnswerApproval", closes=True),
    ]
    run = RunState(status=RunStatus.RUNNING, cancel_requested_at=NOW)
    stopping, waiting = explain(run, nodes, HERE, now=NOW)
    assert (("a",), Cause.CANCELLING) == (stopping.nodes, stopping.cause)
    assert (("ok",), "ok: AnswerApproval") == (waiting.nodes, waiting.action)


def test_a_cancelled_run_names_the_executions_in_it_that_it_waits_for() -> None:
    within = "execution 7, which runs it; ExplainExecution says how that stands"
    nodes = [
        NodeState(node_id="s", status=NodeStatus.WAITING, waits_for=within, is_child=True),
    ]
    run = RunState(status=RunStatus.RUNNING, cancel_requested_at=NOW)
    stopping, waiting = explain(run, nodes, HERE, now=NOW)
    assert "the executions in it are not over" in stopping.message
    assert (("s",), f"s: {within}") == (waiting.nodes, waiting.action)


@pytest.mark.parametrize("closes", [False, True])
def test_whoever_is_told_to_cancel_is_told_what_that_leaves(*, closes: bool) -> None:
    """A cancel kills compensations that run, too: what they were to undo stays done."""
    run = RunState(status=RunStatus.RUNNING, error_type="user_error", failed_node_id="a")
    node = NodeState(node_id="b", status=NodeStatus.RUNNING, closes=closes)
    failing, _ = explain(run, [node], HERE, now=NOW)
    assert closes == ("leaves what is not undone yet" in failing.action)
