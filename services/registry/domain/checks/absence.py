"""Determine which places may end without a value, and what their edges then supply.

A place is described by the events without which it does not run: a branch taken, a condition that
holds, a handled failure. A value is certain if everything that its source needs has happened
whenever its target runs: places on the same branch are absent together.
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
    BRANCH,
    DATA,
    FAILURE,
    N_OF,
    ORDER,
    Choice,
)
from services.registry.domain.definition import Connection, WorkflowNode

# A bit set of required events. A chain of 10,000 places that may fail has as many events; sets of
# them would take quadratic memory.
Events: TypeAlias = int

_NOTHING: Final[Events] = 0
# Of more ways to one event only the same ones are recognised: the check stays near linear.
_WAYS_MAX: Final = 16
_PLAIN_KINDS: Final = frozenset({DATA, ORDER})


@dataclass(slots=True)
class Absence:
    """The events that every place needs in order to run, and to have a value."""

    nodes: Mapping[str, WorkflowNode]
    incoming: Mapping[str, Mapping[str, Sequence[Connection]]]  # by target, then by source
    handled: frozenset[str]  # places whose failure does not stop the run
    runs: dict[str, Events] = field(default_factory=dict)
    bits: dict[tuple[str, ...], int] = field(default_factory=dict)
    # For each branch of a choice with a default: the choice's name and its number of branches.
    # `taken` is the union of these branch events, `failures` that of the failure events that edges
    # wait for.
    choices: dict[Events, tuple[str, int]] = field(default_factory=dict)
    taken: Events = _NOTHING
    # The ways to each event that says that one of several was so; and all those events.
    ways: dict[Events, frozenset[Events]] = field(default_factory=dict)
    gathered: Events = _NOTHING
    failures: Events = _NOTHING
    # True if every place runs, or the run fails: then no value is ever absent.
    is_whole: bool = False

    def _event(self, *event: str) -> Events:
        return 1 << self.bits.setdefault(event, len(self.bits))

    def has_value(self, name: str) -> Events:
        """Return the events that must have happened for a place to complete."""
        return self.runs[name] | self._not_failed(name)

    def _not_failed(self, name: str) -> Events:
        return self._event("completed", name) if name in self.handled else _NOTHING

    def needs_failure(self, edge: Connection) -> bool:
        """Return whether the target of an edge runs only after a failure.

        Failures that its source needs as well do not count.
        """
        needed = self.runs[edge.target] & ~self.runs[edge.source]
        return needed & self.failures != _NOTHING

    def is_certain(self, edge: Connection) -> bool:
        """Return whether the value of an edge is present whenever its target runs."""
        target = self.nodes[edge.target]
        if target.compensates:
            return True
        if not target.is_main:
            return False  # runs in any case, and reads the values that exist
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
        """Compute the events that a place needs; its sources must have been placed."""
        node = self.nodes[name]
        needed = self._needed(node)
        if node.condition:
            needed |= self._event("holds", name)
        self.runs[name] = needed

    def _needed(self, node: WorkflowNode) -> Events:
        if node.compensates:
            return self._event("undone", node.compensates)
        sources = self.incoming.get(node.id, {}) if node.is_main else {}
        policy = ALL if node.join is None else node.join.policy
        if not sources or policy == ALL_DONE:
            return _NOTHING
        active = {name: self._active(node.id, name, edges) for name, edges in sources.items()}
        count = node.join.count if node.join is not None and policy == N_OF else 1
        needed = self._some([*active.values()], count, "enough", node.id)
        if policy == ALL:
            # A failed source holds the place up, unless the place waits for that failure.
            for source, edges in sources.items():
                if all(each.kind != FAILURE for each in edges):
                    needed |= self._not_failed(source)
                if all(each.kind == BRANCH for each in edges):
                    needed |= active[source]  # regardless of other sources
            failing = [
                active[source]
                for source, edges in sources.items()
                if all(each.kind == FAILURE for each in edges)
            ]
            if failing:  # at least one of these failures must occur
                needed |= self._some(failing, 1, "called", node.id)
        return needed

    def _active(self, target: str, source: str, edges: Sequence[Connection]) -> Events:
        ran, kinds = self.runs[source], {each.kind for each in edges}
        ways = [
            ran | self._event("branch", source, each.branch)
            for each in edges
            if each.kind == BRANCH
        ]
        if kinds & {DATA, ORDER}:
            ways.append(self.has_value(source))
        if FAILURE in kinds:
            failed = self._event("failed", source)
            self.failures |= failed
            ways.append(ran | failed)
            if kinds & {DATA, ORDER}:
                ways.append(ran)  # the source ends in one of the two ways
        return self._some(ways, 1, "active", source, target)

    def _some(self, ways: Sequence[Events], count: int, *besides: str) -> Events:
        """Return the events common to any `count` of these ways.

        What they leave open is represented by a separate event.
        """
        if count >= len(ways):
            return reduce(or_, ways)
        ways = self._met(self._implied(ways))
        needed = reduce(and_, ways)
        if ways.count(needed) >= count:
            return needed
        event = self._event(*besides)
        if count == 1:
            self.ways[event] = frozenset(ways)
            self.gathered |= event
        return needed | event

    def _implied(self, ways: Sequence[Events]) -> Sequence[Events]:
        """Add the events that one of several was so, where each of the ways is or has such a one.

        What runs after `p` and reads what ran after `p`, or after something else, is after that.
        """
        open_events = reduce(or_, ways) & ~reduce(and_, ways) & self.gathered
        while open_events:
            event = open_events & -open_events  # the oldest first: later ones may come of it
            open_events ^= event
            if all(way & event or self._leads_to(way, event) for way in ways):
                ways = [way | event for way in ways]
        return ways

    def _leads_to(self, way: Events, event: Events) -> bool:
        known = self.ways[event]
        return way in known or (
            len(known) <= _WAYS_MAX and any(each & ~way == _NOTHING for each in known)
        )

    def _met(self, ways: Sequence[Events]) -> list[Events]:
        """Add what follows when all branches of a choice meet again: one of them was taken.

        Looks once at the last choice of each way, so that nested choices are resolved from within.
        """
        found = set(ways)
        met = list(ways)
        differing = reduce(or_, found) & ~reduce(and_, found) & self.taken
        seen: dict[tuple[Events, str], int] = {}
        waiting = list(found)
        while waiting:
            way = waiting.pop()
            choices = way & differing
            if not choices:
                continue
            last = 1 << (choices.bit_length() - 1)
            name, branches = self.choices[last]
            base = way ^ last
            seen[base, name] = seen.get((base, name), 0) + 1
            if seen[base, name] == branches and base not in found:
                found.add(base)
                met.append(base)
                waiting.append(base)
        return met

    def add_choice(self, name: str, construct: Choice) -> None:
        """Register a choice of which some branch is always taken, in topological order."""
        names = dict.fromkeys([*(each.name for each in construct.branches), construct.default])
        for each in filter(None, names):
            event = self._event("branch", name, each)
            self.choices[event] = name, len(names)
            self.taken |= event


def absence_of(check: Check, ordered: Sequence[str]) -> Absence:
    """Place every node of an acyclic graph, in topological order."""
    handled = {each.id for each in check.definition.nodes if each.continues}
    nodes = check.named
    if not handled and _runs_whole(check):
        return Absence(nodes, {}, frozenset(), dict.fromkeys(ordered, _NOTHING), is_whole=True)
    incoming: dict[str, dict[str, list[Connection]]] = {}
    for index in check.sound:
        edge = check.definition.connections[index]
        if edge.source:
            incoming.setdefault(edge.target, {}).setdefault(edge.source, []).append(edge)
            if edge.kind == FAILURE:
                handled.add(edge.source)
    found = Absence(nodes, incoming, frozenset(handled))
    for name in ordered:
        construct = nodes[name].construct
        if isinstance(construct, Choice) and construct.default:
            found.add_choice(name, construct)
    for name in ordered:
        found.place(name)
    return found


def _runs_whole(check: Check) -> bool:
    """Return whether no place can be skipped, as in most graphs, including large ones."""
    return check.kinds <= _PLAIN_KINDS and all(
        each.join is None and not each.condition and each.is_main and not each.compensates
        for each in check.definition.nodes
    )


def absent_values(
    check: Check, absence: Absence, connections: Sequence[Connection]
) -> tuple[Connection, ...]:
    """Fill in what the input of each edge gets if the source ends without a value."""
    if absence.is_whole:
        return tuple(connections)
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
            continue  # its default applies
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
