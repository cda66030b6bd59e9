"""The registry sees which triggers start a workflow, to say what a change of a node would stop."""

from __future__ import annotations

from migrations.sql import run

revision = "0042"
down_revision = "0041"

# Neither secrets nor inputs: only what tells a trigger and the version that it starts.
_COLUMNS = "(id, name, workflow_id, workflow_version, workflow_alias, paused_at, created_at)"


def upgrade() -> None:
    run((f"GRANT SELECT {_COLUMNS} ON triggers TO qflow_registry",))


def downgrade() -> None:
    run((f"REVOKE SELECT {_COLUMNS} ON triggers FROM qflow_registry",))
