"""Calls of the schema's cleanup functions; each deletes one batch of expired rows."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db

# One batch at a time in the whole deployment: a second process would not speed it up.
_LOCK: Final[LiteralString] = """
    SELECT pg_try_advisory_xact_lock(hashtext('qflow.telemetry'), hashtext('retention'))
"""

# The third argument limits the nodes per batch, ten per run: even a batch of few runs has a fixed
# cost like that of dozens of nodes.
_FORGET_EXECUTIONS: Final[LiteralString] = """
    SELECT cleanup_old_executions($1, $2, LEAST(5000, 10 * $2::integer))
"""
_FORGET_NODE_LOGS: Final[LiteralString] = "SELECT cleanup_old_node_logs($1, $2)"
_FORGET_TEMPORARY_FILES: Final[LiteralString] = "SELECT cleanup_temporary_files($1)"
_FORGET_CONTAINERS: Final[LiteralString] = "SELECT cleanup_old_containers($1, $2)"
_FORGET_METRICS: Final[LiteralString] = "SELECT cleanup_old_metrics($1, $2)"
_FORGET_METRIC_MINUTES: Final[LiteralString] = "SELECT cleanup_old_metric_rollups(60, $1, $2)"
_FORGET_METRIC_HOURS: Final[LiteralString] = "SELECT cleanup_old_metric_rollups(3600, $1, $2)"
_FORGET_WORKFLOW_HOURS: Final[LiteralString] = "SELECT cleanup_old_workflow_rollups(3600, $1, $2)"
_FORGET_WORKFLOW_DAYS: Final[LiteralString] = "SELECT cleanup_old_workflow_rollups(86400, $1, $2)"
_FORGET_ERROR_LOGS: Final[LiteralString] = "SELECT cleanup_old_error_logs($1, $2)"
_FORGET_SYSTEM_HEALTH: Final[LiteralString] = "SELECT cleanup_old_system_health($1, $2)"
_FORGET_FILE_ACCESS_LOGS: Final[LiteralString] = "SELECT cleanup_old_file_access_logs($1, $2)"
_FORGET_AUDIT_RECORDS: Final[LiteralString] = "SELECT cleanup_old_audit_records($1, $2)"
_FORGET_SESSIONS: Final[LiteralString] = "SELECT cleanup_expired_sessions($1)"
_FORGET_IDEMPOTENCY_KEYS: Final[LiteralString] = "SELECT cleanup_expired_idempotency_keys($1)"
_FORGET_OUTBOX_EVENTS: Final[LiteralString] = "SELECT cleanup_sent_outbox_events($1, $2)"
_FORGET_SCHEDULE_TICKS: Final[LiteralString] = "SELECT cleanup_old_schedule_ticks($1, $2)"
_FORGET_SCHEDULE_BACKFILLS: Final[LiteralString] = "SELECT cleanup_old_schedule_backfills($1, $2)"
_FORGET_EVENT_DELIVERIES: Final[LiteralString] = "SELECT cleanup_old_event_deliveries($1, $2)"
_FORGET_CACHED_RESULTS: Final[LiteralString] = "SELECT cleanup_expired_results($1)"
_FORGET_PINS: Final[LiteralString] = "SELECT cleanup_unused_pins($1, $2)"
_FORGET_DELETED_WORKFLOWS: Final[LiteralString] = "SELECT cleanup_deleted_workflows($1, $2)"
_FORGET_DELETED_NODES: Final[LiteralString] = "SELECT cleanup_deleted_nodes($1, $2)"
_FORGET_ENVIRONMENTS: Final[LiteralString] = "SELECT cleanup_gone_environments($1, $2)"
_FORGET_RETENTION_RUNS: Final[LiteralString] = "SELECT cleanup_old_retention_runs($1, $2)"
_FORGET_ENGINE_MEMBERS: Final[LiteralString] = "SELECT cleanup_dead_engine_members($1, $2)"
_FORGET_RUNNER_MEMBERS: Final[LiteralString] = "SELECT cleanup_dead_runner_members($1, $2)"

_STATEMENTS: Final[Mapping[str, LiteralString]] = {
    "executions": _FORGET_EXECUTIONS,
    "node_logs": _FORGET_NODE_LOGS,
    "temporary_files": _FORGET_TEMPORARY_FILES,
    "containers": _FORGET_CONTAINERS,
    "metrics": _FORGET_METRICS,
    "metric_minutes": _FORGET_METRIC_MINUTES,
    "metric_hours": _FORGET_METRIC_HOURS,
    "workflow_hours": _FORGET_WORKFLOW_HOURS,
    "workflow_days": _FORGET_WORKFLOW_DAYS,
    "error_logs": _FORGET_ERROR_LOGS,
    "system_health": _FORGET_SYSTEM_HEALTH,
    "file_access_logs": _FORGET_FILE_ACCESS_LOGS,
    "audit_records": _FORGET_AUDIT_RECORDS,
    "sessions": _FORGET_SESSIONS,
    "idempotency_keys": _FORGET_IDEMPOTENCY_KEYS,
    "outbox_events": _FORGET_OUTBOX_EVENTS,
    "schedule_ticks": _FORGET_SCHEDULE_TICKS,
    "schedule_backfills": _FORGET_SCHEDULE_BACKFILLS,
    "event_deliveries": _FORGET_EVENT_DELIVERIES,
    "cached_results": _FORGET_CACHED_RESULTS,
    "pins": _FORGET_PINS,
    "deleted_workflows": _FORGET_DELETED_WORKFLOWS,
    "deleted_nodes": _FORGET_DELETED_NODES,
    "environments": _FORGET_ENVIRONMENTS,
    "retention_runs": _FORGET_RETENTION_RUNS,
    "engine_members": _FORGET_ENGINE_MEMBERS,
    "runner_members": _FORGET_RUNNER_MEMBERS,
}


async def forget_batch(db: Db, subject: str, *, keep: timedelta | None, batch: int) -> int | None:
    """Delete one batch; returns the number of rows, None while another process holds the lock."""
    if not await db.fetchval(_LOCK):
        return None
    arguments = (batch,) if keep is None else (keep, batch)
    return int(await db.fetchval(_STATEMENTS[subject], *arguments))


_TRANSACTIONS: Final[LiteralString] = """
    SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()
"""


async def transactions(db: Db) -> int:
    """Count the finished transactions of all sessions in this database, about a second ago."""
    return int(await db.fetchval(_TRANSACTIONS))


_HIDE_EXECUTIONS: Final[LiteralString] = "SELECT hide_tenant_executions($1, $2, $3)"
_FORGET_TENANT_METRICS: Final[LiteralString] = "SELECT cleanup_tenant_metrics($1, $2, $3)"
_FORGET_TENANT_ERRORS: Final[LiteralString] = "SELECT cleanup_tenant_error_logs($1, $2, $3)"

_OF_TENANT: Final[Mapping[str, LiteralString]] = {
    "executions": _HIDE_EXECUTIONS,
    "metrics": _FORGET_TENANT_METRICS,
    "error_logs": _FORGET_TENANT_ERRORS,
}


async def forget_tenant_batch(
    db: Db, subject: str, tenant_id: UUID, *, keep: timedelta, batch: int
) -> int | None:
    """Delete one batch of a tenant's own rows, or hide executions; None while locked elsewhere."""
    if not await db.fetchval(_LOCK):
        return None
    return int(await db.fetchval(_OF_TENANT[subject], tenant_id, keep, batch))
