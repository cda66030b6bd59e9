"""When a failed attempt is tried again."""

from __future__ import annotations

from services.orchestrator.domain.plan import RetryPolicy


def delay_ms(policy: RetryPolicy, *, failures: int, draw: float) -> int:
    """Return the wait after the given number of failures (from 1).

    `draw` in [0, 1) spreads the wait by the policy's jitter, down only, so that it is never longer
    than the policy's cap.
    """
    grown = policy.initial_delay_ms * policy.factor ** min(failures - 1, 64)
    capped = min(grown, float(policy.max_delay_ms))
    return round(capped * (1 - policy.jitter * draw))
