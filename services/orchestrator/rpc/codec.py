"""Between executions and their messages."""

from __future__ import annotations

from typing import Any, Final

from qflow.orchestrator.v1 import execution_pb2 as pb

from services.kit.rpc.codec import duration_ms, timestamp
from services.kit.rpc.failures import add_detail
from services.orchestrator.domain.plan import Plan
from services.orchestrator.domain.status import NodeStatus, RunStatus
from services.orchestrator.storage.executions import Execution, NodeExecution
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
    """Encode an execution; what was not read stays absent."""
    message = pb.Execution(
        id=str(execution.id),
        workflow_id=str(execution.workflow_id or ""),
        workflow_version=execution.workflow_version or 0,
        status=RUN_STATUS[execution.status],
        revision=execution.revision,
        input_json=execution.input_data or "",
        node_counts=_counts(execution, len(plan.places)),
        request_id=str(execution.request_id) if execution.request_id else "",
        created_by=str(execution.created_by),
        create_time=timestamp(execution.created_at),
        start_time=timestamp(execution.started_at),
        end_time=timestamp(execution.completed_at),
        cancel_time=timestamp(execution.cancel_requested_at),
        deadline_time=timestamp(execution.deadline_at),
        resource_usage=_usage(execution.resource_usage),
        business_key=execution.business_key or "",
        labels=execution.labels,
        priority=execution.priority,
        scheduled_start_time=timestamp(execution.start_at),
        parent_execution_id=str(execution.parent_execution_id or ""),
        relation=execution.relation or "",
        node_version_id=str(execution.node_version_id or ""),
        python_version=execution.python_version or "",
        container_id=execution.container_id or "",
        ignore_cache=bool(execution.ignores_cache),
    )
    if execution.output_data is not None:
        message.output_json = execution.output_data
    if execution.error_type is not None:
        message.error.error_type = execution.error_type
        message.error.message = execution.error_message or ""
        message.error.stack_trace = execution.error_stack_trace or ""
        message.error.node_id = execution.failed_node_id or ""
    return message


def node_to_pb(execution_id: str, node: NodeExecution) -> pb.NodeExecution:
    """Encode a node of an execution; what was not read stays absent."""
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
        resource_usage=_usage(node.resource_usage),
        container_id=str(node.container_id) if node.container_id else "",
        stdout_tail=node.stdout_tail or "",
        stderr_tail=node.stderr_tail or "",
        start_time=timestamp(node.started_at),
        end_time=timestamp(node.completed_at),
        due_time=timestamp(node.due_at),
        copied_from=str(node.copied_from or ""),
        cache_hit=bool(node.cache_hit),
    )
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


def _counts(execution: Execution, total: int) -> pb.NodeCounts:
    counts = pb.NodeCounts(total=total + execution.parts)
    begun = -execution.parts
    for status, number in execution.counts.items():
        begun += number
        name = _COUNTED[NodeStatus(status)]
        setattr(counts, name, getattr(counts, name) + number)
    rest = _COUNTED[unbegun(execution)]
    setattr(counts, rest, getattr(counts, rest) + total - begun)
    return counts


def _usage(usage: dict[str, Any] | None) -> pb.ResourceUsage | None:
    if not usage:
        return None
    return pb.ResourceUsage(
        cpu_time=duration_ms((usage.get("cpu_us") or 0) / 1000),
        memory_peak_bytes=usage.get("memory_peak_bytes") or 0,
        io_read_bytes=usage.get("io_read_bytes") or 0,
        io_write_bytes=usage.get("io_write_bytes") or 0,
    )
