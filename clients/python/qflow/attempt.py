"""Functions for a node's code to report on its own attempt.

In a sandbox the runner provides them, even if this package is not installed there. Elsewhere, in a
test or a shell, a heartbeat does nothing.
"""

from __future__ import annotations

import json
import os
from typing import Any


def heartbeat(progress: Any = None) -> None:
    """Report that the attempt is alive, and optionally its progress: plain JSON, at most 8 KiB.

    May be called as often as needed, from any thread of the process that runs the function. Raises
    ValueError if the progress cannot be stored.
    """
    json.dumps(progress, allow_nan=False)


def progress(default: Any = None) -> Any:
    """Return the progress that an earlier attempt reported last, else the default."""
    told = os.environ.get("QFLOW_PROGRESS", "")
    return json.loads(told) if told else default
