"""Where a figure's processor time went: seconds by part of the suite, read from the kernel."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress

import psutil

from tests.support.suite import Suite


def spent_s(suite: Suite) -> dict[str, float]:
    """Give the seconds that each part has taken so far, those of its children that ended included.

    What runs below the runner is `sandboxes`, and what measures is `driver`.
    """
    spent: dict[str, float] = defaultdict(float)
    _add(spent, psutil.Process(), "driver", "")
    for name, mark in suite.marks().items():
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(mark.pid)
            below = "sandboxes" if name == "runner" else name
            _add(spent, process, name, below)
            for each in process.children(recursive=True):
                _add(spent, each, below, below)
    return spent


def _add(spent: dict[str, float], process: psutil.Process, name: str, below: str) -> None:
    with suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        spent[name] += times.user + times.system
        if below:  # those it has waited for
            spent[below] += times.children_user + times.children_system


def per_node_ms(
    before: Mapping[str, float], after: Mapping[str, float], nodes: int
) -> dict[str, float]:
    """Give milliseconds per node by part, the largest first, and in all."""
    parts = {name: (after[name] - before.get(name, 0.0)) * 1000 / nodes for name in after}
    by_size = sorted(parts.items(), key=lambda part: -part[1])
    told = {name: round(ms, 3) for name, ms in by_size if ms >= 0.0005}
    return {"all": round(sum(parts.values()), 3)} | told
