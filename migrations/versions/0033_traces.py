"""Of which trace an execution is a part, so that whoever goes on with it after a restart knows."""

from __future__ import annotations

from migrations.sql import run

revision = "0033"
down_revision = "0032"

# Null where traces are not told. The place of a span, as the W3C writes it: version, trace, span,
# flags; a span of zeros where the trace begins with the execution.
_UP = (
    "ALTER TABLE workflow_executions ADD COLUMN traceparent text",
    """
    ALTER TABLE workflow_executions
      ADD CONSTRAINT workflow_executions_traceparent_check
          CHECK (traceparent ~ '^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$') NOT VALID
    """,
    "ALTER TABLE workflow_executions VALIDATE CONSTRAINT workflow_executions_traceparent_check",
)
_DOWN = ("ALTER TABLE workflow_executions DROP COLUMN traceparent",)


def upgrade() -> None:
    """Add the column."""
    run(_UP)


def downgrade() -> None:
    """Remove it."""
    run(_DOWN)
