"""Draws a graph as text: layers from left to right, each node on its own row, lines in between.

Lines run to the right and down. A row belongs to one node: its outgoing line runs along the row,
incoming ones arrive from the left, so that no two lines overlap. A line leaves a vertical one only
where a branch is drawn; other lines pass behind it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

COLUMNS_MAX: Final = 78  # and an indent of two


@dataclass(frozen=True, slots=True)
class _Rail:
    """A vertical line that connects every source with every target."""

    sources: Sequence[str]
    targets: Sequence[str]
    goes_on: bool  # its only source has more targets in later layers


def draw(
    nodes: Sequence[str],
    edges: Iterable[tuple[str, str]],
    labels: Mapping[str, str] = MappingProxyType({}),
    undoing: Collection[str] = (),
) -> list[str]:
    """Return the lines of the picture; if it would be too wide, a line of text per node.

    Nodes are drawn with their labels if there is room; lines to compensations end in a hollow
    arrow. Drafts are drawn too: nodes that occur in edges only are included, and a graph with a
    cycle becomes lines of text.
    """
    after: dict[str, list[str]] = {node: [] for node in nodes}
    for start, end in edges:
        after.setdefault(end, [])
        if end not in after.setdefault(start, []):
            after[start].append(end)
    labelled = _named(after, labels)
    rows = _rows(labelled)
    if len(rows) < len(after):
        return [line for node in labelled for line in _in_words(node, labelled[node])]
    for named in (labelled, after):
        hollow = {labels.get(node, node) if named is labelled else node for node in undoing}
        picture = _Picture(named, _rows(named), _layers(named, _rows(named)), hollow).lines()
        if max(map(len, picture), default=0) <= COLUMNS_MAX:
            return picture
    return [line for node in rows for line in _in_words(node, labelled[node])]


def _named(after: Mapping[str, Sequence[str]], labels: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the graph with nodes replaced by their labels."""
    return {
        labels.get(node, node): [labels.get(end, end) for end in ends]
        for node, ends in after.items()
    }


def _rows(after: Mapping[str, Sequence[str]]) -> list[str]:
    """Order the nodes from top to bottom: each below its sources, close to the last of them."""
    needs = {node: sum(node in ends for ends in after.values()) for node in after}
    ready = [node for node in reversed(list(after)) if needs[node] == 0]
    rows = []
    while ready:
        node = ready.pop()
        rows.append(node)
        for end in reversed(after[node]):
            needs[end] -= 1
            if needs[end] == 0:
                ready.append(end)
    return rows


def _layers(after: Mapping[str, Sequence[str]], rows: Sequence[str]) -> list[list[str]]:
    """Assign each node to the layer after the last of its sources."""
    depth = dict.fromkeys(rows, 0)
    for node in rows:
        for end in after[node]:
            depth[end] = max(depth[end], depth[node] + 1)
    layers: list[list[str]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for node in rows:
        layers[depth[node]].append(node)
    return layers


class _Picture:
    """The canvas, filled layer by layer."""

    def __init__(
        self,
        after: Mapping[str, Sequence[str]],
        rows: Sequence[str],
        layers: Sequence[Sequence[str]],
        hollow: Collection[str],
    ) -> None:
        self._after = after
        self._hollow = hollow
        self._row = {node: row for row, node in enumerate(rows)}
        self._layers = layers
        self._cells: list[dict[int, str]] = [{} for _ in rows]
        self._end: dict[str, int] = {}  # where the line of each node ends so far
        self._width = 0

    def lines(self) -> list[str]:
        for at, layer in enumerate(self._layers):
            if at:
                self._connect(layer, self._layers[at + 1 :])
            for node in layer:
                self._write(node, self._width, node)
                self._end[node] = self._width + len(node) + 1
            self._width += max(map(len, layer)) + 1
        return [
            "".join(cells.get(x, " ") for x in range(max(cells, default=-1) + 1)).rstrip()
            for cells in self._cells
        ]

    def _connect(self, layer: Sequence[str], later: Sequence[Sequence[str]]) -> None:
        """Draw the rails before a layer, and the arrows into it."""
        rails = self._rails(layer, {node for nodes in later for node in nodes})
        where = {id(rail): self._width + 1 + 2 * at for at, rail in enumerate(rails)}
        arrow = self._width + 2 * len(rails) + 1
        enters = {end: min(where[id(r)] for r in rails if end in r.targets) for end in layer}
        for rail in rails:
            for node in rail.sources:
                self._run(node, self._end[node], where[id(rail)])
                self._end[node] = where[id(rail)] + 1
        for node in layer:
            self._run(node, enters[node] + 1, arrow)
            self._write(node, arrow, "▷" if node in self._hollow else "►")
        for rail in rails:
            self._stand(rail, where[id(rail)])
        self._width = arrow + 2

    def _rails(self, layer: Sequence[str], later: set[str]) -> list[_Rail]:
        """Return the rails; sources with exactly the same targets share one."""
        shared: dict[tuple[str, ...], list[str]] = {}
        alone = []
        for node in self._row:
            ends = tuple(end for end in layer if end in self._after[node])
            if ends and later.intersection(self._after[node]):
                alone.append(_Rail([node], ends, goes_on=True))
            elif ends:
                shared.setdefault(ends, []).append(node)
        return [*alone, *(_Rail(nodes, ends, goes_on=False) for ends, nodes in shared.items())]

    def _stand(self, rail: _Rail, x: int) -> None:
        """Draw a rail from its first source down to its last target."""
        sources = {self._row[node] for node in rail.sources}
        targets = {self._row[node] for node in rail.targets}
        first, last = min(sources), max(targets)
        self._cells[first][x] = "┬" if rail.goes_on else "┐"
        for row in range(first + 1, last):
            self._cells[row][x] = "┤" if row in sources else "├" if row in targets else "│"
        self._cells[last][x] = "└"

    def _run(self, node: str, start: int, end: int) -> None:
        """Draw a line along a node's row, behind what is drawn already."""
        for x in range(start, end):
            self._cells[self._row[node]].setdefault(x, "─")

    def _write(self, node: str, x: int, text: str) -> None:
        self._cells[self._row[node]].update(enumerate(text, start=x))


def _in_words(node: str, ends: Sequence[str]) -> list[str]:
    text = f"{node} > {', '.join(ends)}" if ends else node
    return textwrap.wrap(text, COLUMNS_MAX, subsequent_indent="  ", break_on_hyphens=False)
