"""What the database's clock shows, as far as this process was told: rows have its moments."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta


def _here() -> datetime:
    return datetime.now(UTC)


class DatabaseClock:
    """This machine's clock, put right by as much as it was off when the database last told.

    Moments of rows are held against this alone: the clocks of two machines may lie hours apart.
    What passes meanwhile is this machine's to tell: where it slept, or its clock was set together
    with that of a database on it, no clock that nobody sets has seen that.
    """

    def __init__(self, here: Callable[[], datetime] = _here) -> None:
        self._here = here
        self._ahead = timedelta()

    def told(self, at: datetime) -> None:
        """Hear what it shows now."""
        self._ahead = at - self._here()

    def now(self) -> datetime:
        """Give what it shows."""
        return self._here() + self._ahead
