"""The invariants of every Qflow database: one query per file.

A query returns (place, what, facts), all text, for each violation; no rows means that the invariant
holds. The first line of a file holds its id and title.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final, LiteralString

from services.kit.pg import Db, Pool, connection
from services.telemetry.domain.invariant import Breach, Invariant

_FOLDER: Final = Path(__file__).parent
_SETTLES: Final = "-- Settles:"


@cache
def all_invariants() -> tuple[Invariant, ...]:
    """Read all files once; returns the invariants ordered by id."""
    return tuple(
        sorted(
            (_read(path) for path in _FOLDER.glob("*.sql")),
            key=lambda each: (int(each.id[1:]), each.name),
        )
    )


def _read(path: Path) -> Invariant:
    text = path.read_text(encoding="utf-8")
    head, _, rest = text.partition("\n")
    id_, _, title = head.removeprefix("-- ").partition(": ")
    return Invariant(
        id=id_,
        name=path.stem,
        title=title,
        settles=rest.startswith(_SETTLES),
        query=text.rstrip(),
    )


def bounded(invariant: Invariant) -> LiteralString:
    """Return the query with a row limit as its parameter."""
    query = invariant.query
    return f"SELECT place, what, facts FROM (\n{query}\n) AS breach LIMIT $1"  # noqa: S608 - our own files


async def breaches(pool: Pool, invariant: Invariant, *, limit: int) -> list[Breach]:
    """Run one query in its own transaction, under a read-only login; returns the violations."""
    async with connection(pool) as db:
        return await _ask(db, invariant, limit)


async def _ask(db: Db, invariant: Invariant, limit: int) -> list[Breach]:
    rows = await db.fetch(bounded(invariant), limit)
    return [Breach(row["place"], row["what"] or "", row["facts"] or "") for row in rows]
