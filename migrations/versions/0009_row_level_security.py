"""Row-level security: enabled and forced on every table with tenants' data, denied by default.

Mends S2, S7-S9, S11, S12, S14, S15. One policy per role and command; the seed's three policy names stay
on the SELECT policies that took their place. `(SELECT f())` is evaluated once a statement.

- qflow_api acts for one caller: it sees its tenant's rows, and public and template definitions; it
  changes its tenant's rows alone, and nothing as a viewer. Child rows follow their parent.
- qflow_engine, qflow_maint and qflow_auth are cross-tenant, each only on what it may touch at all.
- qflow_maint deletes only what is expired, whatever statement asks: where a setting says how long
  rows are kept, what is a day old (the least that a setting may say), else what is over or due.
"""

from __future__ import annotations

from migrations.sql import run

revision = "0009"
down_revision = "0008"

_TENANT = "(SELECT current_tenant_id())"
_USER = "(SELECT current_user_id())"
_WRITER = "(SELECT current_role_name()) IN ('admin', 'user')"
_OWN = f"tenant_id = {_TENANT}"
_OWN_WRITTEN = f"{_OWN} AND {_WRITER}"
_OWN_MADE = f"{_OWN_WRITTEN} AND created_by = {_USER}"
# Shown to every caller; to nobody where no caller is set.
_SHOWN = f"{_USER} IS NOT NULL"


def _parent(table: str, key: str, rule: str) -> str:
    """The parent row is one that the rule lets through; `child` becomes the policy's table."""
    return f"EXISTS (SELECT 1 FROM {table} parent WHERE parent.id = child.{key} AND {rule})"


def _visible(table: str, key: str) -> str:
    """The parent row is one that its own policies show to the caller."""
    return _parent(table, key, "true")


def _owned(table: str, key: str) -> str:
    return _parent(table, key, f"parent.{_OWN}")


_NODE = _owned("python_nodes", "node_id")
_WORKFLOW = _owned("workflows", "workflow_id")
_EXECUTION = _owned("workflow_executions", "workflow_execution_id")
_VERSION = f"""EXISTS (SELECT 1 FROM python_node_versions version
    JOIN python_nodes node ON node.id = version.node_id
    WHERE version.id = child.node_version_id AND node.{_OWN})"""

# (table, name, command, USING, WITH CHECK) for qflow_api.
_API: tuple[tuple[str, str, str, str | None, str | None], ...] = (
    ("tenants", "tenants_api_select", "SELECT", f"id = {_TENANT}", None),
    ("users", "users_api_select", "SELECT", f"id = {_USER}", None),
    ("users", "users_api_update", "UPDATE", f"id = {_USER} AND {_WRITER}", f"id = {_USER}"),
    # Definitions: own, public and template ones are readable; only own ones writable.
    (
        "python_nodes",
        "python_node_access_policy",
        "SELECT",
        f"{_OWN} OR ((is_public OR is_template) AND {_SHOWN})",
        None,
    ),
    ("python_nodes", "python_nodes_api_insert", "INSERT", None, _OWN_MADE),
    ("python_nodes", "python_nodes_api_update", "UPDATE", _OWN_WRITTEN, _OWN_WRITTEN),
    (
        "workflows",
        "workflow_access_policy",
        "SELECT",
        f"{_OWN} OR (is_template AND {_SHOWN})",
        None,
    ),
    ("workflows", "workflows_api_insert", "INSERT", None, _OWN_MADE),
    ("workflows", "workflows_api_update", "UPDATE", _OWN_WRITTEN, _OWN_WRITTEN),
    (
        "python_node_versions",
        "python_node_versions_api_select",
        "SELECT",
        _visible("python_nodes", "node_id"),
        None,
    ),
    (
        "python_node_versions",
        "python_node_versions_api_insert",
        "INSERT",
        None,
        f"{_NODE} AND {_WRITER} AND created_by = {_USER}",
    ),
    (
        "workflow_versions",
        "workflow_versions_api_select",
        "SELECT",
        _visible("workflows", "workflow_id"),
        None,
    ),
    (
        "workflow_versions",
        "workflow_versions_api_insert",
        "INSERT",
        None,
        f"{_WORKFLOW} AND {_WRITER} AND created_by = {_USER}",
    ),
    (
        "node_version_locks",
        "node_version_locks_api_select",
        "SELECT",
        f"{_OWN} OR {_visible('python_node_versions', 'node_version_id')}",
        None,
    ),
    (
        "node_version_locks",
        "node_version_locks_api_insert",
        "INSERT",
        None,
        f"{_OWN_WRITTEN} AND {_VERSION}",
    ),
    # Executions: written by the engine alone. One that is being purged is gone already.
    (
        "workflow_executions",
        "execution_access_policy",
        "SELECT",
        f"{_OWN} AND purge_started_at IS NULL",
        None,
    ),
    ("node_executions", "node_executions_api_select", "SELECT", _EXECUTION, None),
    ("node_data_flow", "node_data_flow_api_select", "SELECT", _EXECUTION, None),
    (
        "node_attempts",
        "node_attempts_api_select",
        "SELECT",
        _visible("node_executions", "node_execution_id"),
        None,
    ),
    ("execution_pins", "execution_pins_api_select", "SELECT", _OWN, None),
    # Sandboxes and files.
    ("containers", "containers_api_select", "SELECT", _OWN, None),
    (
        "container_dependencies",
        "container_dependencies_api_select",
        "SELECT",
        _owned("containers", "container_id"),
        None,
    ),
    ("environments", "environments_api_select", "SELECT", _OWN, None),
    ("files", "files_api_select", "SELECT", _OWN, None),
    ("file_access_logs", "file_access_logs_api_select", "SELECT", _OWN, None),
    (
        "file_access_logs",
        "file_access_logs_api_insert",
        "INSERT",
        None,
        f"{_OWN} AND accessed_by = {_USER}",
    ),
    # Telemetry.
    ("performance_metrics", "performance_metrics_api_select", "SELECT", _OWN, None),
    ("error_logs", "error_logs_api_select", "SELECT", _OWN, None),
    (
        "system_health",
        "system_health_api_select",
        "SELECT",
        "(SELECT current_role_name()) = 'admin'",
        None,
    ),
    # Shared.
    (
        "idempotency_keys",
        "idempotency_keys_api_select",
        "SELECT",
        f"{_OWN} AND caller_id = {_USER}",
        None,
    ),
    (
        "idempotency_keys",
        "idempotency_keys_api_insert",
        "INSERT",
        None,
        f"{_OWN_WRITTEN} AND caller_id = {_USER}",
    ),
    # Nobody's: processes of the suite.
    ("engine_members", "engine_members_api_select", "SELECT", "true", None),
    ("runner_members", "runner_members_api_select", "SELECT", "true", None),
)

