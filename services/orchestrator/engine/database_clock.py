"""The database's clock, estimated: timestamps in rows are the database's."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta


def _here() -> datetime:
    return datetime.now(UTC)


class DatabaseClock:
    """This machine's wall clock plus its offset to the database's, as of the last answer.

    Timestamps in rows are compared with this clock only: the clocks of two machines may be hours
    apart. It advances with the wall clock rather than a monotonic one, which would miss a suspended
    machine, or a clock that was set for this process and a local database alike.
    """

    def __init__(self, here: Callable[[], datetime] = _here) -> None:
        self._here = here
        self._ahead = timedelta()

    def told(self, at: datetime) -> None:
        """Set the offset from what the database's clock shows now."""
        self._ahead = at - self._here()

    def now(self) -> datetime:
        """Return the estimated time of the database."""
        return self._here() + self._ahead
