"""Backoff while a service is unavailable."""

from __future__ import annotations

import asyncio
from typing import Final

from qflow.errors import CallError

_PAUSE_S_FIRST: Final = 0.1
_PAUSE_S_MAX: Final = 5.0
_AWAY_S_MAX: Final = 60.0


class Patience:
    """Waits between attempts to reach a service."""

    def __init__(self) -> None:
        self._wait_s = _PAUSE_S_FIRST
        self._waited_s = 0.0

    async def wait(self, error: CallError | None = None) -> None:
        """Wait; raises the error once a service was unavailable for longer than a restart takes."""
        if error is not None and self._waited_s >= _AWAY_S_MAX:
            raise error
        self._waited_s += self._wait_s
        await asyncio.sleep(self._wait_s)
        self._wait_s = min(self._wait_s * 2, _PAUSE_S_MAX)
