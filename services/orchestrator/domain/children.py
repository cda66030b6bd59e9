"""What a parent run learns from the end of a sub-workflow."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from services.orchestrator.domain.records import Failure, detail_of_class
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import RunStatus


class EndedChild(NamedTuple):
    """The end of a sub-workflow's execution, from its row."""

    id: UUID
    status: RunStatus
    output_data: str | None
    error_type: str | None
    error_message: str | None
    failed_node_id: str | None
    exception_type: str | None  # the class that user code raised
    # Its usage, including its sub-workflows, not yet added to the parent's.
    cpu_us: int
    memory_peak_bytes: int
    io_read_bytes: int
    io_write_bytes: int


def ended_run(parent: Run, slot: int, ended: EndedChild) -> Run:
    """Return a sub-workflow's run with what its row holds."""
    child = _bare(parent, slot, ended.id, ended.status)
    child.output_data = ended.output_data
    child.cpu_us, child.memory_peak_bytes = ended.cpu_us, ended.memory_peak_bytes
    child.io_read_bytes, child.io_write_bytes = ended.io_read_bytes, ended.io_write_bytes
    if ended.error_type is not None:
        failure = Failure(
            error_type=ended.error_type,
            message=ended.error_message or "",
            detail=detail_of_class(ended.exception_type),
        )
        child.failure = (ended.failed_node_id or "", failure)
    return child


def never_begun(parent: Run, slot: int, child_id: UUID) -> Run:
    """Return a sub-workflow's run that was never inserted: it counts as cancelled."""
    return _bare(parent, slot, child_id, RunStatus.CANCELLED)


def _bare(parent: Run, slot: int, child_id: UUID, status: RunStatus) -> Run:
    plan = parent.place(slot).sub
    assert plan is not None
    return Run(
        id=child_id,
        plan=plan,
        tenant_id=parent.tenant_id,
        created_by=parent.created_by,
        status=status,
        input_values={},
    )
