"""How many elements the lists in a file have, so that a map begins without reading it.

The runner that writes a file counts them. Rows that exist need no change: what was not counted is
not mapped over, as before.
"""

from __future__ import annotations

from migrations.sql import run

revision = "0020"
down_revision = "0019"

_UP = (
    "ALTER TABLE files ADD COLUMN element_counts jsonb",
    """
    ALTER TABLE files ADD CONSTRAINT files_element_counts_check
        CHECK (jsonb_typeof(element_counts) = 'object') NOT VALID
    """,
    "ALTER TABLE files VALIDATE CONSTRAINT files_element_counts_check",
)
_DOWN = ("ALTER TABLE files DROP COLUMN element_counts",)


def upgrade() -> None:
    """Add the column."""
    run(_UP)


def downgrade() -> None:
    """Remove it."""
    run(_DOWN)
