"""The resource usage of this machine."""

from __future__ import annotations

import platform
from pathlib import Path

import psutil

from services.telemetry.domain.records import Usage


class Machine:
    """The machine that telemetry runs on; disk usage is that of the disk with Qflow's data."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._node_name = platform.node() or "unknown"
        psutil.cpu_percent()  # the first call only starts the measured interval

    def usage(self) -> Usage:
        """Measure usage: of the processor since the last call, of the rest now."""
        return Usage(
            node_name=self._node_name,
            cpu_percent=_percent(psutil.cpu_percent()),
            memory_percent=_percent(psutil.virtual_memory().percent),
            disk_percent=_percent(psutil.disk_usage(str(self._home)).percent),
        )


def _percent(value: float) -> float:
    return min(100.0, max(0.0, value))
