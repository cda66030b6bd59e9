"""Place the boxes of a chart in layers from left to right, with few crossings.

The steps are those of Sugiyama's method: layers by the longest path from a start, dummy points
where a line passes a layer, order by the mean of the neighbours, and heights that straighten lines.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

_SWEEPS: Final = 12
_PULLS: Final = 24
# Above this total of passed layers, lines are drawn directly, without points.
_POINTS_MAX: Final = 20_000
_POINT_WEIGHT: Final = 4.0
# The weight of an end's height, relative to the position of its box.
_WITHIN: Final = 1e-4


@dataclass(frozen=True, slots=True)
class Size:
    """The width and height of a box."""

    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Line:
    """A line between two boxes, with the heights of its ends from the boxes' tops."""

    source: int
    source_y: float
    target: int
    target_y: float


@dataclass(frozen=True, slots=True)
class Layout:
    """The tops and columns of the boxes, and the heights at which lines pass columns."""

    tops: tuple[float, ...]
    columns: tuple[int, ...]
    # For each line, its height in every column that it crosses between its boxes.
    ways: tuple[tuple[float, ...], ...]
    height: float


@dataclass(slots=True)
class _Item:
    """A box, or a dummy point of a line, in its layer."""

    height: float
    weight: float
    # (item, height of its end there, height of the end here) for each side.
    before: list[tuple[int, float, float]]
    after: list[tuple[int, float, float]]
    top: float = 0.0


def place(sizes: Sequence[Size], lines: Sequence[Line], *, gap: float) -> Layout:
    """Compute a column and a height for every box; in cycles some lines run backwards."""
    columns = _columns(len(sizes), [(line.source, line.target) for line in lines])
    items = [_Item(size.height, 1.0, [], []) for size in sizes]
    layers: list[list[int]] = [[] for _ in range(max(columns, default=-1) + 1)]
    for index, column in enumerate(columns):
        layers[column].append(index)
    passed = [max(0, columns[each.target] - columns[each.source] - 1) for each in lines]
    bent = sum(passed) <= _POINTS_MAX
    points: list[list[int]] = []
    for line, count in zip(lines, passed, strict=True):
        points.append(_threaded(items, layers, columns, line, count if bent else 0))
    layers = _ordered(layers, items)
    _pull(layers, items, gap)
    top = min((each.top for each in items), default=0.0)
    for each in items:
        each.top -= top
    return Layout(
        tops=tuple(each.top for each in items[: len(sizes)]),
        columns=tuple(columns),
        ways=tuple(tuple(items[point].top for point in way) for way in points),
        height=max((each.top + each.height for each in items), default=0.0),
    )


