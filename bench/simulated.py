"""How long the engine's simulation takes: whole worlds of orchestrators, runners and faults."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from bench.figures import figure

_SEEDS: Final = 400
_FEW: Final = 100
_ROUNDS: Final = 3
_ALL: Final = 10_000
_TARGET_S: Final = 120.0


async def simulation() -> dict[str, Any]:
    """Seconds for 10,000 seeds on all processors, told from 400 at a time.

    A process comes up and compiles its graphs once, whatever the number of seeds: what the first
    and shorter rounds need for that is counted once, not 25 times. A seed that fails fails the
    bench. There is no floor: what it runs is the engine itself.
    """
    from tests.simulation import seeds

    spans, nodes = [], 0
    begin = time.perf_counter()
    await asyncio.to_thread(seeds.live_through_all, _FEW)
    few_s = time.perf_counter() - begin
    for _ in range(_ROUNDS):
        begin = time.perf_counter()
        report = await asyncio.to_thread(seeds.live_through_all, _SEEDS)
        each_s = max(0.0, time.perf_counter() - begin - few_s) / (_SEEDS - _FEW)
        spans.append(few_s + each_s * (_ALL - _FEW))
        assert not report.failures, report.failures[0]
        nodes += report.nodes
    told = figure(spans, "s/10,000 seeds", "lower", target=_TARGET_S, floor=0.0)
    return told | {"nodes_per_seed": round(nodes / (_SEEDS * _ROUNDS), 1)}
