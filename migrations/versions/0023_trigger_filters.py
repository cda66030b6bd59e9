"""Filters of triggers: an expression over the payload that says whether a call starts anything."""

from __future__ import annotations

from migrations.sql import run

revision = "0023"
down_revision = "0022"


def upgrade() -> None:
    run(
        (
            """
            ALTER TABLE triggers
                ADD COLUMN filter text NOT NULL DEFAULT ''
                    CONSTRAINT triggers_filter_check CHECK (octet_length(filter) <= 4096),
                ADD COLUMN filtered_count bigint NOT NULL DEFAULT 0
            """,
            "GRANT SELECT (filter, filtered_count), UPDATE (filter) ON triggers TO qflow_orchestrator",
            "GRANT UPDATE (filtered_count) ON triggers TO qflow_orchestrator_engine",
        )
    )


def downgrade() -> None:
    run(("ALTER TABLE triggers DROP COLUMN filter, DROP COLUMN filtered_count",))
