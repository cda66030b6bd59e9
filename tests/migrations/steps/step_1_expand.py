"""Expand: a tag's colour also as a number. Old services know nothing of it and need not.

The worked example of docs/migrations.md; it runs in tests alone.
"""

from __future__ import annotations

from migrations.sql import run

revision = "example_1"
down_revision = "0050"

_STATEMENTS = (
    # No default that rewrites the table, no NOT NULL: taken in an instant.
    "ALTER TABLE python_node_tags ADD COLUMN color_rgb integer",
    # What the old service writes appears in the new column, and the other way round.
    """
    CREATE FUNCTION sync_tag_color() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog
    AS $$
    BEGIN
        IF TG_OP = 'INSERT' THEN
            NEW.color_rgb := COALESCE(
                NEW.color_rgb, ('x' || lpad(substr(NEW.color, 2), 8, '0'))::bit(32)::integer);
            NEW.color := COALESCE(NEW.color, '#' || lpad(to_hex(NEW.color_rgb), 6, '0'));
        ELSIF NEW.color IS DISTINCT FROM OLD.color OR NEW.color_rgb IS NULL THEN
            NEW.color_rgb := ('x' || lpad(substr(NEW.color, 2), 8, '0'))::bit(32)::integer;
        ELSIF NEW.color_rgb IS DISTINCT FROM OLD.color_rgb THEN
            NEW.color := '#' || lpad(to_hex(NEW.color_rgb), 6, '0');
        END IF;
        RETURN NEW;
    END $$
    """,
    "REVOKE ALL ON FUNCTION sync_tag_color() FROM PUBLIC",
    """
    CREATE TRIGGER python_node_tags_sync BEFORE INSERT OR UPDATE ON python_node_tags
    FOR EACH ROW EXECUTE FUNCTION sync_tag_color()
    """,
)


def upgrade() -> None:
    run(_STATEMENTS)


def downgrade() -> None:
    run(
        (
            "DROP TRIGGER python_node_tags_sync ON python_node_tags",
            "DROP FUNCTION sync_tag_color()",
            "ALTER TABLE python_node_tags DROP COLUMN color_rgb",
        )
    )
