"""What a run waits for: words from outside, and the executions of its sub-workflows.

A signal is kept from the moment it is accepted; `node_id` says who took it, null while nobody did.
"""

from __future__ import annotations

from migrations.sql import run

revision = "0017"
down_revision = "0016"

_TABLES = (
    # The execution that runs a node's sub-workflow, and from there the node it runs for. No foreign
    # keys: the two rows may be written by two flushes, and retention takes each run by itself.
    "ALTER TABLE node_executions ADD COLUMN child_execution_id uuid",
    "ALTER TABLE workflow_executions ADD COLUMN parent_node_id text",
    """
    CREATE TABLE execution_signals (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        workflow_execution_id uuid NOT NULL REFERENCES workflow_executions(id) ON DELETE CASCADE,
        tenant_id uuid NOT NULL DEFAULT current_tenant_id() REFERENCES tenants(id),
        name varchar(63) NOT NULL,
        payload json NOT NULL,
        sent_by uuid NOT NULL,
        node_id varchar(255),
        created_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    """
    CREATE INDEX execution_signals_workflow_execution_id_idx
        ON execution_signals (workflow_execution_id, created_at, id)
    """,
    "CREATE INDEX execution_signals_tenant_id_idx ON execution_signals (tenant_id)",
    "ALTER TABLE execution_signals ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE execution_signals FORCE ROW LEVEL SECURITY",
)

_POLICIES = (
    """
    CREATE POLICY execution_signals_api_select ON execution_signals FOR SELECT TO qflow_api
     USING (tenant_id = (SELECT current_tenant_id()))
    """,
    "CREATE POLICY execution_signals_engine_select ON execution_signals FOR SELECT TO qflow_engine USING (true)",
    "CREATE POLICY execution_signals_engine_insert ON execution_signals FOR INSERT TO qflow_engine WITH CHECK (true)",
    """
    CREATE POLICY execution_signals_engine_update ON execution_signals FOR UPDATE TO qflow_engine
     USING (true) WITH CHECK (true)
    """,
)

_GRANTS = (
    "GRANT SELECT ON execution_signals TO qflow_orchestrator",
    "GRANT SELECT, INSERT ON execution_signals TO qflow_orchestrator_engine",
    "GRANT UPDATE (node_id) ON execution_signals TO qflow_orchestrator_engine",
)


def upgrade() -> None:
    run(_TABLES)
    run(_POLICIES)
    run(_GRANTS)


def downgrade() -> None:
    run(
        (
            "DROP TABLE execution_signals",
            "ALTER TABLE workflow_executions DROP COLUMN parent_node_id",
            "ALTER TABLE node_executions DROP COLUMN child_execution_id",
        )
    )
