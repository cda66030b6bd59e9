"""Who may touch which table: each service alone writes its tables, each login only what it needs.

Reading across services is granted where a service needs it, writing is not, but for the two named
exceptions: the engine inserts the error_logs row of an attempt it fails, and fences runner_members.
What says whose a row is, and since when (id, tenant_id, created_by, created_at), no login that acts
for a caller may update. Row-level security (0009) narrows this further for every login.
"""

from __future__ import annotations

from migrations.sql import run

revision = "0008"
down_revision = "0007"

_GROUPS = "qflow_api, qflow_engine, qflow_maint, qflow_auth"
# Everything of a user but the password hash.
_USER = (
    "(id, email, first_name, last_name, role, is_owner, is_active, created_at, updated_at) ON users"
)
# What a reader of states needs of an execution, without its values.
_EXECUTION_STATE = """(id, workflow_id, workflow_version, status, started_at, completed_at, created_at,
    tenant_id, created_by, shard, cancel_requested_at, deadline_at, purge_started_at)
    ON workflow_executions"""
_NODE_STATE = """(id, workflow_execution_id, node_id, definition_node_id, node_version_id, status,
    started_at, completed_at, runner_incarnation, attempt_token, container_id, output_file_id)
    ON node_executions"""

_SCHEMA = (
    # On server 14 anybody may create objects in schema public.
    "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
    f"GRANT USAGE ON SCHEMA public TO {_GROUPS}",
    "REVOKE ALL ON ALL FUNCTIONS IN SCHEMA public FROM PUBLIC",
    f"GRANT EXECUTE ON FUNCTION current_user_id(), current_tenant_id(), current_role_name() TO {_GROUPS}",
    "GRANT EXECUTE ON FUNCTION engine_check(bigint, bigint, bigint, text) TO qflow_engine",
    """
    GRANT EXECUTE ON FUNCTION
        cleanup_old_executions(interval, integer, integer), cleanup_temporary_files(integer),
        cleanup_old_metrics(interval, integer), cleanup_old_error_logs(interval, integer),
        cleanup_old_system_health(interval, integer),
        cleanup_old_file_access_logs(interval, integer), cleanup_old_containers(interval, integer),
        cleanup_expired_sessions(integer), cleanup_expired_idempotency_keys(integer),
        cleanup_sent_outbox_events(interval, integer), cleanup_unused_pins(interval, integer),
        cleanup_dead_engine_members(interval, integer),
        cleanup_dead_runner_members(interval, integer)
    TO qflow_maint
    """,
)

# An event makes another service act. The one kind there is comes from a trigger alone (0010).
_SHARED = (
    "GRANT SELECT ON tenants, type_definitions, type_compatibility TO qflow_api, qflow_engine",
    f"GRANT SELECT {_USER} TO qflow_api, qflow_engine",
)

_REGISTRY = (
    "GRANT UPDATE (first_name, last_name) ON users TO qflow_registry",
    "GRANT SELECT, INSERT ON python_nodes, workflows, idempotency_keys TO qflow_registry",
    """
    GRANT UPDATE (name, description, code, main_function, python_version, dependencies,
        input_types, output_types, is_async, version)
    ON python_nodes TO qflow_registry
    """,
    """
    GRANT UPDATE (name, description, nodes, connections, settings, input_types, output_types,
        python_version, is_active, version)
    ON workflows TO qflow_registry
    """,
    """
    GRANT SELECT, INSERT ON python_node_versions, workflow_versions, node_version_locks
    TO qflow_registry
    """,
    """
    GRANT SELECT, INSERT, DELETE ON
        python_node_tags, python_node_tag_relations, workflow_tags, workflow_tag_relations,
        custom_types
    TO qflow_registry
    """,
    """
    GRANT UPDATE (name, description, color) ON python_node_tags, workflow_tags TO qflow_registry
    """,
    "GRANT UPDATE (name, definition) ON custom_types TO qflow_registry",
    f"GRANT SELECT {_EXECUTION_STATE} TO qflow_registry",
    # The only login that reads password hashes, sessions and service tokens.
    "GRANT SELECT, INSERT, UPDATE ON users TO qflow_registry_auth",
    "GRANT SELECT, INSERT ON tenants TO qflow_registry_auth",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON user_sessions, service_tokens TO qflow_registry_auth",
    "GRANT SELECT ON python_node_versions, python_nodes TO qflow_registry_engine",
    """
    GRANT SELECT, UPDATE (state, lock, lock_digest, error, attempts) ON node_version_locks
    TO qflow_registry_engine
    """,
)

_DEFINITIONS = "python_nodes, python_node_versions, node_version_locks, workflows, workflow_versions, custom_types"
_EXECUTIONS = "workflow_executions, node_executions, node_attempts, node_data_flow, execution_pins"
_RUNNER = "containers, container_dependencies, environments, files, file_access_logs"

