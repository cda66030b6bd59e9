"""What a file holds, where it was made, and which edges carried it.

Arrays, tables and pickles travel as files of their own. A pickle must not be opened behind weaker
walls than it was made in, so its file says which those were.
"""

from __future__ import annotations

from migrations.sql import run

revision = "0029"
down_revision = "0028"

_UP = (
    "ALTER TABLE files ADD COLUMN format varchar(16)",
    "ALTER TABLE files ADD COLUMN isolation varchar(2)",
    """
    ALTER TABLE files ADD CONSTRAINT files_format_check
        CHECK (format IN ('npy', 'arrow', 'pickle')) NOT VALID
    """,
    """
    ALTER TABLE files ADD CONSTRAINT files_isolation_check
        CHECK (isolation ~ '^T[0-4]$') NOT VALID
    """,
    """
    ALTER TABLE files ADD CONSTRAINT files_pickle_check
        CHECK (format IS DISTINCT FROM 'pickle'
               OR (workflow_execution_id IS NOT NULL AND isolation IS NOT NULL)) NOT VALID
    """,
    *(
        f"ALTER TABLE files VALIDATE CONSTRAINT files_{name}_check"
        for name in ("format", "isolation", "pickle")
    ),
    "ALTER TABLE node_data_flow DROP CONSTRAINT node_data_flow_data_type_check",
    """
    ALTER TABLE node_data_flow ADD CONSTRAINT node_data_flow_data_type_check
        CHECK (data_type IN ('json', 'pickle', 'file', 'npy', 'arrow')) NOT VALID
    """,
    "ALTER TABLE node_data_flow VALIDATE CONSTRAINT node_data_flow_data_type_check",
)
_DOWN = (
    "ALTER TABLE node_data_flow DROP CONSTRAINT node_data_flow_data_type_check",
    """
    ALTER TABLE node_data_flow ADD CONSTRAINT node_data_flow_data_type_check
        CHECK (data_type IN ('json', 'pickle', 'file')) NOT VALID
    """,
    "ALTER TABLE files DROP COLUMN format, DROP COLUMN isolation",
)


def upgrade() -> None:
    run(_UP)


def downgrade() -> None:
    run(_DOWN)
