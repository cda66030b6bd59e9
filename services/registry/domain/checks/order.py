"""Find an order in which the places of a graph can run, or report a cycle."""

from __future__ import annotations

from collections import deque
from typing import Final

from services.registry.domain.checks.state import Check

_SHOWN_MAX: Final = 20


def order(check: Check) -> list[str] | None:
    """Return the places in topological order; reports a cycle and returns None if there is one.

    All kinds of edges count: a place that waits for itself in any way never runs.
    """
    parents = {name: len(sources) for name, sources in check.parents.items()}
    ready = deque(name for name in check.places if name not in parents)
    left = dict.fromkeys(check.places)
    ordered = []
    while ready:
        name = ready.popleft()
        del left[name]
        ordered.append(name)
        for child in check.children.get(name, ()):
            parents[child] -= 1
            if not parents[child]:
                ready.append(child)
    if left:
        _name_cycle(check, left)
        return None
    return ordered


def _name_cycle(check: Check, left: dict[str, None]) -> None:
    """Report a cycle, found by walking backwards until a node repeats."""
    backwards: dict[str, tuple[str, int]] = {}
    for index in check.sound:
        edge = check.definition.connections[index]
        if edge.source in left and edge.target in left:
            backwards.setdefault(edge.target, (edge.source, index))
    # The rest may also contain nodes behind a cycle; each of them has a parent in the rest.
    name = next(iter(left))
    seen: dict[str, int] = {}
    path: list[str] = []
    while name not in seen:
        seen[name] = len(path)
        path.append(name)
        name = backwards[name][0]
    loop = path[seen[name] :][::-1]
    start = loop.index(min(loop, key=check.places.__getitem__))
    loop = loop[start:] + loop[:start]
    shown = loop if len(loop) <= _SHOWN_MAX else [*loop[:_SHOWN_MAX], "…"]
    message = f"the nodes wait for each other: {' → '.join([*shown, loop[0]])}"
    place = f"connections[{backwards[loop[0]][1]}]"
    check.error(place, "CYCLE", message, "remove one of these edges")
