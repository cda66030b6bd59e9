"""The budget that a run asked for, which its reruns have of it."""

from __future__ import annotations

from migrations.sql import run

revision = "0057"
down_revision = "0056"


def upgrade() -> None:
    run(("ALTER TABLE workflow_executions ADD COLUMN IF NOT EXISTS budget jsonb",))


def downgrade() -> None:
    run(("ALTER TABLE workflow_executions DROP COLUMN budget",))