_OWN_TABLES = ("python_node_tags", "workflow_tags", "custom_types")
_RELATIONS = (
    ("python_node_tag_relations", _NODE, _owned("python_node_tags", "tag_id"), "python_nodes", "node_id"),
    ("workflow_tag_relations", _WORKFLOW, _owned("workflow_tags", "tag_id"), "workflows", "workflow_id"),
)  # fmt: skip

# What the cross-tenant groups may touch; the letters are Select, Insert, Update, Delete.
_CROSS_TENANT: dict[str, dict[str, str]] = {
    "qflow_engine": {
        "tenants": "S",
        "users": "S",
        "python_nodes": "S",
        "python_node_versions": "S",
        "node_version_locks": "SU",
        "workflows": "S",
        "workflow_versions": "S",
        "custom_types": "S",
        "workflow_executions": "SIUD",
        "node_executions": "SIUD",
        "node_data_flow": "SIUD",
        "node_attempts": "SIUD",
        "execution_pins": "SIUD",
        "containers": "SIUD",
        "container_dependencies": "SIUD",
        "environments": "SIUD",
        "files": "SIUD",
        "file_access_logs": "SIUD",
        "error_logs": "SI",
        "outbox_events": "SU",
        "engine_members": "SIUD",
        "runner_members": "SIUD",
    },
    "qflow_maint": {
        "tenants": "S",
        "users": "S",
        "user_sessions": "SD",
        "python_nodes": "S",
        "python_node_versions": "S",
        "node_version_locks": "S",
        "workflows": "S",
        "workflow_versions": "S",
        "workflow_executions": "SUD",
        "node_executions": "SD",
        "node_data_flow": "SD",
        "node_attempts": "S",
        "execution_pins": "SD",
        "containers": "SD",
        "container_dependencies": "S",
        "environments": "S",
        "files": "SD",
        "file_access_logs": "SD",
        "performance_metrics": "SID",
        "error_logs": "SID",
        "system_health": "SID",
        "idempotency_keys": "SD",
        "outbox_events": "SID",
        "engine_members": "SD",
        "runner_members": "SD",
    },
    "qflow_auth": {
        "tenants": "SI",
        "users": "SIU",
        "user_sessions": "SIUD",
        "service_tokens": "SIUD",
    },
}
_COMMANDS = {"S": "SELECT", "I": "INSERT", "U": "UPDATE", "D": "DELETE"}

