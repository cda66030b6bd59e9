"""The state of one run in memory: a cache of committed rows, changed in place by the planner.

A *slot* is what can have a row: first the places of the plan, by their index, then the *parts* that
a run adds, which are elements of maps and turns of loops.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from qflow.types import ConversionError, convert

from services.orchestrator.domain.options import NO_OPTIONS, RunOptions
from services.orchestrator.domain.plan import FROM_RUN, FROM_TURN, Binding, Kind, Phase, Place, Plan
from services.orchestrator.domain.records import Failure, NodeRecord
from services.orchestrator.domain.status import NODE_FAILED, RUN_FINAL, RunStatus
from services.orchestrator.domain.values import (
    FileList,
    FilePart,
    ListOutput,
    NodeOutput,
    Spliced,
    UnconvertedError,
    UnreadableError,
    Value,
    field_of,
)


class Part(NamedTuple):
    """An element of a map or a turn of a loop: a slot after those of the places."""

    place: int
    group: int  # the slot that it is a part of
    number: int  # of an element from 0, of a turn from 1
    node_id: str


@dataclass(slots=True)
class Group:
    """A map or loop in progress. Its parts get slots when they begin."""

    slot: int
    count: int  # of elements; of turns at most
    window: int  # how many may be in flight at once
    allowed: int = 0  # how many may fail
    elements: Sequence[bytes] | FileList | ListOutput | None = None
    source: Binding | None = None  # the input that is mapped over
    begun: int = 0
    open: int = 0
    failed: int = 0
    queued: bool = False  # waits for a runner
    filling: bool = False  # `groups.fill` is running
    outputs: dict[int, NodeOutput | None] = field(default_factory=dict)
    # Later elements that have a slot already, because they were kept of another run.
    ahead: set[int] = field(default_factory=set)

    @property
    def room(self) -> bool:
        """Whether another element may begin."""
        return self.begun < self.count and self.open < self.window

    @property
    def over(self) -> bool:
        """Whether all elements have ended."""
        return self.begun == self.count and not self.open


class Signal(NamedTuple):
    """A signal, or the answer of an approval, by kind."""

    id: UUID
    sent_by: UUID
    outputs: tuple[bytes, ...]
    kind: Kind = Kind.SIGNAL


@dataclass(slots=True, kw_only=True)
class Run:
    """One open execution."""

    id: UUID
    plan: Plan
    tenant_id: UUID
    created_by: UUID
    status: RunStatus
    input_values: dict[str, bytes]
    input_text: str = "{}"  # exactly as sent
    request_id: UUID | None = None
    shard: int = 0
    parent: tuple[UUID, int] | None = None  # the run and slot of which this is a sub-workflow
    options: RunOptions = NO_OPTIONS
    asleep: bool = False  # waits for its start time or a limit
    # Turns in limit queues: of the run itself, and of slots that a pause removed from them.
    limit_turns: dict[int, int] = field(default_factory=dict, compare=False)
    # The rest of the queue timeout of slots that are paused.
    queue_left_s: dict[int, float] = field(default_factory=dict, compare=False)
    begun: bool = False  # something has begun: its row has a start time
    revision: int = 0
    order: int = 0  # the last execution_order
    records: list[NodeRecord | None] = field(default_factory=list)  # by slot
    parts: list[Part] = field(default_factory=list)  # of the slots after the places
    groups: dict[int, Group] = field(default_factory=dict)  # by slot
    remaining: list[int] = field(default_factory=list)  # sources that have not ended, by place
    active: list[int] = field(default_factory=list)  # ended sources that count, by place
    # By place: a source failed without a failure edge, or a choice took another branch.
    broken: list[bool] = field(default_factory=list)
    # Places with `rescues` of which such a failure occurred.
    called: set[int] = field(default_factory=set)
    keep: list[int] = field(default_factory=list)  # readers left of the output, by place
    outputs: dict[int, NodeOutput] = field(default_factory=dict)
    # Waiting slots by kind and name: a signal and an approval may have the same name.
    waiting: dict[tuple[Kind, str], list[int]] = field(default_factory=dict)
    # Signals that no slot has taken yet, by name. An approval is only answered while it waits.
    signals: dict[str, deque[Signal]] = field(default_factory=dict)
    running: int = 0  # attempts on runners, and sub-workflows
    done: int = 0  # ended places of the main phase
    closing: bool = False  # the main phase is over
    undo: tuple[int, ...] = ()  # compensations to run, in order
    seeded: set[int] = field(default_factory=set)  # places of later phases that have begun
    abandoned: bool = False  # cancelled while closing: nothing more begins
    failure: tuple[str, Failure] | None = None  # the first failing place and its failure
    cancelling: bool = False
    expired: bool = False
    queued: set[int] = field(default_factory=set)  # slots in some queue of dispatch
    watchers: int = 0  # while there are any, transitions carry views
    cpu_us: int = 0
    memory_peak_bytes: int = 0
    io_read_bytes: int = 0
    io_write_bytes: int = 0
    container_id: UUID | None = field(default=None, compare=False)  # of the attempt that ended last
    created_at: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    cancel_requested_at: datetime | None = None
    deadline_at: datetime | None = None
    output_data: str | None = None

    def __post_init__(self) -> None:
        """Initialize the arrays of a new run."""
        plan = self.plan
        if not self.records:
            size = len(plan.places)
            self.records = [None] * size
            self.remaining = list(plan.parents)
            self.active = [0] * size
            self.broken = [False] * size
            self.keep = list(plan.readers)

    def is_open(self, slot: int) -> bool:
        """Return whether a slot may begin, or begin again, now or later."""
        places = self.plan.places
        if slot < len(places):
            at = slot
        else:
            part = self.parts[slot - len(places)]
            if part.group not in self.groups:
                return False
            at = part.place
        if self.status in RUN_FINAL:
            return False
        phase = places[at].phase
        if phase is Phase.MAIN:
            stopped = self.failure is not None or self.cancelling or self.expired
            return not stopped and not self.closing
        undoes = phase is not Phase.COMPENSATION or at in self.undo
        return self.closing and undoes and not self.abandoned

    def may_begin(self, slot: int) -> bool:
        """Return whether an attempt at a slot may begin now."""
        return self.status is not RunStatus.PAUSED and not self.asleep and self.is_open(slot)

    def is_stopping(self, slot: int) -> bool:
        """Return whether a running slot has to be stopped."""
        if not (self.cancelling or self.expired):
            return False
        return self.abandoned or self.plan.places[self.place_of(slot)].phase is Phase.MAIN

    # --- slots ----------------------------------------------------------------------------------

    def place_of(self, slot: int) -> int:
        """Return the place of a slot."""
        size = len(self.plan.places)
        return slot if slot < size else self.parts[slot - size].place

    def part(self, slot: int) -> Part | None:
        """Return the part that a slot is; None for a place."""
        size = len(self.plan.places)
        return None if slot < size else self.parts[slot - size]

    def place(self, slot: int) -> Place:
        """Return the definition of a slot's place."""
        places = self.plan.places
        return places[slot] if slot < len(places) else places[self.parts[slot - len(places)].place]

    def node_id(self, slot: int) -> str:
        """Return the node_id of a slot's row."""
        places = self.plan.places
        return places[slot].id if slot < len(places) else self.parts[slot - len(places)].node_id

    def depth(self, slot: int) -> int:
        """Count the groups of the same place around a slot."""
        depth, part = 0, self.part(slot)
        while part is not None:
            depth, part = depth + 1, self.part(part.group)
        return depth

    def is_group(self, slot: int) -> bool:
        """Return whether a slot is a map or loop as a whole, rather than a part that runs."""
        place = self.place(slot)
        if place.map is not None:
            return self.depth(slot) < place.map.depth
        return place.loop is not None and slot < len(self.plan.places)

    def add_part(self, group: int, index: int) -> int:
        """Add a slot for an element or a turn."""
        place = self.place_of(group)
        mark = f"[{index}]" if self.plan.places[place].map is not None else f"#{index}"
        self.parts.append(Part(place, group, index, self.node_id(group) + mark))
        self.records.append(None)
        return len(self.records) - 1

    # --- values ---------------------------------------------------------------------------------

    def bindings(self, slot: int) -> tuple[Binding, ...]:
        """Return the bindings of a slot's inputs."""
        place = self.place(slot)
        if place.loop is not None and (part := self.part(slot)) is not None and part.number > 1:
            return place.turn_inputs
        return place.inputs

    def has_inputs(self, slot: int) -> bool:
        """Return whether a slot's inputs are still known: those of a part end with its group."""
        part = self.part(slot)
        return part is None or part.group in self.groups

    def value(self, slot: int, at: int) -> Value | None:
        """Return the value of an input: JSON text or a reference, None if it has no value."""
        binding = self.bindings(slot)[at]
        part = self.part(slot)
        if part is not None:
            rule = self.plan.places[part.place].map
            if rule is not None and binding.name == rule.input:
                return _element(self.groups[part.group], part.number)
            if binding.source == FROM_TURN:
                return field_of(self.groups[part.group].outputs[part.number - 1], binding)
        return self.given(binding)

    def inputs(self, slot: int) -> list[Value | None]:
        """Return the values of all inputs, as `value` does."""
        bindings = self.bindings(slot)
        if slot < len(self.plan.places):
            return [self.given(binding) for binding in bindings]
        return [self.value(slot, at) for at in range(len(bindings))]

    def given(self, binding: Binding) -> Value | None:
        """Return the value of a binding whose source is no map or loop."""
        source = binding.source
        if source >= 0:
            if binding.output < 0:
                return self._error(source) or binding.absent or None
            output = self.outputs.get(source)
            if output is None:
                return binding.absent or None
            return field_of(output, binding)
        if source == FROM_RUN:
            return self.input_values.get(binding.key) or binding.literal or None
        return binding.literal

    def _error(self, place: int) -> bytes:
        record = self.records[place]
        if record is None or record.status not in NODE_FAILED or record.failure is None:
            return b""
        told = {
            "node_id": self.plan.places[place].id,
            "error_type": record.failure.error_type,
            "message": record.failure.message,
        }
        return json.dumps(told, ensure_ascii=False).encode()

    def values(self, slot: int, only: AbstractSet[str] | None = None) -> dict[str, bytes]:
        """Return the inputs that have a value as JSON texts, for use by the engine itself."""
        found: dict[str, bytes] = {}
        for at, binding in enumerate(self.bindings(slot)):
            if only is not None and binding.name not in only:
                continue
            value = self.value(slot, at)
            if isinstance(value, FilePart | Spliced):
                message = f"the input {binding.name} is larger than the engine reads (64 KiB)"
                raise UnreadableError(message)
            if value is not None:
                found[binding.name] = self._converted(slot, binding, value)
        return found

    def _converted(self, slot: int, binding: Binding, value: bytes) -> bytes:
        """Apply the conversion of an edge: runners do this for user code, the engine for itself."""
        if not binding.conversion:
            return value
        rule = self.place(slot).map
        is_mapped = rule is not None and binding.name == rule.input
        levels = rule.depth - self.depth(slot) if rule is not None and is_mapped else 0
        try:
            return convert(value, binding.conversion, depth=levels)
        except ConversionError as error:
            raise UnconvertedError(f"input {binding.name!r}: {error}", binding.name) from None


def _element(group: Group, index: int) -> Value:
    elements = group.elements
    if isinstance(elements, ListOutput):
        assert group.source is not None
        return field_of(elements.items[index], group.source)
    assert elements is not None
    return elements[index]
