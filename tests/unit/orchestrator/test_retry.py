"""How long the next attempt is waited for."""

from __future__ import annotations

import pytest

from services.orchestrator.domain.plan import RetryPolicy
from services.orchestrator.domain.records import Failure, detail_of_class
from services.orchestrator.domain.retry import delay_ms, takes
from tests.support.retry_cases import CASES, KINDS, Case

EVEN = RetryPolicy(initial_delay_ms=100, factor=3.0, max_delay_ms=60_000, jitter=0.0)


def waits(policy: RetryPolicy, count: int, draw: float = 0.0) -> list[int]:
    return [delay_ms(policy, failures=n, draw=draw) for n in range(1, count + 1)]


def test_the_first_wait_is_the_initial_delay() -> None:
    assert [100] == waits(EVEN, 1)
    assert [0] == waits(RetryPolicy(initial_delay_ms=0, jitter=0.0), 1)


def test_each_further_wait_grows_by_the_factor() -> None:
    assert [100, 300, 900, 2700] == waits(EVEN, 4)


def test_no_wait_is_longer_than_the_longest() -> None:
    policy = RetryPolicy(initial_delay_ms=100, factor=10.0, max_delay_ms=1500, jitter=0.0)
    assert [100, 1000, 1500, 1500] == waits(policy, 4)
    assert 1500 == delay_ms(policy, failures=10_000, draw=0.0)


def test_jitter_takes_off_no_more_than_its_part() -> None:
    policy = RetryPolicy(initial_delay_ms=1000, factor=1.0, jitter=0.25)
    assert [1000, 875, 750] == [delay_ms(policy, failures=1, draw=draw) for draw in (0, 0.5, 1.0)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_policy_names_failures_by_their_type_or_by_the_class_that_was_raised(case: Case) -> None:
    policy = RetryPolicy(retryable=case.on, non_retryable=case.never_on)
    kind = KINDS.get(case.raised, "user_error")
    failure = Failure(error_type=kind, message="", detail=detail_of_class(case.raised.__name__))
    assert case.again == takes(policy, failure)


def test_what_would_fail_again_is_not_tried_again_whatever_the_policy_names() -> None:
    failure = Failure(error_type="conversion_error", message="", retryable=False)
    assert not takes(RetryPolicy(), failure)
    assert not takes(RetryPolicy(retryable=["conversion_error"]), failure)
