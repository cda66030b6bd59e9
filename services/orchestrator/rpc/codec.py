"""Conversion between executions and their messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from qflow.orchestrator.v1 import execution_pb2 as pb

from services.kit.rpc.codec import put_duration_us, put_timestamp, timestamp
from services.kit.rpc.failures import add_detail
from services.orchestrator.domain.amounts import NOTHING
from services.orchestrator.domain.plan import Plan
from services.orchestrator.domain.status import NodeStatus, RunStatus
from services.orchestrator.rpc.amounts import put_amounts
from services.orchestrator.storage.executions import Execution
from services.orchestrator.storage.node_executions import NodeExecution
from services.orchestrator.usecases.read import unbegun

RUN_STATUS: Final = {
    status: pb.ExecutionStatus.Value(f"EXECUTION_STATUS_{status.name}") for status in RunStatus
}
RUN_STATUS_BY_NUMBER: Final = {number: status for status, number in RUN_STATUS.items()}
_NODE_STATUS: Final = {
    status: pb.NodeExecutionStatus.Value(f"NODE_EXECUTION_STATUS_{status.name}")
    for status in NodeStatus
}
_COUNTED: Final = {
    NodeStatus.PENDING: "pending",
    NodeStatus.RUNNING: "running",
    NodeStatus.RETRYING: "waiting",
    NodeStatus.WAITING: "waiting",
    NodeStatus.PAUSED: "waiting",
    NodeStatus.COMPLETED: "completed",
    NodeStatus.FAILED: "failed",
    NodeStatus.QUARANTINED: "failed",
    NodeStatus.SKIPPED: "skipped",
    NodeStatus.CANCELLED: "cancelled",
}


def execution_to_pb(execution: Execution, plan: Plan) -> pb.Execution:
    """Encode an execution; fields that were not read stay unset."""
    message = pb.Execution()
    put_execution(message, execution, plan)
    return message


def put_execution(message: pb.Execution, execution: Execution, plan: Plan) -> None:
    """Encode an execution into an existing message, setting only fields that have a value.

    Most have none, and setting all of them takes twice as long; a separate message would be copied
    into the response.
    """
    message.id = str(execution.id)
    message.status = RUN_STATUS[execution.status]
    message.revision = execution.revision
    message.created_by = str(execution.created_by)
    _put_counts(message.node_counts, execution, len(plan.places))
    if execution.workflow_id is not None:
        message.workflow_id = str(execution.workflow_id)
        message.workflow_version = execution.workflow_version or 0
    if execution.request_id is not None:
        message.request_id = str(execution.request_id)
    if execution.input_data:
        message.input_json = execution.input_data
    if execution.output_data is not None:
        message.output_json = execution.output_data
    if execution.resource_usage:
        _put_usage(message.resource_usage, execution.resource_usage)
    if execution.error_type is not None:
        message.error.error_type = execution.error_type
        message.error.message = execution.error_message or ""
        message.error.stack_trace = execution.error_stack_trace or ""
        message.error.node_id = execution.failed_node_id or ""
        message.error.exception_type = execution.exception_type or ""
    _put_times(message, execution)
    _put_options(message, execution)
    if execution.budget is not NOTHING:
        put_amounts(message.budget, execution.budget)


def _put_times(message: pb.Execution, execution: Execution) -> None:
    if execution.created_at is not None:
        put_timestamp(message.create_time, execution.created_at)
    if execution.started_at is not None:
        put_timestamp(message.start_time, execution.started_at)
    if execution.completed_at is not None:
        put_timestamp(message.end_time, execution.completed_at)
    if execution.cancel_requested_at is not None:
        put_timestamp(message.cancel_time, execution.cancel_requested_at)
    if execution.deadline_at is not None:
        put_timestamp(message.deadline_time, execution.deadline_at)
    if execution.start_at is not None:
        put_timestamp(message.scheduled_start_time, execution.start_at)


def _put_options(message: pb.Execution, execution: Execution) -> None:
    """Encode how the execution was started and where it ran."""
    if execution.business_key:
        message.business_key = execution.business_key
    if execution.labels:
        message.labels.update(execution.labels)
    if execution.priority:
        message.priority = execution.priority
    if execution.parent_execution_id is not None:
        message.parent_execution_id = str(execution.parent_execution_id)
    if execution.relation:
        message.relation = execution.relation
    if execution.node_version_id is not None:
        message.node_version_id = str(execution.node_version_id)
    if execution.python_version:
        message.python_version = execution.python_version
    if execution.container_id:
        message.container_id = execution.container_id
    if execution.ignores_cache:
        message.ignore_cache = True


def node_to_pb(execution_id: str, node: NodeExecution) -> pb.NodeExecution:
    """Encode a node execution; fields that were not read stay unset."""
    message = pb.NodeExecution(
        id=str(node.id) if node.id else "",
        execution_id=execution_id,
        node_id=node.node_id,
        definition_node_id=node.definition_node_id or node.node_id,
        child_execution_id=str(node.child_execution_id or ""),
        node_version_id=str(node.node_version_id) if node.node_version_id else "",
        status=_NODE_STATUS[node.status],
        revision=node.revision,
        execution_order=node.execution_order,
        retry_count=node.retry_count,
        max_retries=node.max_retries,
        container_id=str(node.container_id) if node.container_id else "",
        stdout_tail=node.stdout_tail or "",
        stderr_tail=node.stderr_tail or "",
        start_time=timestamp(node.started_at),
        end_time=timestamp(node.completed_at),
        due_time=timestamp(node.due_at),
        copied_from=str(node.copied_from or ""),
        cache_hit=bool(node.cache_hit),
    )
    if node.resource_usage:
        _put_usage(message.resource_usage, node.resource_usage)
    if node.output_file_id is not None:
        message.output_file.file_id = str(node.output_file_id)
        message.output_file.size_bytes = node.file_size_bytes or 0
        message.output_file.sha256 = node.hash_sha256 or ""
    elif node.output_data is not None:
        message.output_json = node.output_data
    if node.error_type is not None:
        message.error.error_type = node.error_type
        message.error.message = node.error_message or ""
        message.error.stack_trace = node.error_stack_trace or ""
        message.error.node_id = node.node_id
        add_detail(message.error, node.error_detail)
    return message


def _put_counts(counts: pb.NodeCounts, execution: Execution, total: int) -> None:
    counts.total = total + execution.parts
    begun = -execution.parts
    for status, number in execution.counts.items():
        begun += number
        name = _COUNTED[NodeStatus(status)]
        setattr(counts, name, getattr(counts, name) + number)
    if begun != total:
        rest = _COUNTED[unbegun(execution)]
        setattr(counts, rest, getattr(counts, rest) + total - begun)


def _put_usage(message: pb.ResourceUsage, usage: Mapping[str, Any]) -> None:
    put_duration_us(message.cpu_time, usage.get("cpu_us") or 0)
    message.memory_peak_bytes = usage.get("memory_peak_bytes") or 0
    message.io_read_bytes = usage.get("io_read_bytes") or 0
    message.io_write_bytes = usage.get("io_write_bytes") or 0
