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
# Values of these travel as files; each is itself, and anything is any.
_TYPES = (
    """
    INSERT INTO type_definitions (id, name, category, python_type, description)
    SELECT ('00000000-0000-4000-8000-' || lpad(number::text, 12, '0'))::uuid,
           name, 'special', python_type, description
      FROM (VALUES
        (60, 'ndarray', 'numpy.ndarray', 'an array of numbers, in a file'),
        (61, 'arrow', 'pyarrow.Table', 'a table, in a file'),
        (62, 'pandas', 'pandas.DataFrame', 'a table, in a file'),
        (63, 'polars', 'polars.DataFrame', 'a table, in a file'),
        (64, 'pickle', 'Annotated[Any, "pickle"]', 'any Python object, in a file of its run alone')
      ) AS t(number, name, python_type, description)
    """,
    """
    INSERT INTO type_compatibility (id, source_type_id, target_type_id, is_compatible)
    SELECT md5('qflow:' || s.name || '>' || t.name)::uuid, s.id, t.id, true
      FROM type_definitions s JOIN type_definitions t ON t.id = s.id OR t.name = 'any'
     WHERE s.name IN ('ndarray', 'arrow', 'pandas', 'polars', 'pickle')
    """,
)
_DOWN = (
    "DELETE FROM type_definitions WHERE name IN ('ndarray', 'arrow', 'pandas', 'polars', 'pickle')",
    "ALTER TABLE node_data_flow DROP CONSTRAINT node_data_flow_data_type_check",
    """
    ALTER TABLE node_data_flow ADD CONSTRAINT node_data_flow_data_type_check
        CHECK (data_type IN ('json', 'pickle', 'file')) NOT VALID
    """,
    "ALTER TABLE files DROP COLUMN format, DROP COLUMN isolation",
)


def upgrade() -> None:
    run(_UP)
    run(_TYPES)


def downgrade() -> None:
    run(_DOWN)
