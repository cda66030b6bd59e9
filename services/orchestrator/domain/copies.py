"""Node rows that a run copies from another run, with their status and result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias
from uuid import UUID

from services.orchestrator.domain.records import Failure, NodeRecord
from services.orchestrator.domain.restore import split_name
from services.orchestrator.domain.rows import NodeCopy
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import NodeStatus
from services.orchestrator.domain.values import ListOutput, NodeOutput, file_of


@dataclass(frozen=True, slots=True)
class KeptPart:
    """An element of a map that is kept, with its own elements if it is a map itself."""

    number: int
    source_id: UUID  # the node execution to copy
    output: NodeOutput | None  # if it completed and is no map
    parts: tuple[KeptPart, ...] = ()
    failure: Failure | None = None  # if it was quarantined

    @property
    def size(self) -> int:
        """Count the results copied for it; a quarantined element has none."""
        return (self.failure is None) + sum(part.size for part in self.parts)


# By name of a part: its row, its output if it is no map, its failure if it was quarantined.
Parts: TypeAlias = "Mapping[str, tuple[UUID, NodeOutput | None, Failure | None]]"


def tree(map_name: str, parts: Parts) -> tuple[KeptPart, ...]:
    """Arrange the kept parts of a map as a tree of elements."""
    within: dict[str, list[tuple[int, str]]] = {}
    for name in parts:
        above, number = split_name(name)
        within.setdefault(above, []).append((number, name))

    def below(name: str) -> tuple[KeptPart, ...]:
        kept = []
        for number, each in sorted(within.get(name, ())):
            source_id, output, failure = parts[each]
            kept.append(KeptPart(number, source_id, output, below(each), failure))
        return tuple(kept)

    return below(map_name)


def whole_names(names: Mapping[str, NodeStatus]) -> list[str]:
    """Return the parts of a map that is kept whole: all but those within quarantined ones."""
    aside = {name for name, each in names.items() if each is not NodeStatus.COMPLETED}
    return [name for name in names if not any(above in aside for above in _above(name))]


def _above(name: str) -> Iterator[str]:
    """Yield the names of the parts that contain a part: for `n[1][2]`, `n[1]`."""
    above, _ = split_name(name)
    while above.endswith("]"):
        yield above
        above, _ = split_name(above)


def copy_row(
    run: Run,
    slot: int,
    source_id: UUID,
    status: NodeStatus,
    *,
    new_id: Callable[[], UUID],
    output: NodeOutput | None = None,
    failure: Failure | None = None,
) -> NodeCopy:
    """Give a slot of a new run the state of the row that it copies; returns the new row."""
    run.order += 1
    record = run.records[slot] = NodeRecord(
        id=new_id(), order=run.order, status=status, token=0, revision=1, failure=failure
    )
    place = run.place(slot)
    return NodeCopy(
        id=record.id,
        run_id=run.id,
        source_id=source_id,
        node_id=run.node_id(slot),
        definition_node_id=place.id,
        node_version_id=place.node_version_id,
        execution_order=record.order,
        first=True,
        file_id=file_of(output),
    )


def copy_part(
    run: Run, above: int, part: KeptPart, rows: list[NodeCopy], *, new_id: Callable[[], UUID]
) -> NodeOutput | None:
    """Copy a kept element and append its rows to `rows`; returns its output."""
    slot = run.add_part(above, part.number)
    status = NodeStatus.COMPLETED if part.failure is None else NodeStatus.QUARANTINED
    output, failure = part.output, part.failure
    rows.append(
        copy_row(run, slot, part.source_id, status, new_id=new_id, output=output, failure=failure)
    )
    if failure is not None:
        return None
    inner = tuple(copy_part(run, slot, each, rows, new_id=new_id) for each in part.parts)
    return ListOutput(inner) if run.is_group(slot) else output
