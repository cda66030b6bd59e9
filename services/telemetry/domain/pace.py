"""The pace of retention: full speed on an idle database, small steps under other load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from services.telemetry.domain.retention import BATCH_MIN

# Others' transactions per second; an idle deployment makes less than one in ten seconds.
_BUSY_PER_S: Final = 20.0
# Sessions report their statistics about once a second.
_SPAN_S: Final = 1.0
# A longer batch blocks others, so batches shrink; after a shorter one they may grow.
_LONG_S: Final = 0.25
_BREATH_S: Final = 0.02
# Under load a batch delays others by as long as it runs, so it should take less than a commit.
_LONG_BUSY_S: Final = 0.005
BATCH_BUSY_MIN: Final = 5
# Under load a tenth of the time keeps up: deleting a run takes less than a tenth of running it.
_REST: Final = 9.0


@dataclass(slots=True)
class Pace:
    """Estimates the load by others, from the database's count of transactions."""

    is_busy: bool = True  # until the first count
    _count: int = 0
    _counted_at_s: float = 0.0
    _own: int = 0

    def done(self) -> None:
        """Count a transaction of our own."""
        self._own += 1

    def seen(self, transactions: int, now_s: float) -> None:
        """Update with the count of all finished transactions, at a monotonic time in seconds."""
        span_s = now_s - self._counted_at_s
        if self._counted_at_s and span_s < _SPAN_S:
            return
        if self._counted_at_s:
            self.is_busy = (transactions - self._count - self._own) / span_s > _BUSY_PER_S
        self._count, self._counted_at_s, self._own = transactions, now_s, 0

    def first_batch(self, *, most: int) -> int:
        """Return the size of the first batch."""
        return min(most, BATCH_BUSY_MIN) if self.is_busy else most

    def batch_after(self, batch: int, took_s: float, *, most: int) -> int:
        """Return the size of the next batch, after one that took `took_s` seconds."""
        long_s, least = (_LONG_BUSY_S, BATCH_BUSY_MIN) if self.is_busy else (_LONG_S, BATCH_MIN)
        if took_s > long_s:
            return max(least, batch // 2)
        if took_s < long_s / 2.5:
            return min(most, batch * 2)
        return batch

    def breath_s(self, took_s: float) -> float:
        """Return how many seconds to pause after a batch that took `took_s` seconds."""
        return max(_BREATH_S, took_s * _REST) if self.is_busy else _BREATH_S
