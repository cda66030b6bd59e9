"""What one user may take of a server: a share of its open calls, and so many calls a second."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from services.kit.errors import ResourceExhausted
from services.kit.rpc.call import Call, Handle

# However many calls one user has open, others find a quarter of the room.
_SHARE: Final = 0.75
_RETRY_AFTER_S: Final = 1.0
# Calls may come in bursts of so many seconds' worth.
_BURST_S: Final = 2.0
_KNOWN_MAX: Final = 10_000


@dataclass(slots=True)
class _Bucket:
    calls: float
    at: float


class FairShare:
    """Counts by user, over all their sessions and tokens; services are not counted."""

    def __init__(
        self,
        concurrent_max: int,
        *,
        calls_per_second_max: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """With a rate of 0 there is none."""
        self._open_max = max(1, int(concurrent_max * _SHARE))
        self._per_second = calls_per_second_max
        self._clock = clock
        self._open: dict[UUID, int] = {}
        self._buckets: OrderedDict[UUID, _Bucket] = OrderedDict()

    def stage(self, inner: Handle) -> Handle:
        """Let a call in while its user has room left."""

        async def handle(call: Call, request: Any) -> Any:
            user = self.enter(call)
            try:
                return await inner(call, request)
            finally:
                self.leave(user)

        return handle

    def enter(self, call: Call) -> UUID | None:
        """Take a place for the call's user, to be given to `leave`; None where nobody is counted.

        Raises `ResourceExhausted` where the user has none left.
        """
        caller = call.caller
        if caller is None or caller.kind != "user":
            return None
        user = caller.user_id
        already = self._open.get(user, 0)
        if already >= self._open_max:
            raise ResourceExhausted(
                "TOO_MANY_CALLS_OF_CALLER",
                f"this user has {already} calls open, and may not have more; end some of them",
                retry_after_s=_RETRY_AFTER_S,
            )
        if self._per_second:
            self._take(user)
        self._open[user] = already + 1
        return user

    def leave(self, user: UUID | None) -> None:
        """Give a place back."""
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
                f"this user may make {self._per_second} calls a second here; wait a little",
                retry_after_s=(1 - bucket.calls) / self._per_second,
            )
        bucket.calls -= 1
