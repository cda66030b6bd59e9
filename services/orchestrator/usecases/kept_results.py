"""What a new run keeps of another: whole results, and elements of maps."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from services.kit.errors import FailedPrecondition
from services.kit.pg import Db
from services.orchestrator.domain import reuse
from services.orchestrator.domain.copies import KeptPart, tree, whole_names
from services.orchestrator.domain.partly import Partly, kept_names
from services.orchestrator.domain.plan import Plan
from services.orchestrator.domain.records import Failure
from services.orchestrator.domain.reuse import Kept
from services.orchestrator.domain.status import NodeStatus
from services.orchestrator.domain.undoing import Heir, Undoing
from services.orchestrator.domain.values import FileValue, NodeOutput
from services.orchestrator.storage import executions, node_executions
from services.orchestrator.storage.executions import Execution
from services.orchestrator.storage.node_executions import NodeExecution
from services.orchestrator.storage.recovery import split_object

_ENDED_BADLY: Final = (NodeStatus.FAILED, NodeStatus.CANCELLED)
_MAY_STAND: Final = (NodeStatus.COMPLETED, NodeStatus.SKIPPED)
_PARTS_MAX: Final = 100_000  # kept elements of maps
_READ_MAX: Final = 5_000  # elements read at once; other tasks run in between


@dataclass(frozen=True, slots=True)
class Taken:
    """What a new run keeps."""

    kept: tuple[Kept, ...] = ()
    partly: tuple[Partly, ...] = ()  # maps of which some elements are kept
    undoes: bool = False  # the new run takes over compensations
    # Outputs of places by name, if they are in the places' rows.
    recorded: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Found:
    """The node rows of a run: those of places, and parts of maps and loops."""

    wholes: Mapping[int, NodeExecution]
    parts: Mapping[int, Mapping[str, NodeStatus]]
    undoing: Undoing

    def completed(self) -> set[int]:
        """Return the completed places."""
        return {at for at, row in self.wholes.items() if row.status is NodeStatus.COMPLETED}

    def ended(self) -> list[int]:
        """Return the completed and skipped places, in the order in which they ended.

        Revisions grow with every change; results that the run itself took over have revision 1, and
        are ordered by execution order.
        """
        ended = [at for at, row in self.wholes.items() if row.status in _MAY_STAND]
        return sorted(ended, key=self._end_of)

    def _end_of(self, at: int) -> tuple[int, int]:
        row = self.wholes[at]
        return row.revision, row.execution_order

    def poisoned(self) -> set[int]:
        """Return the maps with quarantined elements, tolerated or not."""
        ends = (NodeStatus.COMPLETED, *_ENDED_BADLY)
        return {
            at
            for at, parts in self.parts.items()
            if at in self.wholes
            and self.wholes[at].status in ends
            and NodeStatus.QUARANTINED in parts.values()
        }

    def broken(self, plan: Plan) -> set[int]:
        """Return the failed or cancelled maps with completed elements."""
        return {
            at
            for at, parts in self.parts.items()
            if plan.places[at].map is not None
            and at in self.wholes
            and self.wholes[at].status in _ENDED_BADLY
            and NodeStatus.COMPLETED in parts.values()
        }


async def look(db: Db, parent: Execution, plan: Plan) -> Found:
    """Read the node rows of a run."""
    wholes: dict[int, NodeExecution] = {}
    parts: dict[int, dict[str, NodeStatus]] = {}
    for row in await node_executions.list_nodes(db, parent.id):
        if row.node_id in plan.index:
            wholes[plan.index[row.node_id]] = row
        else:
            parts.setdefault(plan.index[row.definition_node_id], {})[row.node_id] = row.status
    undone = {at: wholes[at].status for at in plan.compensations if at in wholes}
    heir = await _heir(db, parent, plan) if plan.compensations else None
    return Found(wholes, parts, Undoing(plan, parent.status, undone, heir))


async def _heir(db: Db, parent: Execution, plan: Plan) -> Heir | None:
    """Return the run that took over the compensations of a run, if there is one."""
    found = await executions.find_heir(db, parent.id)
    if found is None:
        return None
    names = [plan.places[at].id for at in plan.compensations]
    rows = await node_executions.list_nodes(db, found.id, node_ids=names)
    skipped = {row.node_id for row in rows if row.status is NodeStatus.SKIPPED}
    return Heir(found.id, found.status, skipped)


def standing(
    plan: Plan, found: Found, *, lost: Collection[int], in_part: Collection[int]
) -> list[int]:
    """Return the places that may be kept, including maps of which only elements are.

    Skipped places count as results, even if a caller skipped them, since their successors were
    computed from that. What depends on a map that continues is not kept, as the map may end in
    another way. Neither is what has been compensated: it is gone, and would be compensated twice.
    """
    _refuse_taken(found, in_part)
    going_on = {child for at in in_part for child in plan.children[at]}
    gone = {*lost, *found.undoing.undone(), *reuse.below(plan, going_on)}
    places = dict.fromkeys([*found.ended(), *sorted(in_part)])
    return reuse.closed(plan, [at for at in places if at not in gone])


async def take(
    db: Db,
    parent: Execution,
    plan: Plan,
    found: Found,
    *,
    stand: Sequence[int],
    in_part: Collection[int],
) -> Taken:
    """Read what is kept.

    A completed map whose list is only in the rows of its elements is kept with those, quarantined
    ones included, since its readers were computed from them. So is one with quarantined elements,
    which can be retried in the new run, too. Of maps that continue, some elements are kept.
    """
    places = [at for at in stand if at not in in_part]
    names = [plan.places[at].id for at in places]
    rows = await node_executions.list_nodes(db, parent.id, node_ids=names, full=True)
    wholes = {plan.index[row.node_id]: row for row in rows}
    maps = {at: kept_names for at in stand if at in in_part}
    maps |= {at: whole_names for at, row in wholes.items() if _is_spread(row)}
    wanted = [name for at, names_of in maps.items() for name in names_of(found.parts.get(at, {}))]
    for at in found.poisoned().intersection(wholes).difference(maps):
        more = whole_names(found.parts[at])
        if len(wanted) + len(more) <= _PARTS_MAX:  # else only its list is kept
            maps[at], wanted = whole_names, [*wanted, *more]
    if len(wanted) > _PARTS_MAX:
        raise FailedPrecondition(
            "TOO_MANY_ELEMENTS",
            f"{len(wanted)} elements would be kept, the maximum is {_PARTS_MAX}; RerunExecution "
            "from the map runs all of them again, ListNodeExecutions shows the quarantined ones",
            resource=("execution", str(parent.id)),
        )
    parts = await _parts(db, parent, [plan.places[at].id for at in maps], frozenset(wanted))
    _refuse_gone_files(parent, [*rows, *parts])
    trees = await asyncio.to_thread(_trees, plan, maps, parts)
    settled = found.undoing.settled()
    return Taken(
        kept=tuple(
            _kept(plan, at, wholes[at], trees.get(at, ()), settled.get(at, ())) for at in places
        ),
        partly=tuple(Partly(at, trees[at]) for at in stand if at in in_part),
        undoes=bool(
            found.undoing.passed() & found.completed() & wholes.keys()
            or found.undoing.whole(in_part).intersection(stand)
        ),
        recorded={
            row.node_id: split_object(row.output_data)
            for row in rows
            if row.output_data is not None
        },
    )


async def _parts(
    db: Db, parent: Execution, places: Iterable[str], wanted: Collection[str]
) -> list[NodeExecution]:
    """Read the wanted elements of maps."""
    parts: list[NodeExecution] = []
    for place in places if wanted else ():
        last = 0
        while True:
            some = await node_executions.list_parts(
                db, parent.id, place, after_order=last, limit=_READ_MAX, full=True
            )
            parts += [row for row in some if row.node_id in wanted]
            if len(some) < _READ_MAX:
                break
            last = some[-1].execution_order
    return parts


def _is_spread(row: NodeExecution) -> bool:
    """Return whether the output of a place is only in the rows of its elements."""
    held = row.output_data is not None or row.output_file_id is not None
    return row.status is NodeStatus.COMPLETED and not held


def _refuse_taken(found: Found, in_part: Collection[int]) -> None:
    """Refuse to continue a map that another run continues, and may compensate as a whole."""
    heir, taken = found.undoing.heir, found.undoing.whole(in_part)
    if heir is not None and taken:
        name = found.wholes[min(taken)].node_id
        raise FailedPrecondition(
            "TAKEN_OVER",
            f"execution {heir.execution_id} took over the elements of {name}, and compensates "
            "them if it fails: rerun that execution, or name the map in from_nodes of "
            "RerunExecution, which runs all of its elements again",
            resource=("execution", str(heir.execution_id)),
        )


def _refuse_gone_files(parent: Execution, rows: Sequence[NodeExecution]) -> None:
    gone = [
        row.node_id
        for row in rows
        if row.output_file_id is not None and row.file_size_bytes is None
    ]
    if gone:
        raise FailedPrecondition(
            "KEPT_FILES",
            f"the result of {gone[0]} was a file that no longer exists: name that node in "
            "from_nodes of RerunExecution, or one before it",
            node_ids=", ".join(gone[:10]),
            resource=("execution", str(parent.id)),
        )


def _kept(
    plan: Plan,
    at: int,
    row: NodeExecution,
    parts: tuple[KeptPart, ...],
    settled: tuple[int, ...],
) -> Kept:
    """Return a place that is kept as a whole."""
    output = _output(row, plan.places[at].outputs)
    assert row.id is not None
    assert (output is None) is (row.status is NodeStatus.SKIPPED or _is_spread(row))
    return Kept(at, row.id, output, parts, settled)


def _trees(
    plan: Plan, maps: Iterable[int], parts: Sequence[NodeExecution]
) -> dict[int, tuple[KeptPart, ...]]:
    return {at: _tree(plan, at, parts) for at in maps}


def _tree(plan: Plan, at: int, rows: Sequence[NodeExecution]) -> tuple[KeptPart, ...]:
    """Return the kept elements of a map as a tree."""
    place = plan.places[at]
    parts: dict[str, tuple[UUID, NodeOutput | None, Failure | None]] = {}
    for row in rows:
        if row.definition_node_id == place.id:
            assert row.id is not None
            parts[row.node_id] = (row.id, _output(row, place.outputs), _failure(row))
    return tree(place.id, parts)


def _failure(row: NodeExecution) -> Failure | None:
    if row.status is NodeStatus.COMPLETED:
        return None
    return Failure(
        error_type=row.error_type or "",
        message=row.error_message or "",
        stack_trace=row.error_stack_trace or "",
        detail=row.error_detail,
    )


def _output(row: NodeExecution, names: Sequence[str]) -> NodeOutput | None:
    if row.output_file_id is not None:
        return FileValue(
            row.output_file_id,
            row.file_size_bytes or 0,
            bytes.fromhex(row.hash_sha256 or ""),
            row.element_counts or {},
        )
    if row.output_data is None:
        return None
    texts = split_object(row.output_data)
    return tuple(texts[name] for name in names)
