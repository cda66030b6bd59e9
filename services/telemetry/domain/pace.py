"""The pace of retention: full speed while the database is idle, small steps beside other work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from services.telemetry.domain.retention import BATCH_MIN

# Transactions of others a second; a suite at rest makes less than one in ten seconds.
_BUSY_PER_S: Final = 20.0
# The database's sessions tell what they did about once a second.
_SPAN_S: Final = 1.0
# A batch that takes longer holds others up; one that takes less may grow again.
_LONG_S: Final = 0.25
_BREATH_S: Final = 0.02
# Whoever comes while a batch has a processor waits for as long: that is to be less than a commit.
_LONG_BUSY_S: Final = 0.005
BATCH_BUSY_MIN: Final = 5
# Beside others a tenth of the time is enough to keep up with them: removing a run takes less than
# a tenth of what running it took.
_REST: Final = 9.0


@dataclass(slots=True)
class Pace:
    """Whether others are at work, told by the database's count of transactions."""

    is_busy: bool = True  # until the first count tells
    _count: int = 0
    _counted_at_s: float = 0.0
    _own: int = 0

    def done(self) -> None:
        """Count a transaction of one's own."""
        self._own += 1

    def seen(self, transactions: int, now_s: float) -> None:
        """Take the count of all that ended, at a time of a clock that never goes back."""
        span_s = now_s - self._counted_at_s
        if self._counted_at_s and span_s < _SPAN_S:
            return
        if self._counted_at_s:
            self.is_busy = (transactions - self._count - self._own) / span_s > _BUSY_PER_S
        self._count, self._counted_at_s, self._own = transactions, now_s, 0

    def first_batch(self, *, most: int) -> int:
        """Give the batch to begin with."""
        return min(most, BATCH_BUSY_MIN) if self.is_busy else most

    def batch_after(self, batch: int, took_s: float, *, most: int) -> int:
        """Give the batch to try after one that took so long."""
        long_s, least = (_LONG_BUSY_S, BATCH_BUSY_MIN) if self.is_busy else (_LONG_S, BATCH_MIN)
        if took_s > long_s:
            return max(least, batch // 2)
        if took_s < long_s / 2.5:
            return min(most, batch * 2)
        return batch

    def breath_s(self, took_s: float) -> float:
        """Give how long to leave the database to others after a batch that took so long."""
        return max(_BREATH_S, took_s * _REST) if self.is_busy else _BREATH_S
