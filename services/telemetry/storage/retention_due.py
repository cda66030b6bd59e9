"""Count expired rows without deleting any, under the conditions of the cleanup functions.

For each kind, a test checks that both agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Final, LiteralString

from services.kit.pg import Db

COUNTED_MAX: Final = 100_000

_EXECUTIONS: Final[LiteralString] = """
    SELECT count(*) FROM (
        SELECT FROM workflow_executions
         WHERE completed_at IS NOT NULL AND status IN ('completed', 'failed', 'cancelled')
           AND completed_at < clock_timestamp() - $2::interval
         LIMIT $1::integer + 1) AS due
"""
_NODE_LOGS: Final[LiteralString] = """
    SELECT count(*) FROM (
        SELECT FROM execution_logs log
          JOIN workflow_executions run ON run.id = log.workflow_execution_id
          JOIN node_logs line ON line.workflow_execution_id = log.workflow_execution_id
         WHERE log.updated_at < clock_timestamp() - $2::interval AND run.completed_at IS NOT NULL
         LIMIT $1::integer + 1) AS due
"""
_TEMPORARY_FILES: Final[LiteralString] = """
    SELECT count(*) FROM (
        SELECT FROM files f LEFT JOIN workflow_executions e ON e.id = f.workflow_execution_id
         WHERE f.is_temporary AND f.expires_at < clock_timestamp()
           AND (e.id IS NULL OR e.completed_at IS NOT NULL)
         LIMIT $1::integer + 1) AS due
"""
_CONTAINERS: Final[LiteralString] = """
    SELECT count(*) FROM (
        SELECT FROM containers
         WHERE stopped_at < clock_timestamp() - $2::interval
           AND status IN ('stopped', 'error', 'removed')
         LIMIT $1::integer + 1) AS due
"""
_METRICS: Final[LiteralString] = """
    SELECT count(*) FROM (
        SELECT FROM performance_metrics WHERE recorded_at < clock_timestamp() - $2::interval
         LIMIT $1::integer + 1) AS due
"""
_METRIC_MINUTES: Final[LiteralString] = """
    SELECT count(*) FROM (
        SELECT FROM metric_rollups
         WHERE span_s = 60 AND starts_at < clock_timestamp() - $2::interval
         LIMIT $1::integer + 1) AS due
"""
_METRIC_HOURS: Final[LiteralString] = """
    SELECT count(*) FROM (
        SELECT FROM metric_rollups
         WHERE span_s = 3600 AND starts_at < clock_timestamp() - $2::interval
         LIMIT $1::integer + 1) AS due
"""
_WORKFLOW_HOURS: Final[LiteralString] = """
    SELECT count(*) FROM (
        SELECT FROM workflow_rollups
         WHERE span_s = 3600
           AND starts_at < date_trunc('day', clock_timestamp() - $2::interval, 'UTC')
         LIMIT $1::integer + 1) AS due
"""
_WORKFLOW_DAYS: Final[LiteralString] = """
    SELECT count(*) FROM (
        SELECT FROM workflow_rollups
         WHERE span_s = 86400
           AND starts_at < date_trunc('day', clock_timestamp() - $2::interval, 'UTC')
         LIMIT $1::integer + 1) AS due
"""
_ERROR_LOGS: Final[LiteralString] = """
    SELECT count(*) FROM (
        SELECT FROM error_logs WHERE created_at < clock_timestamp() - $2::interval
         LIMIT $1::integer + 1) AS due
"""
_SYSTEM_HEALTH: Final[LiteralString] = """
    SELECT count(*) FROM (
        SELECT FROM system_health WHERE recorded_at < clock_timestamp() - $2::interval
         LIMIT $1::integer + 1) AS due
"""
_FILE_ACCESS_LOGS: Final[LiteralString] = """
    SELECT count(*) FROM (
        SELECT FROM file_access_logs WHERE accessed_at < clock_timestamp() - $2::interval
         LIMIT $1::integer + 1) AS due
"""
_AUDIT_RECORDS: Final[LiteralString] = """
    SELECT LEAST($1::bigint + 1, COALESCE(sum(last_record - first_record + 1), 0))::bigint
      FROM audit_seals
     WHERE sealed_at < clock_timestamp() - GREATEST($2::interval, interval '30 days')
"""
_SESSIONS: Final[LiteralString] = """
    SELECT count(*) FROM (
        SELECT FROM user_sessions WHERE expires_at < clock_timestamp()
         LIMIT $1::integer + 1) AS due
"""
_IDEMPOTENCY_KEYS: Final[LiteralString] = """
    SELECT count(*) FROM (
        SELECT FROM idempotency_keys WHERE expires_at < clock_timestamp()
         LIMIT $1::integer + 1) AS due
"""
_OUTBOX_EVENTS: Final[LiteralString] = """
    SELECT count(*) FROM (
        SELECT FROM outbox_events WHERE sent_at < clock_timestamp() - $2::interval
         LIMIT $1::integer + 1) AS due
"""
_SCHEDULE_TICKS: Final[LiteralString] = """
    SELECT count(*) FROM (
        SELECT FROM schedule_ticks
         WHERE updated_at < clock_timestamp() - $2::interval AND state <> 'pending'
         LIMIT $1::integer + 1) AS due
"""
_SCHEDULE_BACKFILLS: Final[LiteralString] = """
    SELECT count(*) FROM (
        SELECT FROM schedule_backfills WHERE completed_at < clock_timestamp() - $2::interval
         LIMIT $1::integer + 1) AS due
