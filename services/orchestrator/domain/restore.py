"""Restoring: a run in memory from its rows. `restore(rows(run)) == run` after every flush."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from services.orchestrator.domain.plan import Plan
from services.orchestrator.domain.planner import EXPIRED, LOST
from services.orchestrator.domain.state import Failure, FileValue, NodeRecord, Run
from services.orchestrator.domain.status import NodeStatus, RunStatus

_EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """What a row of workflow_executions says of an open run."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRow:
    """What a row of node_executions says."""

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


def restore(plan: Plan, row: RunRow, nodes: Iterable[NodeRow]) -> Run:
    """Give the run as its rows say it stands."""
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
        cancelling=row.cancel_requested_at is not None,
        created_at=row.created_at,
        started_at=row.started_at,
        cancel_requested_at=row.cancel_requested_at,
        deadline_at=row.deadline_at,
    )
    failed: list[tuple[int, str, Failure]] = []
    for node in nodes:
        place = plan.index[node.node_id]
        run.records[place] = _record(node)
        run.order = max(run.order, node.order)
        run.revision = max(run.revision, node.revision)
        run.cpu_us += node.cpu_us + node.earlier_cpu_us
        peak_bytes = max(node.memory_peak_bytes, node.earlier_memory_peak_bytes)
        run.memory_peak_bytes = max(run.memory_peak_bytes, peak_bytes)
        if node.status is NodeStatus.COMPLETED:
            _completed(run, place, node)
        elif node.status is NodeStatus.RUNNING:
            run.running += 1
        elif node.status in _FAILING and node.failure is not None:
            failed.append((node.revision, node.node_id, node.failure))
        elif node.status is NodeStatus.CANCELLED and not run.cancelling:
            run.expired = True
    if failed:
        # Revisions grow with every change, so the lowest is the failure that came first.
        _, node_id, failure = min(failed, key=lambda each: each[0])
        run.failure = (node_id, failure)
    elif run.expired:
        run.failure = ("", EXPIRED)
    _forget_read_outputs(run)
    return run


def latest(run: Run) -> datetime:
    """Give the latest time in a run's rows: nothing that follows is stamped earlier."""
    times = [run.created_at, run.started_at]
    for record in run.records:
        if record is not None:
            times += [record.started_at, record.completed_at]
    return max((time for time in times if time is not None), default=_EARLIEST)


_FAILING: Final = frozenset({NodeStatus.FAILED, NodeStatus.QUARANTINED})


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
        # Whatever begins again after a loss does so alone; that is not worth a column.
        alone=node.delivery_count > 0
        and node.failure is not None
        and node.failure.error_type == LOST.error_type,
        cpu_us=node.cpu_us,
        memory_peak_bytes=node.memory_peak_bytes,
        container_id=node.container_id,
        failure=node.failure,
        started_at=node.started_at,
        completed_at=node.completed_at,
    )


def _completed(run: Run, place: int, node: NodeRow) -> None:
    run.done += 1
    for child in run.plan.children[place]:
        run.remaining[child] -= 1
    if isinstance(node.output, FileValue):
        run.outputs[place] = node.output
    elif node.output is not None:
        names = run.plan.places[place].outputs
        run.outputs[place] = tuple(node.output[name] for name in names)


def _forget_read_outputs(run: Run) -> None:
    """Keep only outputs that something will read."""
    for place, record in enumerate(run.records):
        if record is None or record.status is not NodeStatus.COMPLETED:
            continue
        for source in {binding.source for binding in run.plan.places[place].inputs}:
            if source >= 0:
                run.keep[source] -= 1
    for place in [place for place in run.outputs if run.keep[place] == 0]:
        del run.outputs[place]
