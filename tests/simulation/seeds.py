"""Many seeds, on as many processes as there are processors; the first that fails says how."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import count, takewhile
from typing import TYPE_CHECKING, Final, Self

from tests.simulation import pages
from tests.simulation.world import World, quiet

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

# Comparing memory with the rows after every flush costs a quarter of all: seeds by the thousand do
# so after some of their flushes, a seed that is replayed after each.
COMPARED_EVERY: Final = 4
_GROWN: Final = 20  # worlds after which a process holds about all that it will ever hold


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


def live_through(seeds: Iterable[int]) -> Report:
    """Live through seeds, here and one after another."""
    quiet()
    report = Report()
    with _collecting() as collect:
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


def live_through_all(seeds: int) -> Report:
    """Live through the seeds from 0, on all processors.

    Each process takes the next seed when it is done with one, so that they end together, and does
    so for as long as there are any: what it did to begin with, it does once.
    """
    processes = os.cpu_count() or 1
    spawning = multiprocessing.get_context("spawn")
    report = Report()
    with ProcessPoolExecutor(
        processes, spawning, initializer=_share, initargs=(spawning.Value("q", 0),)
    ) as pool:
        for part in pool.map(_live_through_next, [seeds] * processes):
            report.add(part)
    return report


def _share(taken: Synchronized[int]) -> None:
    """Have a process know how many seeds were taken, by all processes."""
    global _taken  # noqa: PLW0603  # what processes share comes to them as they begin, or never
    _taken = taken
    quiet(for_good=True)


_taken: Synchronized[int]


def _live_through_next(seeds: int) -> Report:
    return live_through(takewhile(lambda seed: seed < seeds, _untaken()))


def _untaken() -> Iterator[int]:
    for lived in count():
        if lived == _GROWN:
            pages.enlarge()
        with _taken.get_lock():
            seed = _taken.value
            _taken.value += 1
        yield seed


def first_failure(count: int, *, tried_first: Sequence[int] = ()) -> tuple[int, str] | None:
    """Give the first seed that fails, and how; None where none of so many does."""
    quiet()
    with _collecting() as collect:
        for seed in (*tried_first, *range(count)):
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


class _collecting:  # noqa: N801  # reads as what it does
    """A world is one large cycle: looked for after each of them alone, it costs a tenth less.

    What is still there after that is modules and graphs, which are there for good: nobody looks
    through them again.
    """

    def __enter__(self) -> Self:
        gc.disable()
        self()
        return self

    def __call__(self) -> None:
        gc.collect()
        gc.freeze()

    def __exit__(self, *_: object) -> None:
        gc.unfreeze()
        gc.enable()