"""
_EVENT_DELIVERIES: Final[LiteralString] = """
    SELECT count(*) FROM (
        SELECT FROM event_deliveries
         WHERE updated_at < clock_timestamp() - $2::interval AND state <> 'pending'
         LIMIT $1::integer + 1) AS due
"""
_CACHED_RESULTS: Final[LiteralString] = """
    SELECT count(*) FROM (
        SELECT FROM cached_results WHERE expires_at < clock_timestamp()
         LIMIT $1::integer + 1) AS due
"""
# Which pins are unused is decided by the cleanup function itself; the caller rolls it back.
_PINS: Final[LiteralString] = "SELECT cleanup_unused_pins($2::interval, $1::integer + 1)"
_DELETED_WORKFLOWS: Final[LiteralString] = """
    SELECT count(*) FROM (
        SELECT FROM workflows w
         WHERE w.deleted_at < clock_timestamp() - $2::interval
           AND NOT EXISTS (SELECT FROM workflow_executions e WHERE e.workflow_id = w.id)
           AND NOT EXISTS (
               SELECT FROM workflow_versions v
                WHERE jsonb_path_query_array(v.nodes, '$[*].node_id')
                      @> jsonb_build_array(w.id::text)
                  AND v.workflow_id <> w.id)
         LIMIT $1::integer + 1) AS due
"""
_DELETED_NODES: Final[LiteralString] = """
    SELECT count(*) FROM (
        SELECT FROM python_nodes n
         WHERE n.deleted_at < clock_timestamp() - $2::interval
           AND NOT EXISTS (
               SELECT FROM workflow_versions v
                WHERE jsonb_path_query_array(v.nodes, '$[*].node_id')
                      @> jsonb_build_array(n.id::text))
           AND NOT EXISTS (
               SELECT FROM python_node_versions p
                 JOIN workflow_executions e ON e.node_version_id = p.id
                WHERE p.node_id = n.id)
         LIMIT $1::integer + 1) AS due
"""
_ENVIRONMENTS: Final[LiteralString] = """
    SELECT count(*) FROM (
        SELECT FROM environments
         WHERE state IN ('evicted', 'failed')
           AND GREATEST(last_used_at, created_at) < clock_timestamp() - $2::interval
         LIMIT $1::integer + 1) AS due
"""
_RETENTION_RUNS: Final[LiteralString] = """
    SELECT count(*) FROM (
        SELECT FROM retention_runs WHERE ended_at < clock_timestamp() - $2::interval
         LIMIT $1::integer + 1) AS due
"""
_ENGINE_MEMBERS: Final[LiteralString] = """
    SELECT count(*) FROM (
        SELECT FROM engine_members
         WHERE (state IN ('fenced', 'gone') AND updated_at < clock_timestamp() - $2::interval
                OR state = 'live' AND expires_at < clock_timestamp() - $2::interval)
           AND epoch < (SELECT max(epoch) FROM engine_members)
           AND NOT EXISTS (SELECT FROM engine_shards WHERE member_id = engine_members.id)
         LIMIT $1::integer + 1) AS due
"""
_RUNNER_MEMBERS: Final[LiteralString] = """
    SELECT count(*) FROM (
        SELECT FROM runner_members
         WHERE (state IN ('fenced', 'gone') AND updated_at < clock_timestamp() - $2::interval
                OR state = 'live' AND expires_at < clock_timestamp() - $2::interval)
           AND NOT EXISTS (
               SELECT FROM containers
                WHERE runner_incarnation = incarnation
                  AND status IN ('creating', 'running', 'removing'))
         LIMIT $1::integer + 1) AS due
"""

_STATEMENTS: Final[Mapping[str, LiteralString]] = {
    "executions": _EXECUTIONS,
    "node_logs": _NODE_LOGS,
    "temporary_files": _TEMPORARY_FILES,
    "containers": _CONTAINERS,
    "metrics": _METRICS,
    "metric_minutes": _METRIC_MINUTES,
    "metric_hours": _METRIC_HOURS,
    "workflow_hours": _WORKFLOW_HOURS,
    "workflow_days": _WORKFLOW_DAYS,
    "error_logs": _ERROR_LOGS,
    "system_health": _SYSTEM_HEALTH,
    "file_access_logs": _FILE_ACCESS_LOGS,
    "audit_records": _AUDIT_RECORDS,
    "sessions": _SESSIONS,
    "idempotency_keys": _IDEMPOTENCY_KEYS,
    "outbox_events": _OUTBOX_EVENTS,
    "schedule_ticks": _SCHEDULE_TICKS,
    "schedule_backfills": _SCHEDULE_BACKFILLS,
    "event_deliveries": _EVENT_DELIVERIES,
    "cached_results": _CACHED_RESULTS,
    "pins": _PINS,
    "deleted_workflows": _DELETED_WORKFLOWS,
    "deleted_nodes": _DELETED_NODES,
    "environments": _ENVIRONMENTS,
    "retention_runs": _RETENTION_RUNS,
    "engine_members": _ENGINE_MEMBERS,
    "runner_members": _RUNNER_MEMBERS,
}


async def count_due(db: Db, subject: str, *, keep: timedelta | None) -> int:
    """Count the expired rows of a kind, up to one above `COUNTED_MAX`.

    The caller must roll back.
    """
    given = (COUNTED_MAX,) if keep is None else (COUNTED_MAX, keep)
    return int(await db.fetchval(_STATEMENTS[subject], *given))
