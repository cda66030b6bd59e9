from __future__ import annotations

from tests.support.database import Database
from tests.support.invariants import broken


def test_every_invariant_is_a_query_of_the_schema_and_holds_where_nothing_ran(
    database: Database,
) -> None:
    with database.connect() as connection:
        assert broken(connection) == {}
