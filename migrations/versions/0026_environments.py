"""Environments as callers see them: an id, what is in them, and that they may have gone again.

The runner reads, as its caller, which nodes a workflow has; so it can build ahead of the first run.
"""

from __future__ import annotations

from migrations.sql import run

revision = "0026"
down_revision = "0025"

_UP = (
    """
    ALTER TABLE environments
        ADD COLUMN id uuid NOT NULL DEFAULT gen_random_uuid(),
        ADD COLUMN package_count integer NOT NULL DEFAULT 0
            CONSTRAINT environments_package_count_check CHECK (package_count >= 0),
        ADD COLUMN build_ms bigint CONSTRAINT environments_build_ms_check CHECK (build_ms >= 0),
        ADD COLUMN bom json,
        ADD COLUMN runner_incarnation uuid,
        DROP CONSTRAINT environments_state_check,
        ADD CONSTRAINT environments_state_check
            CHECK (state IN ('building', 'ready', 'failed', 'evicted'))
    """,
    "CREATE UNIQUE INDEX environments_id_key ON environments (id)",
    """
    CREATE INDEX environments_tenant_id_created_at_idx
        ON environments (tenant_id, created_at DESC, id DESC)
    """,
    "DROP INDEX environments_tenant_id_idx",
    """
    CREATE INDEX environments_building_idx ON environments (runner_incarnation)
     WHERE state = 'building'
    """,
    "GRANT SELECT ON workflows, workflow_versions TO qflow_runner",
    "GRANT SELECT, INSERT ON idempotency_keys TO qflow_runner",
)

_DOWN = (
    "REVOKE SELECT, INSERT ON idempotency_keys FROM qflow_runner",
    "REVOKE SELECT ON workflows, workflow_versions FROM qflow_runner",
    "DROP INDEX environments_building_idx, environments_tenant_id_created_at_idx",
    "CREATE INDEX environments_tenant_id_idx ON environments (tenant_id, created_at DESC)",
    "DELETE FROM environments WHERE state = 'evicted'",
    """
    ALTER TABLE environments
        DROP COLUMN id, DROP COLUMN package_count, DROP COLUMN build_ms, DROP COLUMN bom,
        DROP COLUMN runner_incarnation,
        DROP CONSTRAINT environments_state_check,
        ADD CONSTRAINT environments_state_check CHECK (state IN ('building', 'ready', 'failed'))
    """,
)


def upgrade() -> None:
    run(_UP)


def downgrade() -> None:
    run(_DOWN)
