"""One change of a run: the rows to write, and the commands to execute after the commit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final, NamedTuple, TypeVar
from uuid import UUID

from services.orchestrator.domain.commands import Command
from services.orchestrator.domain.records import NodeRecord
from services.orchestrator.domain.rows import (
    AttemptInsert,
    Charge,
    ErrorInsert,
    FileUse,
    FlowInsert,
    Follows,
    NodeChange,
    NodeComplete,
    NodeCopy,
    NodeInsert,
    NodePlaced,
    RunChange,
    RunInsert,
    SignalWrite,
    SlotFree,
    SlotUse,
    Spend,
)


class View(NamedTuple):
    """A node as shown to watchers."""

    node_id: str
    place: int
    record: NodeRecord


Row = TypeVar("Row")


def more(rows: Sequence[Row], row: Row) -> list[Row]:
    """Append a row, replacing the shared empty sequence with a list."""
    if isinstance(rows, list):
        rows.append(row)
        return rows
    return [*rows, row]


@dataclass(slots=True)
class Transition:
    """One change of one run: its rows are written atomically, then its commands are executed.

    Most have rows of two or three kinds only. Allocating a list for every kind would cost more than
    deciding the change, so `more` creates one with the first row.
    """

    run_id: UUID
    follows: tuple[Follows, ...] = ()  # preconditions of the insert
    run_inserts: Sequence[RunInsert] = ()
    node_inserts: Sequence[NodeInsert] = ()
    placed: dict[UUID, NodePlaced] = field(default_factory=dict)  # by row
    copies: Sequence[NodeCopy] = ()
    file_uses: Sequence[FileUse] = ()
    completes: Sequence[NodeComplete] = ()
    changes: dict[UUID, NodeChange] = field(default_factory=dict)  # by row
    attempts: Sequence[AttemptInsert] = ()
    errors: Sequence[ErrorInsert] = ()
    flows: Sequence[FlowInsert] = ()
    signals: Sequence[SignalWrite] = ()
    uses: Sequence[SlotUse] = ()
    frees: Sequence[SlotFree] = ()
    run_changes: Sequence[RunChange] = ()
    charges: Sequence[Charge] = ()
    spends: Sequence[Spend] = ()
    commands: list[Command] = field(default_factory=list)
    begun: Sequence[NodeRecord] = ()  # whose attempts it starts
    views: Sequence[View] = ()  # the changed nodes, if there are watchers
    complete_views: bool = True  # whether `views` holds all of them
    revision: int = 0
    # Of a start that takes several flushes: a part of it, and the last part.
    begins: bool = False
    begun_whole: bool = False

    def copy(self, row: NodeCopy) -> None:
        """Add a copied row, and its use of a file."""
        self.copies = more(self.copies, row)
        if row.file_id is not None:
            use = FileUse(row.id, row.run_id, row.file_id, row.first)
            self.file_uses = more(self.file_uses, use)

    @property
    def writes(self) -> bool:
        """Whether it writes any row."""
        return any(_counted(self))

    def cost(self) -> tuple[int, int]:
        """Return the number of rows, and their approximate size in bytes."""
        rows = sum(map(len, _counted(self)))
        size = 200 * rows
        for inserted in self.run_inserts:
            size += len(inserted.input_data) + len(inserted.labels)
        for completed in self.completes:
            size += len(completed.output_data or "")
            size += len(completed.stdout_tail) + len(completed.stderr_tail)
        for placed in self.placed.values():
            size += len(placed.output_data or "") + len(placed.error_message or "")
        for signal in self.signals:
            size += len(signal.payload)
        for moved in self.run_changes:
            size += len(moved.output_data or "") + len(moved.error_message or "")
            size += len(moved.stack_trace or "")
        for changed in self.changes.values():
            size += len(changed.error_message or "") + len(changed.stack_trace or "")
            size += len(changed.error_detail or "")
            size += len(changed.stdout_tail) + len(changed.stderr_tail)
        for told in self.errors:  # a failed attempt has the same texts again
            copies = 1 + (told.node_execution_id is not None)
            size += copies * (len(told.error_message) + len(told.stack_trace))
            size += copies * len(told.error_detail or "")
            size += copies * (len(told.stdout_tail) + len(told.stderr_tail))
        return rows, size


_counted: Final = attrgetter(
    "run_inserts",
    "node_inserts",
    "placed",
    "signals",
    "uses",
    "frees",
    "copies",
    "file_uses",
    "completes",
    "changes",
    "attempts",
    "errors",
    "flows",
    "run_changes",
)
