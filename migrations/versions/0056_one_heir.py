"""Who has what a run left to undo: the first run that took it over, and no other."""

from __future__ import annotations

from alembic import op

from migrations.sql import run

revision = "0056"
down_revision = "0055"

_INDEX = "workflow_executions_undoes_parent_key"


def upgrade() -> None:
    run(("ALTER TABLE workflow_executions ADD COLUMN IF NOT EXISTS undoes_parent boolean",))
    with op.get_context().autocommit_block():
        # Left behind where this was killed: an index that is not valid.
        run((f"DROP INDEX CONCURRENTLY IF EXISTS {_INDEX}",))
        run(
            (
                f"""
                CREATE UNIQUE INDEX CONCURRENTLY {_INDEX}
                    ON workflow_executions (parent_execution_id) WHERE undoes_parent
                """,
            )
        )


def downgrade() -> None:
    run(("ALTER TABLE workflow_executions DROP COLUMN undoes_parent",))
