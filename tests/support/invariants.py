"""What must hold in the database after any fault: the doctor's questions, as a test asks them."""

from __future__ import annotations

from typing import Final, LiteralString

import psycopg

from services.telemetry.storage.invariants import all_invariants

INVARIANTS: Final[dict[str, LiteralString]] = {
    f"{each.id} {each.title}": each.query for each in all_invariants()
}


def broken(connection: psycopg.Connection) -> dict[str, list[tuple[object, ...]]]:
    """Give each invariant that does not hold with the rows that break it."""
    found: dict[str, list[tuple[object, ...]]] = {}
    for name, query in INVARIANTS.items():
        rows = connection.execute(query).fetchall()
        if rows:
            found[name] = rows
    return found
