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
    and shorter turn of a round needs for that is counted once, not 25 times. A seed that fails
    fails the bench. There is no floor: what it runs is the engine itself.
    """
    few_s, many_s, nodes = [], [], 0
    for _ in range(_ROUNDS):
        few_s.append((await _lived_through(_FEW))[0])
        took_s, round_nodes = await _lived_through(_SEEDS)
        many_s.append(took_s)
        nodes += round_nodes
    # The quickest: a turn that something else slowed would make the others look like nothing.
    first_s = min(few_s)
    assert first_s < min(many_s), "more seeds took no longer than few: this machine is too busy"
    spans = [first_s + (each - first_s) / (_SEEDS - _FEW) * (_ALL - _FEW) for each in many_s]
    told = figure(spans, "s/10,000 seeds", "lower", target=_TARGET_S, floor=0.0)
    return told | {"nodes_per_seed": round(nodes / (_SEEDS * _ROUNDS), 1)}


async def _lived_through(seeds_count: int) -> tuple[float, int]:
    from tests.simulation import seeds

    begin = time.perf_counter()
    report = await asyncio.to_thread(seeds.live_through_all, seeds_count)
    assert not report.failures, report.failures[0]
    return time.perf_counter() - begin, report.nodes
