"""Which places may end without a value, and which of their edges say so.

A place is known by the events without which it does not run: a branch that is taken, a condition
that holds, a failure that is handled. A value is there for sure where everything that its source
needs has happened whenever its target runs: what stands on one branch together is absent together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import and_, or_
from typing import Final, TypeAlias

from qflow.types import NONE
from qflow.types.verdict import widens

from services.registry.domain.checks.places import input_of
from services.registry.domain.checks.state import Check
from services.registry.domain.constructs import (
    ABSENT_NULL,
    ALL,
    ALL_DONE,
    ANY_OF,
    BRANCH,
    DATA,
    FAILURE,
    N_OF,
    ORDER,
)
from services.registry.domain.definition import Connection, WorkflowNode

# What must have happened: a bit for each event. A chain of 10,000 places that may fail has as many,
# and sets of them would be quadratic in memory.
Events: TypeAlias = int

_NOTHING: Final[Events] = 0


@dataclass(slots=True)
class Absence:
    """What every place needs in order to run, and to have a value."""

    nodes: Mapping[str, WorkflowNode]
    incoming: Mapping[str, Mapping[str, Sequence[Connection]]]  # by target, by source
    handled: frozenset[str]  # places whose failure does not stop the run
    runs: dict[str, Events] = field(default_factory=dict)
    bits: dict[tuple[str, ...], int] = field(default_factory=dict)

    def _event(self, *event: str) -> Events:
        return 1 << self.bits.setdefault(event, len(self.bits))

    def has_value(self, name: str) -> Events:
        """Give what must have happened for a place to have completed."""
        return self.runs[name] | self._not_failed(name)

    def _not_failed(self, name: str) -> Events:
        return self._event("completed", name) if name in self.handled else _NOTHING

    def is_certain(self, edge: Connection) -> bool:
        """Tell whether the value of an edge from a node is there whenever its target runs."""
        source, target = self.nodes[edge.source], self.nodes[edge.target]
        if target.compensates:
            return True
        if target.is_main != source.is_main:
            return False  # read as it ended
        if not self._waits_for_all(target):
            return False
        needed = self.has_value(edge.source)
        if edge.kind == FAILURE:
            needed = self.runs[edge.source] | self._event("failed", edge.source)
        return needed & ~self.runs[edge.target] == _NOTHING

    def _waits_for_all(self, node: WorkflowNode) -> bool:
        sources = len(self.incoming.get(node.id, {}))
        policy = ALL if node.join is None else node.join.policy
        count = node.join.count if node.join is not None and policy == N_OF else 1
        return policy in (ALL, ALL_DONE) or count >= sources

    def place(self, name: str) -> None:
        """Find what a place needs; its sources are placed already."""
        node = self.nodes[name]
        needed = self._needed(node)
        if node.condition:
            needed |= self._event("holds", name)
        self.runs[name] = needed

    def _needed(self, node: WorkflowNode) -> Events:
        if node.compensates:
            return self._event("undone", node.compensates)
        sources = {
            source: edges
            for source, edges in self.incoming.get(node.id, {}).items()
            if self.nodes[source].is_main == node.is_main
        }
        policy = ALL if node.join is None else node.join.policy
        if not sources or policy == ALL_DONE:
            return _NOTHING
        # It runs when one of them is active or several: what each of them needs has happened.
        active = [self._active(source, edges) for source, edges in sources.items()]
        needed = reduce(and_, active)
        if policy == N_OF and node.join is not None and node.join.count >= len(sources):
            return reduce(or_, active)
        if policy in (ANY_OF, N_OF):
            return needed
        for source, edges in sources.items():
            # A source that failed, and whose failure is not what is waited for, holds it up.
            if all(each.kind != FAILURE for each in edges):
                needed |= self._not_failed(source)
        return needed

    def _active(self, source: str, edges: Sequence[Connection]) -> Events:
        ways = []
        kinds = {each.kind for each in edges}
        if kinds & {DATA, ORDER}:
            ways.append(self.has_value(source))
        if FAILURE in kinds:
            ways.append(self.runs[source] | self._event("failed", source))
        ways += [
            self.runs[source] | self._event("branch", source, each.branch)
            for each in edges
            if each.kind == BRANCH
        ]
        return reduce(and_, ways)


def absence_of(check: Check, ordered: Sequence[str]) -> Absence:
    """Place every node of a graph without cycles, in the order in which they may run."""
    incoming: dict[str, dict[str, list[Connection]]] = {}
    handled = {each.id for each in check.definition.nodes if each.continues}
    for index in check.sound:
        edge = check.definition.connections[index]
        if edge.source:
            incoming.setdefault(edge.target, {}).setdefault(edge.source, []).append(edge)
            if edge.kind == FAILURE:
                handled.add(edge.source)
    nodes = {name: check.definition.nodes[at] for name, at in check.places.items()}
    found = Absence(nodes, incoming, frozenset(handled))
    for name in ordered:
        found.place(name)
    return found


def absent_values(
    check: Check, absence: Absence, connections: Sequence[Connection]
) -> tuple[Connection, ...]:
    """Say of every edge what its input gets where its source ends without a value."""
    decided = list(connections)
    for index in check.sound:
        edge = decided[index]
        if not edge.source or not edge.is_value or absence.is_certain(edge):
            continue
        target = check.signature_of(edge.target)
        spec = input_of(target, edge.target_input) if target is not None else None
        if spec is None:
            continue
        if target is not None and target.is_open:
            decided[index] = replace(edge, absent=ABSENT_NULL)
        elif not spec.required:
            continue  # its default holds
        elif widens(NONE, spec.type):
            decided[index] = replace(edge, absent=ABSENT_NULL)
        else:
            message = (
                f"{edge.source} may end without a value, and {edge.target} needs its"
                f" {edge.target_input}"
            )
            hint = "give the input a default, let it take None, or let both stand on one branch"
            check.error(f"connections[{index}]", "INPUT_MAY_BE_ABSENT", message, hint)
    return tuple(decided)