_AGED = "{} < now() - interval '1 day'"
_PURGED = _parent(
    "workflow_executions", "workflow_execution_id", "parent.purge_started_at IS NOT NULL"
)
_OVER = _parent("workflow_executions", "workflow_execution_id", "parent.completed_at IS NOT NULL")
_DEAD = f"state IN ('fenced', 'gone') OR {_AGED.format('expires_at')}"
# What qflow_maint may change, by table and letter; the other groups' rule is true.
_EXPIRED: dict[tuple[str, str], str] = {
    ("workflow_executions", "U"): _AGED.format("completed_at"),
    ("workflow_executions", "D"): "purge_started_at IS NOT NULL",
    ("node_executions", "D"): _PURGED,
    ("node_data_flow", "D"): _PURGED,
    ("performance_metrics", "D"): f"{_PURGED} OR {_AGED.format('recorded_at')}",
    ("error_logs", "D"): f"{_PURGED} OR {_AGED.format('created_at')}",
    ("system_health", "D"): _AGED.format("recorded_at"),
    ("file_access_logs", "D"): _AGED.format("accessed_at"),
    ("containers", "D"): f"{_PURGED} OR {_AGED.format('stopped_at')}",
    ("files", "D"): f"{_PURGED} OR (is_temporary AND expires_at < now()"
    f" AND (workflow_execution_id IS NULL OR {_OVER}))",
    ("execution_pins", "D"): f"{_AGED.format('created_at')} AND NOT EXISTS"
    " (SELECT 1 FROM workflow_executions run"
    " WHERE run.workflow_id = child.workflow_id AND run.pins_id = child.id)",
    ("user_sessions", "D"): "expires_at < now()",
    ("idempotency_keys", "D"): "expires_at < now()",
    ("outbox_events", "D"): _AGED.format("sent_at"),
    ("engine_members", "D"): _DEAD,
    ("runner_members", "D"): _DEAD,
    # The trigger's (0010): bytes go only where the row has gone.
    ("outbox_events", "I"): "kind = 'file_deleted' AND NOT EXISTS"
    " (SELECT 1 FROM files WHERE files.id = (payload ->> 'file_id')::uuid)",
}

_TABLES = sorted(
    {table for table, *_ in _API}
    | set(_OWN_TABLES)
    | {table for table, *_ in _RELATIONS}
    | {table for rules in _CROSS_TENANT.values() for table in rules}
)


def _policy(
    name: str, table: str, to: str, *, using: str | None = None, check: str | None = None
) -> str:
    """One policy; `to` reads like "SELECT TO qflow_api"."""
    statement = f"CREATE POLICY {name} ON {table} FOR {to}"
    if using is not None:
        statement += f" USING ({using})"
    if check is not None:
        statement += f" WITH CHECK ({check})"
    # Qualified, or a column that the parent has too would be the parent's.
    return statement.replace("child.", f"{table}.")


def _api_policies() -> list[str]:
    policies = [
        _policy(name, table, f"{command} TO qflow_api", using=using, check=check)
        for table, name, command, using, check in _API
    ]
    for table in _OWN_TABLES:
        name = f"{table}_api"
        policies += [
            _policy(f"{name}_select", table, "SELECT TO qflow_api", using=_OWN),
            _policy(f"{name}_insert", table, "INSERT TO qflow_api", check=_OWN_MADE),
            _policy(
                f"{name}_update",
                table,
                "UPDATE TO qflow_api",
                using=_OWN_WRITTEN,
                check=_OWN_WRITTEN,
            ),
            _policy(f"{name}_delete", table, "DELETE TO qflow_api", using=_OWN_WRITTEN),
        ]
    for table, owned, tag, parent, key in _RELATIONS:
        name, changed = f"{table}_api", f"{owned} AND {_WRITER}"
        policies += [
            _policy(f"{name}_select", table, "SELECT TO qflow_api", using=_visible(parent, key)),
            _policy(f"{name}_insert", table, "INSERT TO qflow_api", check=f"{changed} AND {tag}"),
            _policy(f"{name}_delete", table, "DELETE TO qflow_api", using=changed),
        ]
    return policies


def _cross_tenant_policies() -> list[str]:
    policies = []
    for role, rules in _CROSS_TENANT.items():
        for table, letters in rules.items():
            for letter in letters:
                command = _COMMANDS[letter]
                rule = "true"
                if role == "qflow_maint":
                    rule = _EXPIRED.get((table, letter), rule)
                policies.append(
                    _policy(
                        f"{table}_{role.removeprefix('qflow_')}_{command.lower()}",
                        table,
                        f"{command} TO {role}",
                        using=None if letter == "I" else rule,
                        check=rule if letter in "IU" else None,
                    )
                )
    return policies


def upgrade() -> None:
    for table in _TABLES:
        run(
            (
                f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
                f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY",
            )
        )
    run(_api_policies())
    run(_cross_tenant_policies())


_DROP_POLICIES = """
    DO $$
    DECLARE
        policy record;
    BEGIN
        FOR policy IN
            SELECT policyname, tablename FROM pg_policies WHERE schemaname = 'public'
        LOOP
            EXECUTE format('DROP POLICY %I ON %I', policy.policyname, policy.tablename);
        END LOOP;
    END $$
"""


def downgrade() -> None:
    run((_DROP_POLICIES,))
    for table in _TABLES:
        run(
            (
                f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY",
                f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY",
            )
        )
