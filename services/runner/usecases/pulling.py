"""Inputs too large for their assignment: requested until the owner of the run sends them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol
from uuid import UUID

import structlog

from services.runner.domain.attempts import AttemptRequest
from services.runner.domain.frames import Value, ValuesNotGiven

log = structlog.get_logger()

_PAUSE_MIN_S: Final = 0.05
_PAUSE_MAX_S: Final = 1.0


class PullValues(Protocol):
    """Fetches the inputs of an attempt that did not fit its assignment."""

    async def __call__(self, attempt_ref: UUID, token: int, count: int) -> Sequence[Value]:
        """Return the values in the order of the definition; raises ValuesNotGiven."""


class InputsMissing(Exception):  # noqa: N818 - the attempt is declined, it has not failed
    """Nobody sent the inputs within the timeout of the attempt."""


async def pull_patiently(
    request: AttemptRequest, count: int, sources: Callable[[], Iterable[PullValues]]
) -> Sequence[Value]:
    """Return the inputs, retrying over lost streams and orchestrators that reload the run.

    `sources` returns whom to ask now. A kill or the loss of the lease ends the wait; so does the
    attempt's timeout, with InputsMissing, but only between rounds, never during a pull.
    """
    gives_up_at = time.monotonic() + request.timeout_s
    pause_s = _PAUSE_MIN_S
    while True:
        for pull in sources():
            try:
                return await pull(request.attempt_ref, request.token, count)
            except ValuesNotGiven as problem:
                log.warning(
                    "inputs_awaited",
                    attempt_ref=str(request.attempt_ref),
                    cause=str(problem)[:200],
                )
        if time.monotonic() > gives_up_at:
            raise InputsMissing
        await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - only spreads load
        pause_s = min(pause_s * 2, _PAUSE_MAX_S)