_ORCHESTRATOR = (
    f"GRANT SELECT ON {_DEFINITIONS}, {_EXECUTIONS} TO qflow_orchestrator",
    """
    GRANT SELECT ON containers, container_dependencies, environments, files, error_logs,
        performance_metrics, engine_members, engine_shards, runner_members TO qflow_orchestrator
    """,
    f"GRANT SELECT ON {_DEFINITIONS} TO qflow_orchestrator_engine",
    """
    GRANT SELECT, INSERT, UPDATE, DELETE ON
        workflow_executions, node_executions, node_attempts, node_data_flow, execution_pins,
        engine_members
    TO qflow_orchestrator_engine
    """,
    "GRANT SELECT, UPDATE ON engine_shards TO qflow_orchestrator_engine",
    "GRANT SELECT, UPDATE (state, updated_at) ON runner_members TO qflow_orchestrator_engine",
    "GRANT SELECT, INSERT ON error_logs TO qflow_orchestrator_engine",
    "GRANT SELECT ON containers, environments, files TO qflow_orchestrator_engine",
)

_RUNNERS = (
    f"GRANT SELECT ON {_RUNNER} TO qflow_runner",
    "GRANT INSERT ON file_access_logs TO qflow_runner",
    f"GRANT SELECT {_EXECUTION_STATE} TO qflow_runner, qflow_runner_engine",
    f"GRANT SELECT {_NODE_STATE} TO qflow_runner, qflow_runner_engine",
    """
    GRANT SELECT ON python_nodes, python_node_versions, node_version_locks
    TO qflow_runner, qflow_runner_engine
    """,
    "GRANT SELECT ON runner_members TO qflow_runner",
    f"""
    GRANT SELECT, INSERT, UPDATE, DELETE ON {_RUNNER}, runner_members TO qflow_runner_engine
    """,
    "GRANT SELECT ON engine_members, engine_shards TO qflow_runner_engine",
    # The bytes of deleted files are removed by the runner, which then marks the event.
    "GRANT SELECT, UPDATE (sent_at) ON outbox_events TO qflow_runner_engine",
)

_TELEMETRY = (
    f"GRANT SELECT ON {_EXECUTIONS}, containers, container_dependencies TO qflow_telemetry",
    """
    GRANT SELECT ON performance_metrics, error_logs, system_health, runner_members,
        engine_members, engine_shards TO qflow_telemetry
    """,
    f"""
    GRANT SELECT ON {_EXECUTIONS}, {_RUNNER}, performance_metrics, error_logs, system_health,
        outbox_events, idempotency_keys, workflows, workflow_versions, python_nodes,
        python_node_versions, node_version_locks, tenants, type_definitions, type_compatibility,
        engine_members, engine_shards, runner_members
    TO qflow_telemetry_maint
    """,
    f"GRANT SELECT {_USER} TO qflow_telemetry_maint",
    "GRANT SELECT (id, user_id, expires_at, created_at) ON user_sessions TO qflow_telemetry_maint",
    "GRANT INSERT ON performance_metrics, error_logs, system_health TO qflow_telemetry_maint",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON telemetry_watermarks TO qflow_telemetry_maint",
    # Retention: expired rows of everybody, and the mark that hides an execution first. What hangs
    # on a row and is not named goes with it.
    """
    GRANT DELETE ON workflow_executions, node_executions, node_data_flow, execution_pins,
        containers, files, file_access_logs, performance_metrics, error_logs, system_health,
        user_sessions, idempotency_keys, outbox_events, engine_members, runner_members
    TO qflow_telemetry_maint
    """,
    "GRANT UPDATE (purge_started_at) ON workflow_executions TO qflow_telemetry_maint",
)

_LOGINS = """qflow_registry, qflow_registry_auth, qflow_registry_engine, qflow_orchestrator,
    qflow_orchestrator_engine, qflow_runner, qflow_runner_engine, qflow_telemetry,
    qflow_telemetry_maint"""


def upgrade() -> None:
    for statements in (_SCHEMA, _SHARED, _REGISTRY, _ORCHESTRATOR, _RUNNERS, _TELEMETRY):
        run(statements)


def downgrade() -> None:
    everyone = f"{_GROUPS}, {_LOGINS}"
    run(
        (
            f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {everyone}",
            f"REVOKE ALL ON ALL FUNCTIONS IN SCHEMA public FROM {everyone}",
            "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO PUBLIC",
            f"REVOKE ALL ON SCHEMA public FROM {everyone}",
            # CREATE on the schema is not given back to PUBLIC: server 14 alone had given it, to
            # everybody in the database, and whoever wants that back says so.
        )
    )
