"""What must hold in every database of Qflow: one query each, in a file of its own.

A query gives (place, what, facts), all text, for each thing that breaks it; an empty answer is
health. The first line of a file says its id and what holds.
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
    """Read every file once, in the order of their ids."""
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
    """Give the query with a limit on its rows as its parameter."""
    query = invariant.query
    return f"SELECT place, what, facts FROM (\n{query}\n) AS breach LIMIT $1"  # noqa: S608 - our own files


async def breaches(pool: Pool, invariant: Invariant, *, limit: int) -> list[Breach]:
    """Ask one question in a transaction of its own; the login may write nothing."""
    async with connection(pool) as db:
        return await _ask(db, invariant, limit)


async def _ask(db: Db, invariant: Invariant, limit: int) -> list[Breach]:
    rows = await db.fetch(bounded(invariant), limit)
    return [Breach(row["place"], row["what"] or "", row["facts"] or "") for row in rows]
