"""How a long-running command of backups learns that it should end."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from contextlib import suppress


def told_to_end() -> Callable[[float], bool]:
    """Give what waits so many seconds for a signal to end, and says whether one came.

    By a pipe: an event has a lock, and a second signal within the first one's handler would wait
    for it for ever. A parent that goes and whoever ends what it left may well send two.
    """
    heard, tell = os.pipe()
    os.set_blocking(tell, False)

    def on_signal(*_: object) -> None:
        with suppress(BlockingIOError):  # full: there is enough to hear
            os.write(tell, b"\0")

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    return lambda span_s: bool(select.select([heard], [], [], span_s)[0])
