"""Rows that a run copies from those of another: they stand as they stood there."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from services.orchestrator.domain.rows import NodeCopy
from services.orchestrator.domain.state import Failure, NodeOutput, NodeRecord, Run, file_of
from services.orchestrator.domain.status import NodeStatus


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
    """Make a slot of a new run stand as the row that it is copied from, and give its row."""
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
