"""Searches of one or two letters have an index, and what a search looks up comes in order.

search_letters() gives each letter of a text and each two in a row, hashed as search_grams() hashes
them by threes. Scripts that write a word with one sign or two need it, and so does whatever is
rare: without it such a search reads all rows of a tenant, 0.3 s of 100,000.

Figures with 100,000 nodes, 90,000 of them one tenant's: the index has 18 MB beside the 21 MB of the
other, and a row of 90 letters costs 0.3 ms more to write.
"""

from __future__ import annotations

from alembic import op

from migrations.sql import run

revision = "0036"
down_revision = "0035"

# Repeated as a whole where a migrator was killed while it built an index.
_LETTERS = """
    CREATE OR REPLACE FUNCTION search_letters(whose uuid, body text) RETURNS bigint[]
    LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog
    AS $$
        SELECT array_agg(DISTINCT hashtextextended(piece, hashtextextended(whose::text, 0)))
          FROM (SELECT string_to_array(lower(body), NULL)) AS text (letters),
               unnest(letters, letters[2:]) AS gram (a, b),
               LATERAL (VALUES (a), (a || b)) AS pieces (piece)
         WHERE piece IS NOT NULL
    $$
"""

_FUNCTION = "search_letters(uuid, text)"
# What puts candidates in the order of a list; of nodes the login reads every column already.
_ORDERED = "(created_at, updated_at, deleted_at)"
_NOBODY = "'00000000-0000-0000-0000-000000000000'::uuid"
_BODY = "name || E'\\n' || COALESCE(description, '')"
_SHOWN = {"python_nodes": "is_template OR is_public", "workflows": "is_template"}
# fastupdate would put off the work to the searches that follow.
_INDEXES = {
    "letters_idx": f"(search_letters(tenant_id, {_BODY})) WITH (fastupdate = off)",
    "shown_letters_idx": (
        f"(search_letters({_NOBODY}, {_BODY})) WITH (fastupdate = off) WHERE {{shown}}"
    ),
}


def upgrade() -> None:
    """Make the function, and the indexes while rows are written."""
    run(
        (
            _LETTERS,
            f"REVOKE ALL ON FUNCTION {_FUNCTION} FROM PUBLIC",
            # Whoever writes a row computes its entries in the index.
            f"GRANT EXECUTE ON FUNCTION {_FUNCTION} TO qflow_api, qflow_engine, qflow_maint",
            f"GRANT SELECT {_ORDERED} ON workflows TO qflow_registry_engine",
        )
    )
    with op.get_context().autocommit_block():
        for table, shown in _SHOWN.items():
            for name, of in _INDEXES.items():
                columns = of.replace("{shown}", shown)
                run(
                    (
                        f"DROP INDEX CONCURRENTLY IF EXISTS {table}_{name}",
                        f"CREATE INDEX CONCURRENTLY {table}_{name} ON {table} USING gin {columns}",
                    )
                )


def downgrade() -> None:
    """Take all of it away."""
    for table in _SHOWN:
        run(f"DROP INDEX {table}_{name}" for name in _INDEXES)
    run(
        (
            f"REVOKE SELECT {_ORDERED} ON workflows FROM qflow_registry_engine",
            f"DROP FUNCTION {_FUNCTION}",
        )
    )
