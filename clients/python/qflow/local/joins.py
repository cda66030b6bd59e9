"""Whether a place has its turn: how its sources ended, and what its join asks of that."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from qflow.authoring.graph import Edge, Place
from qflow.authoring.node import Node
from qflow.types import NONE, Type, verdict

State = Mapping[int, str]
# Of one source: whether it is active, and whether it failed without being handled here.
_End = tuple[bool, bool]


def wanted(place: Place, state: State, branch_of: Callable[[Place], Any]) -> bool:
    """Whether a place runs: `state` has how each place before it ended, by its identity."""
    if place.finally_ or place.compensates is not None:
        return True
    join = place.options.join
    if join == "all" and any(_stands_aside(edge, state, branch_of) for edge in place.edges):
        return False
    ends = [*_data_ends(place, state), *(_edge_end(each, state, branch_of) for each in place.edges)]
    active = sum(end[0] for end in ends)
    if isinstance(join, int) or join == "any":
        return active >= (1 if join == "any" else join)
    if join == "all_done" or not ends:
        return True
    return active > 0 and not any(end[1] for end in ends) and not _lacks(place, state)


def _data_ends(place: Place, state: State) -> Iterator[_End]:
    for source in place.fed.values():
        if source.place is not None:
            ended = state.get(id(source.place), "skipped")
            carried = source.output not in source.place.outputs  # what it failed with
            yield (
                ended == ("failed" if carried else "completed"),
                ended == "failed" and not carried,
            )


def _edge_end(edge: Edge, state: State, branch_of: Callable[[Place], Any]) -> _End:
    ended = state.get(id(edge.source), "skipped")
    if edge.kind == "failure":
        return ended == "failed", False
    if edge.kind == "branch":
        return ended == "completed" and branch_of(edge.source) == edge.branch, ended == "failed"
    return ended == "completed", ended == "failed"


def _stands_aside(edge: Edge, state: State, branch_of: Callable[[Place], Any]) -> bool:
    """Whether it stands on a branch, or behind a failure, that did not come."""
    return edge.kind != "order" and not _edge_end(edge, state, branch_of)[0]


def _lacks(place: Place, state: State) -> bool:
    """Whether an input that must be there has no value and takes no None."""
    return any(
        source.place is not None
        and state.get(id(source.place), "skipped") == "skipped"
        and not may_lack(place, name)
        for name, source in place.fed.items()
    )


def may_lack(place: Place, name: str) -> bool:
    """Whether an input does without a value: it has a default, or takes None."""
    port = place.runs.inputs.get(name) if isinstance(place.runs, Node) else None
    return port is None or not port.required or takes_none(port.type)


def takes_none(of: Type) -> bool:
    """Whether None is a value of a type as it stands."""
    return verdict(NONE, of).fits
