"""Metrics of a process: plain values, computed when they are scraped.

Independent of any output format, so that counting costs no more than an addition;
`services.kit.scrape` encodes them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from services.kit.pg import Pool

# From a cached response to a call that hits its deadline.
SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
Labels: TypeAlias = tuple[str, ...]


class Distribution:
    """A histogram: counts between fixed bounds; a value equal to a bound counts as below it."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._total = 0.0

    def note(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    @property
    def total(self) -> float:
        """The sum of all values."""
        return self._total

    def cumulated(self) -> list[tuple[float, int]]:
        """Return for each bound, with infinity last, how many values were at most that."""
        found, sum_of = [], 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            sum_of += count
            found.append((bound, sum_of))
        return found


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric with its values by label values."""

    name: str  # in Prometheus' conventions, with the unit last and without `_total`
    help: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: Labels
    values: Sequence[tuple[Labels, float | Distribution]]


# Called at each scrape, on the loop of the service: must only read memory, and never wait.
Figures: TypeAlias = Callable[[], Iterable[Figure]]


def gauge(name: str, text: str, value: float) -> Figure:
    """Return the metric of a value that goes up and down."""
    return Figure(name, text, "gauge", (), [((), value)])


def counter(name: str, text: str, value: float) -> Figure:
    """Return the metric of a value that only grows while the process lives."""
    return Figure(name, text, "counter", (), [((), value)])


def histogram(name: str, text: str, value: Distribution) -> Figure:
    """Return the metric of a distribution."""
    return Figure(name, text, "histogram", (), [((), value)])


def pools(by_name: Mapping[str, Pool]) -> Figures:
    """Return the metrics of database pools."""

    def figures() -> Iterable[Figure]:
        used = [
            ((name, state), float(count))
            for name, pool in by_name.items()
            for state, count in (
                ("idle", pool.get_idle_size()),
                ("used", pool.get_size() - pool.get_idle_size()),
            )
        ]
        text = "Database connections of a pool that are open, by whether they are lent."
        yield Figure("qflow_pool_connections", text, "gauge", ("pool", "state"), used)
        limits = [((name,), float(pool.get_max_size())) for name, pool in by_name.items()]
        text = "Database connections that a pool may open."
        yield Figure("qflow_pool_connections_max", text, "gauge", ("pool",), limits)

    return figures


def caches(by_name: Mapping[str, Callable[[], tuple[int, int]]]) -> Figures:
    """Return the metrics of caches; each value is a function that returns hits and misses."""

    def figures() -> Iterable[Figure]:
        asked = {name: read() for name, read in by_name.items()}
        text = "Questions that a cache answered."
        hits = [((name,), float(each[0])) for name, each in asked.items()]
        yield Figure("qflow_cache_hits", text, "counter", ("cache",), hits)
        text = "Questions that a cache could not answer."
        misses = [((name,), float(each[1])) for name, each in asked.items()]
        yield Figure("qflow_cache_misses", text, "counter", ("cache",), misses)

    return figures
