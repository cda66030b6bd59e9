"""What must hold in the database after any fault: the doctor's questions, as a test asks them."""

from __future__ import annotations

from typing import Final, LiteralString

import psycopg

from services.telemetry.storage.invariants import all_invariants

INVARIANTS: Final[dict[str, LiteralString]] = {
    f"{each.id} {each.title}": each.query for each in all_invariants()
}


# Of the runs themselves, which hold also when no orchestrator runs; the others look at members,
# at definitions and at the catalogue.
OF_RUNS: Final = tuple(
    name
    for name in INVARIANTS
    if name.split()[0] in {f"I{number}" for number in (*range(1, 11), 32, 34, 36)}
    and not name.startswith("I9 a shard")
)


def broken(
    connection: psycopg.Connection, *, of: tuple[str, ...] = ("I",)
) -> dict[str, list[tuple[object, ...]]]:
    """Give each invariant that does not hold with the rows that break it."""
    found: dict[str, list[tuple[object, ...]]] = {}
    for name, query in INVARIANTS.items():
        if not name.startswith(of):
            continue
        rows = connection.execute(query).fetchall()
        if rows:
            found[name] = rows
    return found
