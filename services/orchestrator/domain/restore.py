"""Restores a run from its rows: `restore(rows(run)) == run` after every flush."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, NamedTuple
from uuid import UUID

from services.orchestrator.domain.closing import compensations_of, is_main_over
from services.orchestrator.domain.ends import End, branch_of, count_end
from services.orchestrator.domain.groups import new_group
from services.orchestrator.domain.options import NO_OPTIONS, RunOptions
from services.orchestrator.domain.plan import Phase, Plan
from services.orchestrator.domain.planner import LOST
from services.orchestrator.domain.records import ENGINE_ERROR, Failure, NodeRecord
from services.orchestrator.domain.state import Group, Run, Signal
from services.orchestrator.domain.status import NODE_FAILED, NODE_FINAL, NodeStatus, RunStatus
from services.orchestrator.domain.stopping import EXPIRED, is_expiry
from services.orchestrator.domain.values import FileValue, ListOutput, NodeOutput

_EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)


class UnfinishedError(ValueError):
    """A run that was not completely inserted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """An open run's row of workflow_executions."""

    id: UUID
    tenant_id: UUID
    created_by: UUID
    status: RunStatus
    input_values: dict[str, bytes]
    input_text: str
    request_id: UUID | None
    revision: int
    created_at: datetime | None
    started_at: datetime | None
    cancel_requested_at: datetime | None
    deadline_at: datetime | None
    shard: int = 0
    # Why it is going to fail, if it is closing.
    failure: tuple[str, Failure] | None = None
    options: RunOptions = NO_OPTIONS


class NodeRow(NamedTuple):
    """A row of node_executions."""

    id: UUID
    node_id: str
    status: NodeStatus
    order: int
    token: int
    runner: UUID | None
    retry_count: int
    delivery_count: int
    revision: int
    output: Mapping[str, bytes] | FileValue | None
    failure: Failure | None
    cpu_us: int
    earlier_cpu_us: int  # of attempts before the last
    memory_peak_bytes: int
    earlier_memory_peak_bytes: int
    container_id: UUID | None
    started_at: datetime | None
    completed_at: datetime | None
    child: UUID | None = None
    age_s: float = 0.0  # since its first attempt began
    cache_hit: bool = False
    io_read_bytes: int = 0
    io_write_bytes: int = 0
    earlier_io_read_bytes: int = 0
    earlier_io_write_bytes: int = 0
    progress: str | None = None


class SignalRow(NamedTuple):
    """A row of execution_signals: a signal that no node has taken yet.

    Answers of approvals have rows there too, but always with the node that took them.
    """

    id: UUID
    name: str
    sent_by: UUID
    outputs: tuple[bytes, ...]


def restore(
    plan: Plan, row: RunRow, nodes: Iterable[NodeRow], signals: Iterable[SignalRow] = ()
) -> Run:
    """Return the run; `nodes` are in execution order."""
    run = Run(
        id=row.id,
        plan=plan,
        tenant_id=row.tenant_id,
        created_by=row.created_by,
        status=row.status,
        input_values=row.input_values,
        input_text=row.input_text,
        request_id=row.request_id,
        revision=row.revision,
        shard=row.shard,
        cancelling=row.cancel_requested_at is not None,
        created_at=row.created_at,
        begun=row.started_at is not None,
        started_at=row.started_at,
        cancel_requested_at=row.cancel_requested_at,
        deadline_at=row.deadline_at,
        options=row.options,
    )
    run.failure = row.failure
    run.expired = row.failure is not None and not row.failure[0] and is_expiry(row.failure[1])
    if row.failure is not None and row.failure[1].error_type == ENGINE_ERROR:
        run.expired = run.closing = run.abandoned = True
    _Restoration(run, {node.node_id: node for node in nodes}, row.revision).all()
    for signal in signals:
        word = Signal(signal.id, signal.sent_by, signal.outputs)
        run.signals.setdefault(signal.name, deque()).append(word)
    return run


