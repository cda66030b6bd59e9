"""Crash points: named places where a test kills the process, or makes it fail after its work.

    QFLOW_TESTING=1 QFLOW_CRASH_AT=name[:nth[:mode]]    mode: kill (the default) or fail

`QFLOW_CRASH_AT=@file` reads the same from a file every time a point is reached, so that a test can
arm a point in running processes. The process that hits it renames the file to `file.reached`: so
only one process dies, and the test sees that it did. Unarmed, a point costs one comparison.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Final

_WHERE: Final = os.environ.get("QFLOW_CRASH_AT", "")
ARMED: Final = bool(_WHERE) and os.environ.get("QFLOW_TESTING") == "1"
_reached: Counter[str] = Counter()


class DoneButFailedError(ConnectionError):
    """The work is done, but its caller is told that it failed."""


def reach(name: str) -> None:
    """Die or fail here, if this point is armed."""
    if ARMED:
        _reach(name)


def _reach(name: str) -> None:
    file = Path(_WHERE[1:]) if _WHERE.startswith("@") else None
    try:
        text = (_WHERE if file is None else file.read_text("utf-8")).strip()
    except FileNotFoundError:
        return
    wanted, _, rest = text.partition(":")
    if wanted != name:
        return
    nth, _, mode = rest.partition(":")
    _reached[text] += 1
    if _reached[text] != int(nth or 1):
        return
    if file is not None:
        del _reached[text]
        try:
            file.rename(file.with_name(f"{file.name}.reached"))
        except FileNotFoundError:
            return  # another process was there first
    if mode == "fail":
        raise DoneButFailedError(f"crash point {name}")
    os.kill(os.getpid(), signal.SIGKILL)
