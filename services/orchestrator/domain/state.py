"""The state of one run in memory: a cache of committed rows, changed in place by the planner.

A *slot* is what can have a row: the places of the plan come first, by their index; behind them
come the *parts* that runs make of them, the elements of a map and the turns of a loop.
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
    """An element of a map or a turn of a loop: a slot behind those of the places."""

    place: int
    group: int  # the slot that it is a part of
    number: int  # of a map's element from 0, of a loop's turn from 1
    node_id: str


@dataclass(slots=True)
class Group:
    """A map or a loop that is under way. Its elements get slots when they begin."""

    slot: int
    count: int  # of elements; of turns at most
    window: int  # how many may be under way at once
    allowed: int = 0  # how many may fail
    elements: Sequence[bytes] | FileList | ListOutput | None = None
    source: Binding | None = None  # the input that is mapped over
    begun: int = 0
    open: int = 0
    failed: int = 0
    queued: bool = False  # it waits for a runner's credit
    filling: bool = False  # its elements are begun, right now
    outputs: dict[int, NodeOutput | None] = field(default_factory=dict)
    # Elements behind the next one that are there already: a run that takes elements over has them.
    ahead: set[int] = field(default_factory=set)

    @property
    def room(self) -> bool:
        """Whether another element may begin."""
        return self.begun < self.count and self.open < self.window

    @property
    def over(self) -> bool:
        """Whether all elements are over."""
        return self.begun == self.count and not self.open


class Signal(NamedTuple):
    """A word from outside: a signal, or the answer of an approval, never one for the other."""

    id: UUID
    sent_by: UUID
    outputs: tuple[bytes, ...]
    kind: Kind = Kind.SIGNAL


@dataclass(slots=True, kw_only=True)
class Run:
    """One execution that is not over."""

    id: UUID
    plan: Plan
    tenant_id: UUID
    created_by: UUID
    status: RunStatus
    input_values: dict[str, bytes]
    input_text: str = "{}"  # exactly as it was sent
    request_id: UUID | None = None
    shard: int = 0
    parent: tuple[UUID, int] | None = None  # the run and slot whose sub-workflow this is
    options: RunOptions = NO_OPTIONS
    asleep: bool = False  # it was to start at a time that has not come, or waits for a limit
    # When it first asked for a place here, and its slots that a pause took out of their lines.
    limit_turns: dict[int, int] = field(default_factory=dict, compare=False)
    # How long slots that a pause holds up may still wait for a runner, where that is bounded.
    queue_left_s: dict[int, float] = field(default_factory=dict, compare=False)
    begun: bool = False  # something of it began: its row has a start time
    revision: int = 0
    order: int = 0  # the last execution_order that was drawn
    records: list[NodeRecord | None] = field(default_factory=list)  # by slot
    parts: list[Part] = field(default_factory=list)  # of the slots behind the places
    groups: dict[int, Group] = field(default_factory=dict)  # by slot
    remaining: list[int] = field(default_factory=list)  # sources that are not over
    active: list[int] = field(default_factory=list)  # sources whose end counts
    # A source failed and that does not count, or took another branch than the one it stands on.
    broken: list[bool] = field(default_factory=list)
    # Places that rescue of which a failure came that they stand behind.
    called: set[int] = field(default_factory=set)
    keep: list[int] = field(default_factory=list)  # readers of the output that are not done
    outputs: dict[int, NodeOutput] = field(default_factory=dict)
    # Slots by the word they wait for: a signal and an approval may have the same name.
    waiting: dict[tuple[Kind, str], list[int]] = field(default_factory=dict)
    # Words that nobody took yet, by name: signals all, since an answer is for who waits for it.
    signals: dict[str, deque[Signal]] = field(default_factory=dict)
    running: int = 0  # attempts on runners, and sub-workflows
    done: int = 0  # places of the main phase that are over
    closing: bool = False  # the main phase is over, for good or ill
    undo: tuple[int, ...] = ()  # compensations to run, in their order
    seeded: set[int] = field(default_factory=set)  # places of later phases that were begun
    abandoned: bool = False  # cancelled while closing: nothing more of that begins
    failure: tuple[str, Failure] | None = None  # the first failing place and why
    cancelling: bool = False
    expired: bool = False
    queued: set[int] = field(default_factory=set)  # slots that wait for a runner, each once
    watchers: int = 0  # while there are any, transitions carry copies of what they change
    cpu_us: int = 0
    memory_peak_bytes: int = 0
    io_read_bytes: int = 0
    io_write_bytes: int = 0
    container_id: UUID | None = field(default=None, compare=False)  # of what ended last
    created_at: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    cancel_requested_at: datetime | None = None
    deadline_at: datetime | None = None
    output_data: str | None = None

    def __post_init__(self) -> None:
        """Fill the arrays for a run of which nothing has begun."""
        plan = self.plan
        if not self.records:
            size = len(plan.places)
            self.records = [None] * size
            self.remaining = list(plan.parents)
            self.active = [0] * size
            self.broken = [False] * size
            self.keep = list(plan.readers)

    def is_open(self, slot: int) -> bool:
        """Say whether what a slot stands for may still begin, or begin again, sooner or later."""
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
        """Say whether an attempt at a slot may begin now."""
        return self.status is not RunStatus.PAUSED and not self.asleep and self.is_open(slot)

    def is_stopping(self, slot: int) -> bool:
        """Say whether what runs at a slot is to end."""
        if not (self.cancelling or self.expired):
            return False
        return self.abandoned or self.plan.places[self.place_of(slot)].phase is Phase.MAIN

    # --- slots ----------------------------------------------------------------------------------

    def place_of(self, slot: int) -> int:
        """Give the place that a slot is of."""
        size = len(self.plan.places)
        return slot if slot < size else self.parts[slot - size].place

    def part(self, slot: int) -> Part | None:
        """Give what a slot is a part of; None for a place."""
        size = len(self.plan.places)
        return None if slot < size else self.parts[slot - size]

    def place(self, slot: int) -> Place:
        """Give the definition of what runs at a slot."""
        places = self.plan.places
        return places[slot] if slot < len(places) else places[self.parts[slot - len(places)].place]

    def node_id(self, slot: int) -> str:
        """Give the name of a slot's row."""
        places = self.plan.places
        return places[slot].id if slot < len(places) else self.parts[slot - len(places)].node_id

    def depth(self, slot: int) -> int:
        """Count the maps or loops around a slot, its place's own."""
        depth, part = 0, self.part(slot)
        while part is not None:
            depth, part = depth + 1, self.part(part.group)
        return depth

    def is_group(self, slot: int) -> bool:
        """Say whether a slot is a map or loop as a whole, and not a part that runs itself."""
        place = self.place(slot)
        if place.map is not None:
            return self.depth(slot) < place.map.depth
        return place.loop is not None and slot < len(self.plan.places)

    def add_part(self, group: int, index: int) -> int:
        """Make a slot for an element or a turn."""
        place = self.place_of(group)
        mark = f"[{index}]" if self.plan.places[place].map is not None else f"#{index}"
        self.parts.append(Part(place, group, index, self.node_id(group) + mark))
        self.records.append(None)
        return len(self.records) - 1

    # --- values ---------------------------------------------------------------------------------

    def bindings(self, slot: int) -> tuple[Binding, ...]:
        """Give the inputs of a slot."""
        place = self.place(slot)
        if place.loop is not None and (part := self.part(slot)) is not None and part.number > 1:
            return place.turn_inputs
        return place.inputs

    def has_inputs(self, slot: int) -> bool:
        """Say whether a slot's inputs are still known: those of a part go with its group."""
        part = self.part(slot)
        return part is None or part.group in self.groups

    def value(self, slot: int, at: int) -> Value | None:
        """Give an input of a slot: JSON text or where it stands, or None where none is given."""
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
        """Give all inputs of a slot, as `value` gives each."""
        bindings = self.bindings(slot)
        if slot < len(self.plan.places):
            return [self.given(binding) for binding in bindings]
        return [self.value(slot, at) for at in range(len(bindings))]

    def given(self, binding: Binding) -> Value | None:
        """Give what a source other than a map or loop gives."""
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
        """Give the inputs of a slot that have a value, as the engine itself reads them."""
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
        """Convert a value as its edge says: a runner does so for code, and nobody else for this."""
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