@dataclass(slots=True)
class _Restoration:
    """A restoration in progress: first the slots, then what they mean to each other."""

    run: Run
    rows: Mapping[str, NodeRow]
    revision: int  # of the run's own row
    slots: dict[str, int] = field(default_factory=dict)
    parts: dict[int, dict[int, int]] = field(default_factory=dict)  # of groups: slots by index

    def all(self) -> None:
        for node in self.rows.values():
            self._stand(node)
        failures = []
        for node in self.rows.values():
            slot = self.slots[node.node_id]
            if slot < len(self.run.plan.places):
                failed = self._place(slot, node)
                if failed is not None:
                    failures.append((node.revision, *failed))
        for node in self.rows.values():  # after all places, since a row may precede its sources
            self._open(self.slots[node.node_id], node)
        self._failure(failures)
        self._forget_read_outputs()
        self._closing()

    def _stand(self, node: NodeRow) -> None:
        run = self.run
        slot = run.plan.index.get(node.node_id)
        if slot is None:
            group, index = split_name(node.node_id)
            above = self.slots.get(group)
            if above is None:
                raise UnfinishedError(
                    "its orchestrator stopped while it copied elements of a map from an earlier "
                    "run; none of its nodes had begun: retry that run again"
                )
            slot = run.add_part(above, index)
            self.parts.setdefault(above, {})[index] = slot
        self.slots[node.node_id] = slot
        run.records[slot] = _record(node)
        run.order = max(run.order, node.order)
        run.revision = max(run.revision, node.revision)
        run.cpu_us += node.cpu_us + node.earlier_cpu_us
        run.io_read_bytes += node.io_read_bytes + node.earlier_io_read_bytes
        run.io_write_bytes += node.io_write_bytes + node.earlier_io_write_bytes
        peak_bytes = max(node.memory_peak_bytes, node.earlier_memory_peak_bytes)
        run.memory_peak_bytes = max(run.memory_peak_bytes, peak_bytes)
        if node.status is NodeStatus.CANCELLED and is_expiry(node.failure):
            run.expired = run.expired or not run.cancelling
        run.running += node.status is NodeStatus.RUNNING
        run.running += node.status is NodeStatus.WAITING and node.child is not None

    def _place(self, place: int, node: NodeRow) -> tuple[str, Failure] | None:
        """Apply a place's row to its children; returns its failure if that stops the run."""
        run, rule = self.run, self.run.plan.places[place]
        main = rule.phase is Phase.MAIN
        if node.status is NodeStatus.COMPLETED:
            run.done += main
            output = self._output(place, node)
            if output is not None:
                run.outputs[place] = output
            branch = branch_of(rule, output)
            self._record_of(place).branch = branch
            count_end(run, place, End.DONE, branch)
        elif node.status is NodeStatus.SKIPPED:
            run.done += main
            count_end(run, place, End.SKIPPED, "")
        elif node.status in NODE_FAILED and node.failure is not None:
            if rule.handled or rule.phase is Phase.COMPENSATION:
                run.done += main
                count_end(run, place, End.FAILED, "")
                return None
            if not main:
                count_end(run, place, End.FAILED, "")
            return rule.id, node.failure
        return None

    def _record_of(self, slot: int) -> NodeRecord:
        record = self.run.records[slot]
        assert record is not None
        return record

    def _output(self, slot: int, node: NodeRow) -> NodeOutput | None:
        """Return the output of a slot; for a map, the outputs of its elements."""
        run = self.run
        if run.is_group(slot) and run.place(slot).map is not None:
            if slot not in self.parts and node.output is not None and not self._is_empty(node):
                return self._inline(slot, node)
            parts = self.parts.get(slot, {})
            return ListOutput(tuple(self._item(parts[at]) for at in range(len(parts))))
        return self._inline(slot, node)

    def _is_empty(self, node: NodeRow) -> bool:
        """Return whether a map's row has only empty lists; one skipped with an output may not."""
        assert isinstance(node.output, Mapping)
        return all(text == b"[]" for text in node.output.values())

    def _item(self, slot: int) -> NodeOutput | None:
        node = self.rows[self.run.node_id(slot)]
        return self._output(slot, node) if node.status is NodeStatus.COMPLETED else None

    def _inline(self, slot: int, node: NodeRow) -> NodeOutput | None:
        if node.output is None or isinstance(node.output, FileValue):
            return node.output
        return tuple(node.output[name] for name in self.run.place(slot).outputs)

    def _open(self, slot: int, node: NodeRow) -> None:
        """Restore what waits: a group with its parts, or a place waiting for a signal."""
        run = self.run
        if node.status is not NodeStatus.WAITING:
            return
        place = run.place(slot)
        if place.wait is not None:
            run.waiting.setdefault((place.kind, place.wait.name), []).append(slot)
        elif node.child is None and run.is_group(slot):
            run.groups[slot] = self._group(slot)

    def _group(self, slot: int) -> Group:
        group = new_group(self.run, slot)
        for index, part in sorted(self.parts.get(slot, {}).items()):
            node = self.rows[self.run.node_id(part)]
            group.begun += 1
            if node.status not in NODE_FINAL:
                group.open += 1
                continue
            group.failed += node.status is NodeStatus.QUARANTINED
            done = node.status is NodeStatus.COMPLETED
            group.outputs[index] = self._output(part, node) if done else None
            if self.run.place(slot).loop is not None:
                group.outputs.pop(index - 1, None)
        if self.run.place(slot).map is not None:
            there = self.parts.get(slot, {})
            next_one = next(at for at in range(len(there) + 1) if at not in there)
            group.ahead = {index for index in there if index > next_one}
        return group

    def _failure(self, failures: list[tuple[int, str, Failure]]) -> None:
        """Find the first failure: revisions grow with every change, and closing comes last."""
        places, index = self.run.plan.places, self.run.plan.index
        main = [each for each in failures if places[index[each[1]]].phase is Phase.MAIN]
        if self.run.failure is not None:
            return
        if self.run.expired and not main:
            self.run.failure = ("", EXPIRED)
        elif failures:
            _, node_id, failure = min(main or failures, key=lambda each: each[0])
            self.run.failure = (node_id, failure)

    def _forget_read_outputs(self) -> None:
        """Drop outputs that nothing will read."""
        run = self.run
        for place in range(len(run.plan.places)):
            if _is_over(run, place):
                for source in {each.source for each in run.plan.places[place].inputs}:
                    if source >= 0:
                        run.keep[source] -= 1
        for place in [place for place in run.outputs if run.keep[place] == 0]:
            del run.outputs[place]

    def _closing(self) -> None:
        """Restore whether the run is closing: the end of the main phase is one change with that."""
        run = self.run
        later = (*run.plan.compensations, *run.plan.finals)
        begun = [
            place
            for place in later
            if run.records[place] is not None and not is_settled(self._record_of(place))
        ]
        if run.abandoned:
            run.seeded = set(begun)
            return
        if not begun and (run.running or not later or not is_main_over(run)):
            return
        run.closing = True
        # A paused place may have been paused before its phase began: it is seeded again.
        run.seeded = {place for place in begun if self._record_of(place).status not in _HELD}
        # A cancel writes the run's row: closing places with older rows began before the cancel.
        run.abandoned = run.cancelling and any(
            self._record_of(place).status is NodeStatus.CANCELLED
            or self._record_of(place).revision < self.revision
            for place in run.seeded
        )
        main_failed = run.failure is not None and (
            run.failure[0] not in run.plan.index
            or run.plan.places[run.plan.index[run.failure[0]]].phase is Phase.MAIN
        )
        if run.cancelling or main_failed:
            run.undo = compensations_of(run)


