"""Contract: the old column goes, in a later release, when no service that names it runs."""

from __future__ import annotations

from migrations.sql import run

revision = "example_3"
down_revision = "example_2"


def upgrade() -> None:
    run(
        (
            "ALTER TABLE python_node_tags DROP CONSTRAINT python_node_tags_color_rgb_check",
            "DROP TRIGGER python_node_tags_sync ON python_node_tags",
            "DROP FUNCTION sync_tag_color()",
            "ALTER TABLE python_node_tags DROP COLUMN color",
        )
    )


def downgrade() -> None:
    raise NotImplementedError("a contract is not taken back: restore, or go forward")
