"""Every table either has a rule of retention or a reason why it does not grow without one."""

from __future__ import annotations

from typing import Final

from services.telemetry.domain.retention import RULES
from services.telemetry.storage.retention import _STATEMENTS
from services.telemetry.storage.retention_due import _STATEMENTS as _COUNTED
from tests.migrations.subject import Subject

# Table -> the subject of the rule by which its rows go.
_COVERED: Final = {
    "workflow_executions": "executions",
    "node_executions": "executions",
    "node_attempts": "executions",
    "node_data_flow": "executions",
    "execution_signals": "executions",
    "file_uses": "executions",
    "execution_logs": "node_logs",
    "node_logs": "node_logs",
    "files": "temporary_files",
    "containers": "containers",
    "container_dependencies": "containers",
    "performance_metrics": "metrics",
    "metric_rollups": "metric_minutes",
    "workflow_rollups": "workflow_hours",
    "rolled_up_executions": "executions",
    "error_logs": "error_logs",
    "system_health": "system_health",
    "file_access_logs": "file_access_logs",
    "audit_records": "audit_records",
    "audit_seals": "audit_records",
    "user_sessions": "sessions",
    "idempotency_keys": "idempotency_keys",
    "outbox_events": "outbox_events",
    "schedule_ticks": "schedule_ticks",
    "schedule_backfills": "schedule_backfills",
    "event_deliveries": "event_deliveries",
    "cached_results": "cached_results",
    "execution_pins": "pins",
    "workflows": "deleted_workflows",
    "workflow_versions": "deleted_workflows",
    "python_nodes": "deleted_nodes",
    "python_node_versions": "deleted_nodes",
    "environments": "environments",
    "engine_members": "engine_members",
    "runner_members": "runner_members",
    "retention_runs": "retention_runs",
}
_DEFINITION: Final = "what people make and delete; quotas bound it"
_WITH_PARENT: Final = "goes with the row it hangs on, which people delete"
_FIXED: Final = "has as many rows as the schema says"
_BY_ITSELF: Final = "its service removes what is over while it works"
_KEPT: Final = {
    "alembic_version": _FIXED,
    "type_definitions": _FIXED,
    "type_compatibility": _FIXED,
    "engine_shards": _FIXED,
    "telemetry_watermarks": "one row per reader",
    "tenants": "one row per user and team",
    "users": "one row per person",
    "service_tokens": "one row per service",
    "credential_tokens": "one row per user",
    "user_service_tokens": "what people make and delete; the login of retention sees no token",
    "file_usage": "one row per tenant",
    "package_rules": "one row per tenant",
    "retention_rules": "three rows per tenant at most",
    "node_version_locks": _WITH_PARENT,
    "python_node_tags": _DEFINITION,
    "python_node_tag_relations": _WITH_PARENT,
    "workflow_node_uses": _WITH_PARENT,
    "workflow_tags": _DEFINITION,
    "workflow_tag_relations": _WITH_PARENT,
    "workflow_aliases": _DEFINITION,
    "workflow_alias_changes": "who put what into production is kept; people change it by hand",
    "variables": _DEFINITION,
    "custom_types": _DEFINITION,
    "custom_type_uses": _WITH_PARENT,
    "schedules": _DEFINITION,
    "event_subscriptions": _DEFINITION,
    "triggers": _DEFINITION,
    "execution_limits": _DEFINITION,
    "limit_slots": "as many rows as places are taken",
    "limit_buckets": _BY_ITSELF,
    "tenant_quotas": "one row per tenant at most",
    "tenant_usage": _BY_ITSELF,
    "execution_budgets": _BY_ITSELF,
    "file_uploads": _BY_ITSELF,
    "sign_in_attempts": _BY_ITSELF,
    "tenant_wheels": _DEFINITION,
    "tenant_members": "one row per person and team, of which both have few",
    "tenant_invitations": "what is over goes when the next is made; a team has few",
    "package_indexes": _DEFINITION,
    "data_keys": "one a month",
    "secrets": _DEFINITION,
    "secret_versions": "ten per secret",
    "secret_grants": _WITH_PARENT,
    "audit_events": "who changed an account is kept; people change them by hand",
    "audit_chains": "one row per start of a service",
    "audit_checkpoints": "one row per batch of a thousand that retention removed",
}


def test_every_table_has_a_rule_or_a_reason(mended: Subject) -> None:
    """G6, S25: a new table is named in one of the two, and what is gone is named in neither."""
    rows = mended.db.execute(
        "SELECT relname FROM pg_class"
        " WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')"
    )
    tables = {name for (name,) in rows}
    assert not set(_COVERED) & set(_KEPT)
    assert tables == set(_COVERED) | set(_KEPT)


def test_every_rule_removes_and_counts_and_is_of_some_table() -> None:
    subjects = {rule.subject for rule in RULES}
    assert subjects == set(_STATEMENTS) == set(_COUNTED)
    assert subjects == set(_COVERED.values()) | {"metric_hours", "workflow_days"}
