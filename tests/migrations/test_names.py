"""Every name of the seed document is in the migrated database, as what it was."""

from __future__ import annotations

from tests.migrations.seed.parse import names
from tests.support.database import Database

# Widened, never narrowed (S29, S30), and values kept as their exact text (S31).
_WIDENED = {
    ("integer", "bigint"),
    ("numeric(10,4)", "numeric(30,6)"),
    ("jsonb", "json"),
}
_VALUES = {
    ("workflow_executions", "input_data"),
    ("workflow_executions", "output_data"),
    ("node_executions", "input_data"),
    ("node_executions", "output_data"),
}


def test_the_document_is_read_whole() -> None:
    seed = names()
    assert (
        len(seed.columns),
        sum(len(columns) for columns in seed.columns.values()),
        len(seed.indexes),
    ) == (23, 189, 19)
    assert {"cleanup_temporary_files", "cleanup_old_executions", "cleanup_old_metrics"} == (
        seed.functions
    )
    assert len(seed.policies) == 3


def test_every_column_of_the_seed_is_there_with_its_type_or_a_wider_one(migrated: Database) -> None:
    with migrated.connect() as db:
        there = {
            (table, column): kind
            for table, column, kind in db.execute(
                "SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod)"
                "  FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid"
                " WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'"
            )
        }
        for table, columns in names().columns.items():
            for column, written in columns.items():
                wanted = _canonical(written)
                kind = there[table, column]
                assert kind == wanted or (wanted, kind) in _WIDENED, f"{table}.{column}"
                assert ((table, column) in _VALUES) == ((wanted, kind) == ("jsonb", "json"))


def test_every_index_of_the_seed_is_there_on_its_table(migrated: Database) -> None:
    with migrated.connect() as db:
        there: dict[str, str] = dict(
            db.execute(
                "SELECT indexname, tablename FROM pg_indexes WHERE schemaname = 'public'"
            ).fetchall()
        )
    assert names().indexes == {name: there.get(name) for name in names().indexes}


def test_every_function_and_policy_of_the_seed_is_there(migrated: Database) -> None:
    with migrated.connect() as db:
        functions = {
            name
            for (name,) in db.execute(
                "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
            )
        }
        policies: dict[str, str] = dict(
            db.execute(
                "SELECT policyname, tablename FROM pg_policies WHERE schemaname = 'public'"
            ).fetchall()
        )
    assert names().functions <= functions
    assert names().policies == {name: policies.get(name) for name in names().policies}


def _canonical(written: str) -> str:
    """The seed's spelling as PostgreSQL spells it."""
    spelling = written.lower().replace("decimal", "numeric").replace(", ", ",")
    return spelling.replace("varchar", "character varying")
