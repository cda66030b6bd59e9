"""Lists: the indexes of every order, and of a search in names and descriptions.

Under row-level security no operator that might leak is pushed below a policy, so a caller's
statement finds rows by tenant, id, name and time alone. A search is found by the registry's engine
login, whose policy lets everything through: it gives ids, at most so many, and the caller's own
statement says which of those it may see.

search_grams() is what a GIN index of the server's own array operators needs: every three letters in
a row of a text, hashed with whose text it is. So one tenant's search never walks another's rows, no
extension is needed, and letters of every script count (pg_trgm drops those that the locale's C
library does not call letters). Two indexes a table: of each tenant's own rows, and, under the
id of nobody, of those that are shown to everybody.

Figures with 100,000 nodes, 90,000 of them one tenant's: the index has 19 MB beside a table of
98 MB, a row of 90 letters costs 0.2 ms to index, a rare word is found in 0.5 ms where reading all
rows takes 300.
"""

from __future__ import annotations

from migrations.sql import run

revision = "0011"
down_revision = "0010"

# Upper and lower case are one, as far as the database's locale knows them. Both sides, what is
# stored and what is looked for, go through this one function.
_GRAMS = """
    CREATE FUNCTION search_grams(whose uuid, body text) RETURNS bigint[]
    LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog
    AS $$
        SELECT array_agg(hashtextextended(a || b || c, hashtextextended(whose::text, 0)))
          FROM (SELECT string_to_array(lower(body), NULL)) AS text (letters),
               unnest(letters, letters[2:], letters[3:]) AS gram (a, b, c)
         WHERE c IS NOT NULL
    $$
"""

_FUNCTION = "search_grams(uuid, text)"
# What a search needs to read of a workflow, and no more.
_SEARCHED = "(id, name, description, tenant_id, is_template)"
_NOBODY = "'00000000-0000-0000-0000-000000000000'::uuid"
_BODY = "name || E'\\n' || COALESCE(description, '')"
_SHOWN = {"python_nodes": "is_template OR is_public", "workflows": "is_template"}

# fastupdate would put off the work to the searches that follow.
_GIN = "USING gin ({}) WITH (fastupdate = off)"
_INDEXES = {
    "name_idx": "(tenant_id, name, id)",
    "updated_at_idx": "(tenant_id, updated_at DESC, id DESC)",
    "search_idx": _GIN.format(f"search_grams(tenant_id, {_BODY})"),
    "shown_name_idx": "(name, id) WHERE {shown}",
    "shown_updated_at_idx": "(updated_at DESC, id DESC) WHERE {shown}",
    "shown_search_idx": _GIN.format(f"search_grams({_NOBODY}, {_BODY})") + " WHERE {shown}",
}


def upgrade() -> None:
    run(
        (
            _GRAMS,
            f"REVOKE ALL ON FUNCTION {_FUNCTION} FROM PUBLIC",
            # Whoever writes a row computes its entries in the index.
            f"GRANT EXECUTE ON FUNCTION {_FUNCTION} TO qflow_api, qflow_engine, qflow_maint",
            f"GRANT SELECT {_SEARCHED} ON workflows TO qflow_registry_engine",
        )
    )
    for table, shown in _SHOWN.items():
        run(
            f"CREATE INDEX {table}_{name} ON {table} {columns.replace('{shown}', shown)}"
            for name, columns in _INDEXES.items()
        )


def downgrade() -> None:
    for table in _SHOWN:
        run(f"DROP INDEX {table}_{name}" for name in _INDEXES)
    run(
        (
            f"REVOKE SELECT {_SEARCHED} ON workflows FROM qflow_registry_engine",
            f"DROP FUNCTION {_FUNCTION}",
        )
    )
