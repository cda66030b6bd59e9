"""Codec for telemetry's records."""

from __future__ import annotations

from typing import Final

from qflow.telemetry.v1 import telemetry_service_pb2 as pb

from services.kit.rpc.codec import timestamp
from services.kit.rpc.failures import add_detail
from services.telemetry.domain.records import ErrorRecord, HealthSample, Metric

_SEVERITIES: Final = {
    "info": pb.ERROR_SEVERITY_INFO,
    "warning": pb.ERROR_SEVERITY_WARNING,
    "error": pb.ERROR_SEVERITY_ERROR,
    "critical": pb.ERROR_SEVERITY_CRITICAL,
}


def metric_to_pb(metric: Metric) -> pb.Metric:
    """Encode a metric."""
    return pb.Metric(
        id=str(metric.id),
        metric_name=metric.name,
        metric_value=metric.value,
        metric_unit=metric.unit,
        execution_id=str(metric.execution_id or ""),
        record_time=timestamp(metric.recorded_at),
    )


def error_to_pb(error: ErrorRecord) -> pb.ErrorLog:
    """Encode an error log."""
    message = pb.ErrorLog(
        id=str(error.id),
        error_type=error.error_type,
        error_message=error.message,
        stack_trace=error.stack_trace,
        severity=_SEVERITIES[error.severity],
        execution_id=str(error.execution_id or ""),
        node_execution_id=str(error.node_execution_id or ""),
        create_time=timestamp(error.created_at),
    )
    add_detail(message, error.detail)
    return message


def sample_to_pb(sample: HealthSample) -> pb.HealthSample:
    """Encode a health sample."""
    return pb.HealthSample(
        id=str(sample.id),
        node_name=sample.node_name,
        cpu_usage_percent=sample.cpu_percent,
        memory_usage_percent=sample.memory_percent,
        disk_usage_percent=sample.disk_percent,
        active_containers=sample.active_containers,
        active_workflows=sample.active_workflows,
        record_time=timestamp(sample.recorded_at),
    )
