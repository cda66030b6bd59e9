"""The order in which the places of a graph may run, and the cycle where there is none."""

from __future__ import annotations

from collections import deque
from typing import Final

from services.registry.domain.checks.state import Check

_SHOWN_MAX: Final = 20


def order(check: Check) -> list[str] | None:
    """Remove nodes without parents until none is left; what remains holds a cycle, which is noted.

    Every kind of edge counts: nothing runs that waits for itself in any way.
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
    """Walk backwards among what is left until a node comes again."""
    backwards: dict[str, tuple[str, int]] = {}
    for index in check.sound:
        edge = check.definition.connections[index]
        if edge.source in left and edge.target in left:
            backwards.setdefault(edge.target, (edge.source, index))
    # What is left may also hang behind a cycle; each of it has a parent that is left.
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
