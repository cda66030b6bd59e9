"""Limits per user: a share of the server's concurrent calls, and a rate of calls."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from services.kit.errors import ResourceExhausted
from services.kit.rpc.call import Call, Handle

# One user can hold three quarters of the places; the rest stays free for others.
_SHARE: Final = 0.75
_RETRY_AFTER_S: Final = 1.0
# A burst may hold this many seconds' worth of calls.
_BURST_S: Final = 2.0
_KNOWN_MAX: Final = 10_000


@dataclass(slots=True)
class _Bucket:
    calls: float
    at: float


class FairShare:
    """Counts calls per user, over all their sessions and tokens; services are not counted."""

    def __init__(
        self,
        concurrent_max: int,
        *,
        calls_per_second_max: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Limit the rate only if it is not 0."""
        self._open_max = max(1, int(concurrent_max * _SHARE))
        self._per_second = calls_per_second_max
        self._clock = clock
        self._open: dict[UUID, int] = {}
        self._buckets: OrderedDict[UUID, _Bucket] = OrderedDict()

    def stage(self, inner: Handle) -> Handle:
        """Admit a call while its user is within the limits."""

        async def handle(call: Call, request: Any) -> Any:
            user = self.enter(call)
            try:
                return await inner(call, request)
            finally:
                self.leave(user)

        return handle

    def enter(self, call: Call) -> UUID | None:
        """Count a call of its user and return the key for `leave`; None for a caller not counted.

        Raises `ResourceExhausted` when the user is at a limit.
        """
        caller = call.caller
        if caller is None or caller.kind != "user":
            return None
        user = caller.user_id
        already = self._open.get(user, 0)
        if already >= self._open_max:
            raise ResourceExhausted(
                "TOO_MANY_CALLS_OF_CALLER",
                f"this user has {already} calls open, the maximum; end some of them",
                retry_after_s=_RETRY_AFTER_S,
            )
        if self._per_second:
            self._take(user)
        self._open[user] = already + 1
        return user

    def leave(self, user: UUID | None) -> None:
        """Release a place."""
        if user is None:
            return
        if self._open[user] == 1:
            del self._open[user]
        else:
            self._open[user] -= 1

    def _take(self, user: UUID) -> None:
        now, most = self._clock(), self._per_second * _BURST_S
        bucket = self._buckets.get(user)
        if bucket is None:
            bucket = self._buckets[user] = _Bucket(most, now)
            if len(self._buckets) > _KNOWN_MAX:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(user)
        bucket.calls = min(most, bucket.calls + (now - bucket.at) * self._per_second)
        bucket.at = now
        if bucket.calls < 1:
            raise ResourceExhausted(
                "CALL_RATE_REACHED",
                f"this user may make {self._per_second} calls a second here; retry later",
                retry_after_s=(1 - bucket.calls) / self._per_second,
            )
        bucket.calls -= 1
