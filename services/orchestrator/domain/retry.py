"""When a failed attempt is retried."""

from __future__ import annotations

from services.orchestrator.domain.plan import RetryPolicy
from services.orchestrator.domain.records import Failure


def takes(policy: RetryPolicy, failure: Failure) -> bool:
    """Return whether a policy retries a failure.

    It names error types and exception classes: the class that was raised, not its base classes.
    """
    if not policy.retryable and not policy.non_retryable:
        return failure.retryable
    names = {failure.error_type, failure.exception}
    wanted = not policy.retryable or not names.isdisjoint(policy.retryable)
    return failure.retryable and wanted and names.isdisjoint(policy.non_retryable)


def delay_ms(policy: RetryPolicy, *, failures: int, draw: float) -> int:
    """Return the wait after the given number of failures (from 1).

    `draw` in [0, 1) applies the policy's jitter, which only shortens the wait, so that it never
    exceeds the policy's cap.
    """
    grown = policy.initial_delay_ms * policy.factor ** min(failures - 1, 64)
    capped = min(grown, float(policy.max_delay_ms))
    return round(capped * (1 - policy.jitter * draw))
