"""Migrate: fill the old rows in batches, then prove the new column whole. Both services run."""

from __future__ import annotations

from alembic import op

from migrations.sql import run

revision = "example_2"
down_revision = "example_1"

_BATCH = 100
# The trigger does the work; each batch commits, so no row is locked for longer than its batch.
# The table is forced under row-level security: a migrating owner who is no superuser does this as a
# role whose policy lets it see all rows.
_BACKFILL = f"""
    UPDATE python_node_tags SET color = color
     WHERE id IN (SELECT id FROM python_node_tags
                   WHERE color_rgb IS NULL AND color IS NOT NULL ORDER BY id LIMIT {_BATCH}
                     FOR UPDATE SKIP LOCKED)
"""

_INDEX = """
    CREATE INDEX CONCURRENTLY python_node_tags_color_rgb_idx ON python_node_tags (color_rgb)
"""


def upgrade() -> None:
    with op.get_context().autocommit_block():
        bind = op.get_bind()
        while bind.exec_driver_sql(_BACKFILL).rowcount:
            pass
        # Left behind where this step was killed: an index that is not valid.
        run(("DROP INDEX CONCURRENTLY IF EXISTS python_node_tags_color_rgb_idx",))
        run((_INDEX,))
    # First for new rows alone, in an instant; then for all, under a lock that lets writers go on.
    run(
        (
            """
            ALTER TABLE python_node_tags
             DROP CONSTRAINT IF EXISTS python_node_tags_color_rgb_check
            """,
            """
            ALTER TABLE python_node_tags ADD CONSTRAINT python_node_tags_color_rgb_check
            CHECK ((color_rgb IS NULL) = (color IS NULL)) NOT VALID
            """,
        )
    )
    with op.get_context().autocommit_block():
        run(("ALTER TABLE python_node_tags VALIDATE CONSTRAINT python_node_tags_color_rgb_check",))


def downgrade() -> None:
    run(
        (
            "ALTER TABLE python_node_tags DROP CONSTRAINT python_node_tags_color_rgb_check",
            "DROP INDEX python_node_tags_color_rgb_idx",
        )
    )