def _columns(count: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """Put each box right of all its sources, and a start directly left of its first target."""
    after: list[list[int]] = [[] for _ in range(count)]
    for source, target in dict.fromkeys(pairs):
        if source != target:
            after[source].append(target)
    needs = Counter(target for targets in after for target in targets)
    starts = [index for index in range(count) if not needs[index]]
    column = _longest(after, needs, starts)
    for index in starts:
        later = [column[each] for each in after[index]]
        column[index] = max(0, min(later, default=1) - 1)
    return column


def _longest(
    after: Sequence[Sequence[int]], needs: Counter[int], starts: Iterable[int]
) -> list[int]:
    """Return the longest path length to each box; breaks a cycle at its first box."""
    column = [0] * len(after)
    done = [False] * len(after)
    for first in (*starts, *range(len(after))):
        ready = [] if done[first] else [first]
        while ready:
            index = ready.pop()
            done[index] = True
            for target in after[index]:
                needs[target] -= 1
                if not done[target]:
                    column[target] = max(column[target], column[index] + 1)
                    if not needs[target]:
                        ready.append(target)
    return column


def _threaded(
    items: list[_Item],
    layers: list[list[int]],
    columns: Sequence[int],
    line: Line,
    count: int,
) -> list[int]:
    """Connect two boxes through a dummy point in each layer between them."""
    if columns[line.target] <= columns[line.source]:
        return []
    way = []
    last, last_y = line.source, line.source_y
    for step in range(count):
        point = len(items)
        items.append(_Item(0.0, _POINT_WEIGHT, [], []))
        layers[columns[line.source] + 1 + step].append(point)
        _join(items, last, last_y, point, 0.0)
        way.append(point)
        last, last_y = point, 0.0
    _join(items, last, last_y, line.target, line.target_y)
    return way


def _join(items: list[_Item], left: int, left_y: float, right: int, right_y: float) -> None:
    items[left].after.append((right, right_y, left_y))
    items[right].before.append((left, left_y, right_y))


def _ordered(layers: list[list[int]], items: Sequence[_Item]) -> list[list[int]]:
    """Order every layer by the mean position of its neighbours; returns the best of some sweeps."""
    best, fewest = layers, _crossings(layers, items)
    for sweep in range(_SWEEPS):
        forwards = sweep % 2 == 0
        found: list[list[int]] = []
        for layer in layers if forwards else layers[::-1]:
            found.append(_sorted(layer, found[-1] if found else (), items, forwards=forwards))
        layers = found if forwards else found[::-1]
        count = _crossings(layers, items)
        if count < fewest:
            best, fewest = layers, count
        if not fewest:
            break
    return best


def _sorted(
    layer: Sequence[int], beside: Sequence[int], items: Sequence[_Item], *, forwards: bool
) -> list[int]:
    """Sort a layer by the positions of its neighbours in the adjacent layer."""
    place = {item: index for index, item in enumerate(beside)}
    keys = []
    for index, item in enumerate(layer):
        sides = items[item].before if forwards else items[item].after
        near = [place[other] + y * _WITHIN for other, y, _ in sides if other in place]
        keys.append((sum(near) / len(near) if near else float(index), index))
    return [layer[index] for _, index in sorted(keys)]


def _crossings(layers: Sequence[Sequence[int]], items: Sequence[_Item]) -> int:
    """Count the crossings between neighbouring layers."""
    count = 0
    for left, right in pairwise(layers):
        place = {item: index for index, item in enumerate(right)}
        ends: list[tuple[int, float]] = []
        for item in left:
            reached = sorted(
                (own_y, place[other], y) for other, y, own_y in items[item].after if other in place
            )
            for _, other_place, y in reached:
                end = (other_place, y)
                count += len(ends) - bisect_right(ends, end)
                insort(ends, end)
    return count


def _pull(layers: Sequence[Sequence[int]], items: Sequence[_Item], gap: float) -> None:
    """Move boxes towards heights where their lines are straight, keeping their order."""
    for layer in layers:
        at = 0.0
        for item in layer:
            items[item].top = at
            at += items[item].height + gap
    for step in range(_PULLS):
        sides = ((True,), (False,), (True, False))[step % 3]
        for layer in layers if step % 2 == 0 else reversed(layers):
            wanted = [_wanted(items, item, sides) for item in layer]
            for item, top in zip(layer, _apart(layer, items, wanted, gap), strict=True):
                items[item].top = top


def _wanted(items: Sequence[_Item], item: int, sides: Sequence[bool]) -> float:
    me = items[item]
    near = [
        items[other].top + y - own_y
        for backwards in sides
        for other, y, own_y in (me.before if backwards else me.after)
    ]
    return sum(near) / len(near) if near else me.top


def _apart(
    layer: Sequence[int], items: Sequence[_Item], wanted: Sequence[float], gap: float
) -> list[float]:
    """Return the positions nearest to the wanted ones that keep order and gaps.

    This is isotonic regression, by pooling adjacent violators.
    """
    offsets, at = [], 0.0
    for item in layer:
        offsets.append(at)
        at += items[item].height + gap * (1.0 if items[item].height else 0.7)
    # Groups of items at minimum distance: weighted mean, weight, count.
    groups: list[tuple[float, float, int]] = []
    for item, top, offset in zip(layer, wanted, offsets, strict=True):
        mean, weight, many = top - offset, items[item].weight, 1
        while groups and groups[-1][0] > mean:
            before, heavy, more = groups.pop()
            mean = (before * heavy + mean * weight) / (heavy + weight)
            weight, many = heavy + weight, many + more
        groups.append((mean, weight, many))
    means = [mean for mean, _, many in groups for _ in range(many)]
    return [mean + offset for mean, offset in zip(means, offsets, strict=True)]
