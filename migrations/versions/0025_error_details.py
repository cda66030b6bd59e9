"""What user code raised, as data beside the texts: the exception's class and what is behind it."""

from __future__ import annotations

from migrations.sql import run

revision = "0025"
down_revision = "0024"

# json, as the tables keep values: the exact text that the engine wrote. Readers are granted whole
# tables, and the engine as well.
_TABLES = ("node_executions", "node_attempts", "error_logs")


def upgrade() -> None:
    run(f"ALTER TABLE {table} ADD COLUMN error_detail json" for table in _TABLES)


def downgrade() -> None:
    run(f"ALTER TABLE {table} DROP COLUMN error_detail" for table in _TABLES)
