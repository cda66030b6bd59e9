"""Crash points: named places where a test kills a process, or has it fail once its work is done.

    QFLOW_TESTING=1 QFLOW_CRASH_AT=name[:nth[:mode]]    mode: kill (the default) or fail

`QFLOW_CRASH_AT=@file` reads the same from a file, each time that any point is reached, so that a
test can arm a point in processes that run. The file is renamed to `file.reached` by the process
that dies: the point is hit once, by one process, and the test sees that it was. Where nothing is
armed a point is one comparison of a constant.
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
    """What was done is done, and whoever did it is told that it failed."""


def reach(name: str) -> None:
    """Die here, or fail, if this point is the armed one."""
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
