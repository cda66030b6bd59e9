"""What the database's clock shows, as far as this process was told: rows have its moments."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta


class DatabaseClock:
    """Its last word, and what passed since; this machine's own clock until there was one.

    Moments of rows are held against this alone: the clocks of two machines may lie hours apart.
    """

    def __init__(self, elapsed: Callable[[], float]) -> None:
        self._elapsed = elapsed  # seconds by a clock that nobody sets
        self._told: tuple[datetime, float] | None = None

    def told(self, at: datetime) -> None:
        """Hear what it shows now."""
        self._told = at, self._elapsed()

    def now(self) -> datetime:
        """Give what it shows."""
        if self._told is None:
            return datetime.now(UTC)
        at, then_s = self._told
        return at + timedelta(seconds=self._elapsed() - then_s)
