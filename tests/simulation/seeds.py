"""Many seeds, on as many processes as there are processors; the first that fails says how."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Final, Self

from tests.simulation.world import World, quiet

# Comparing memory with the rows after every flush costs a quarter of all: seeds by the thousand do
# so after some of their flushes, a seed that is replayed after each.
COMPARED_EVERY: Final = 4
_BLOCK: Final = 50
_COLLECT_EVERY: Final = 10


@dataclass(slots=True)
class Report:
    """What some seeds came to."""

    seeds: int = 0
    nodes: int = 0
    hits: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def add(self, other: Report) -> None:
        self.seeds += other.seeds
        self.nodes += other.nodes
        self.hits += other.hits
        self.failures += other.failures


def live_through(seeds: Sequence[int]) -> Report:
    """Live through seeds, here and one after another."""
    quiet()
    report = Report()
    with _collecting_seldom() as collect:
        for seed in seeds:
            world = World(seed, compared_every=COMPARED_EVERY)
            try:
                world.run()
            except Exception as error:  # noqa: BLE001  # told with its seed, whatever it is
                report.failures.append(f"seed {seed}: {type(error).__name__}: {error}")
            report.seeds += 1
            report.nodes += len(world.store.nodes)
            report.hits.update(world.hits)
            world.forget()
            collect()
    return report


def live_through_all(count: int) -> Report:
    """Live through the seeds from 0, on all processors."""
    blocks = [range(at, min(at + _BLOCK, count)) for at in range(0, count, _BLOCK)]
    report = Report()
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=spawning) as pool:
        for part in pool.map(live_through, blocks):
            report.add(part)
    return report


def first_failure(count: int) -> tuple[int, str] | None:
    """Give the first seed that fails, and how; None where none of so many does."""
    quiet()
    with _collecting_seldom() as collect:
        for seed in range(count):
            try:
                World(seed).run()
            except AssertionError as error:  # any other is a mistake in the planting
                return seed, f"{type(error).__name__}: {error}"
            collect()
    return None


def trace_of(seed: int) -> str:
    """Replay a seed and give what happened in it."""
    quiet()
    world = World(seed)
    world.tracing = True
    try:
        world.run()
    except Exception as error:  # noqa: BLE001  # what it ends with is the last line
        world.note(f"{type(error).__name__}: {error}")
    return "\n".join(world.trace)


class _collecting_seldom:  # noqa: N801  # reads as what it does
    """A world is one large cycle: looked for every few worlds, it costs a fifth less.

    All that was there before, modules for the most part, is not looked through each time.
    """

    def __enter__(self) -> Self:
        self._since = 0
        gc.disable()
        gc.collect()
        gc.freeze()
        return self

    def __call__(self) -> None:
        self._since += 1
        if self._since % _COLLECT_EVERY == 0:
            gc.collect()

    def __exit__(self, *_: object) -> None:
        gc.unfreeze()
        gc.enable()
