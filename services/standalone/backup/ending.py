"""How long-running backup commands are told to stop."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from contextlib import suppress


def told_to_end() -> Callable[[float], bool]:
    """Return a function that waits up to that many seconds for a signal, and returns if one came.

    Uses a pipe: an Event has a lock, on which a second signal during the first one's handler would
    deadlock. Two signals are common, from a dying parent and from whoever ends its children.
    """
    heard, tell = os.pipe()
    os.set_blocking(tell, False)

    def on_signal(*_: object) -> None:
        with suppress(BlockingIOError):  # full: the signal is noticed anyway
            os.write(tell, b"\0")

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    return lambda span_s: bool(select.select([heard], [], [], span_s)[0])
