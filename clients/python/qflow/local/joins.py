"""Decides whether a place runs, by how its sources ended and its join policy.

As on a Qflow, a source counts once, however many edges lead from it: it is active if any of them
is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qflow.authoring.graph import Place
from qflow.authoring.node import Node
from qflow.types import NONE, Type, verdict

State = Mapping[int, str]


@dataclass(slots=True)
class _Source:
    """One source of a place, and which of its ends count."""

    ended: str
    done: bool = False  # completed
    branches: set[str] = field(default_factory=set)  # took one of these
    failure: bool = False  # failed

    def is_active(self, branch: Any) -> bool:
        if self.ended == "failed":
            return self.failure
        return self.ended == "completed" and (self.done or branch in self.branches)

    @property
    def only_failure(self) -> bool:
        return self.failure and not self.done and not self.branches


def wanted(place: Place, state: State, branch_of: Callable[[Place], Any]) -> bool:
    """Return whether a place runs; `state` holds the ends of earlier places by identity."""
    if place.finally_ or place.compensates is not None:
        return True
    join = place.options.join
    sources = _sources(place, state)
    active = [each.is_active(branch_of(of)) for of, each in sources]
    if isinstance(join, int) or join == "any":
        return sum(active) >= (1 if join == "any" else join)
    if join == "all_done" or not sources:
        return True
    rescued = [on for (_, each), on in zip(sources, active, strict=True) if each.only_failure]
    stopped = any(
        not on and (each.ended == "failed" or (each.branches and not each.done))
        for (_, each), on in zip(sources, active, strict=True)
    )
    return (
        any(active) and not stopped and (not rescued or any(rescued)) and not _lacks(place, state)
    )


def _sources(place: Place, state: State) -> list[tuple[Place, _Source]]:
    found: dict[int, tuple[Place, _Source]] = {}

    def of(source: Place) -> _Source:
        ended = state.get(id(source), "skipped")
        return found.setdefault(id(source), (source, _Source(ended)))[1]

    for fed in place.fed.values():
        if fed.place is not None:
            carried = fed.output not in fed.place.outputs  # what it failed with
            of(fed.place).failure |= carried
            of(fed.place).done |= not carried
    for edge in place.edges:
        source = of(edge.source)
        source.failure |= edge.kind == "failure"
        source.done |= edge.kind == "order"
        source.branches |= {edge.branch} if edge.kind == "branch" else set()
    return list(found.values())


def _lacks(place: Place, state: State) -> bool:
    """Return whether a required input has no value and does not accept None."""
    return any(
        source.place is not None
        and state.get(id(source.place), "skipped") == "skipped"
        and not may_lack(place, name)
        for name, source in place.fed.items()
    )


def may_lack(place: Place, name: str) -> bool:
    """Return whether an input may lack a value: it has a default or accepts None."""
    port = place.runs.inputs.get(name) if isinstance(place.runs, Node) else None
    return port is None or not port.required or takes_none(port.type)


def takes_none(of: Type) -> bool:
    """Return whether a type accepts None."""
    return verdict(NONE, of).fits
