"""What a node's code says of the attempt that it runs in.

Inside a sandbox the runner answers these calls, also where this package is not installed. Anywhere
else, in a test or a shell, a heartbeat does nothing.
"""

from __future__ import annotations

import json
import os
from typing import Any


def heartbeat(progress: Any = None) -> None:
    """Say that the attempt goes on, and how far it has come: plain JSON of at most 8 KiB.

    May be called as often as one likes, from any thread of the process that runs the function.
    Raises ValueError where the progress cannot be kept.
    """
    json.dumps(progress, allow_nan=False)


def progress(default: Any = None) -> Any:
    """Give what the latest earlier attempt that said so had come to; else the default."""
    told = os.environ.get("QFLOW_PROGRESS", "")
    return json.loads(told) if told else default