def split_name(node_id: str) -> tuple[str, int]:
    """Split a part's name: `n[1][2]` is part 2 of `n[1]`, `n#3` is part 3 of `n`."""
    if node_id.endswith("]"):
        group, _, index = node_id[:-1].rpartition("[")
    else:
        group, _, index = node_id.rpartition("#")
    return group, int(index)


def _is_over(run: Run, place: int) -> bool:
    """Return whether a place has an end that its children have been told of."""
    record = run.records[place]
    if record is None:
        return False
    if record.status in (NodeStatus.COMPLETED, NodeStatus.SKIPPED):
        return True
    rule = run.plan.places[place]
    told = rule.handled or rule.phase is not Phase.MAIN
    return record.status in NODE_FAILED and told


def is_settled(record: NodeRecord) -> bool:
    """Return whether a compensation was skipped when its run was inserted."""
    return record.status is NodeStatus.SKIPPED and record.revision == 1


def latest(run: Run) -> datetime:
    """Return the latest timestamp in a run's rows: later changes must not be earlier."""
    times = [run.created_at, run.started_at]
    for record in run.records:
        if record is not None:
            times += [record.started_at, record.completed_at]
    return max((time for time in times if time is not None), default=_EARLIEST)


_HELD: Final = frozenset({NodeStatus.PAUSED, NodeStatus.PENDING})


def _record(node: NodeRow) -> NodeRecord:
    return NodeRecord(
        id=node.id,
        order=node.order,
        status=node.status,
        token=node.token,
        runner=node.runner,
        retry_count=node.retry_count,
        delivery_count=node.delivery_count,
        revision=node.revision,
        # Whatever begins again after a loss does so alone: derived, not stored.
        alone=node.delivery_count > 0
        and node.failure is not None
        and node.failure.error_type == LOST.error_type,
        child=node.child,
        cache_hit=node.cache_hit,
        age_s=node.age_s,
        cpu_us=node.cpu_us,
        memory_peak_bytes=node.memory_peak_bytes,
        io_read_bytes=node.io_read_bytes,
        io_write_bytes=node.io_write_bytes,
        container_id=node.container_id,
        failure=node.failure,
        progress=node.progress,
        started_at=node.started_at,
        completed_at=node.completed_at,
    )
