"""The flush: whole transitions of many executions in one statement under the member's fence.

A statement is built from those of `flush_parts` that the batch needs: an unused part would still
have to be started in every flush. Each combination is one prepared statement; most have a second
form for batches in which no part has more than one row, as in a chain of nodes: plain values, which
cost a third less than arrays with one element.

The fence locks the member's row before anything is written. If the member is fenced, `engine_check`
raises QF002; if a guarded part finds fewer rows than it was given, QF001. Either way nothing of the
batch is written, since all parts are one statement.

`stamp` is one timestamp for the whole flush, never earlier than that of the previous flush: so a
node never starts before its predecessor completed, whatever the clock does. It is the statement's
own time, which is the same in all parts.

New rows are not sorted: they are inserted in the order in which they were queued, nearly that of
their ids, and no other flush can wait for an id that only this one knows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from itertools import chain
from operator import attrgetter
from typing import Any, Final, LiteralString, TypeAlias
from uuid import UUID

from services.kit.columns import flat
from services.orchestrator.domain.transition import Transition
from services.orchestrator.storage.flush_parts import amounts, beside, nodes, runs
from services.orchestrator.storage.flush_parts.part import Part

Seal: TypeAlias = Callable[[str], str]
FENCED: Final = "QF002"
GUARD_MISSED: Final = "QF001"
ENGINE_FORMAT: Final = 1

# The order of tables is the order of locks: runs, then nodes, then what refers to them.
PARTS: Final = (
    runs.FOLLOWS,
    runs.RUN_INSERTS,
    runs.RUN_CHANGES,
    nodes.NODE_INSERTS,
    nodes.PLACED,
    nodes.COPIES,
    nodes.COMPLETES,
    nodes.CHANGES,
    beside.ATTEMPTS,
    beside.ERRORS,
    beside.FLOWS,
    beside.SIGNALS,
    beside.SLOT_USES,
    beside.SLOT_FREES,
    beside.FILE_USES,
    amounts.CHARGES,
    amounts.SPENDS,
)

_FENCE: Final[LiteralString] = """
    SELECT 1 FROM engine_members WHERE id = $1 AND epoch = $2 AND state = 'live' FOR UPDATE
"""
_GIVEN: Final = re.compile(r"(?<=FROM |SING )given(?![.])")  # as a row source, not in a column
# The transaction's time, in the form that needs no function look-up. Times in the future, such as
# deadlines, are computed from it, so that a clock that was ahead for a while delays nothing.
_CLOCK: Final = "CURRENT_TIMESTAMP"
# Never earlier than the previous flush, whatever the clock did since.
_STAMP: Final = f"GREATEST({_CLOCK}, $3::timestamptz)"
# The bits of a statement's mask: its parts, their optional clauses, which parts have rows with
# unusual values in the last columns, and whether each part has just one row.
_ASKED: Final = tuple(asked.column for part in PARTS for asked in part.asked)
_UNUSUAL: Final = tuple(part.name for part in PARTS if part.usual)
MASK_BITS: Final = len(PARTS) + len(_ASKED) + len(_UNUSUAL) + 1
_SINGLE: Final = 1 << MASK_BITS - 1


def _bit_asked(column: str) -> int:
    return 1 << len(PARTS) + _ASKED.index(column)


def _bit_unusual(part: Part) -> int:
    return 1 << len(PARTS) + len(_ASKED) + _UNUSUAL.index(part.name)


@dataclass(frozen=True, slots=True)
class Flush:
    """A statement, and its arguments after the first three, which belong to the fence."""

    sql: str
    arguments: list[Any]


@cache
def statement(mask: int) -> str:
    """Build the statement for a mask of parts."""
    at = 4
    parts: list[str] = []
    guards: list[str] = []
    follows, starts, single = mask & 1, mask & 2, mask & _SINGLE
    first = f"(NOT given.first OR given.run_id IN {nodes.STARTED})" if starts else "true"
    for bit, part in enumerate(PARTS):
        if not mask >> bit & 1:
            continue
        columns = [column.split() for column in part.columns.split(",")]
        sql = part.sql.replace("/*stale*/ true", runs.FRESH) if follows else part.sql
        if part.usual and not mask & _bit_unusual(part):
            columns, usual = columns[: -len(part.usual)], columns[-len(part.usual) :]
            for (name, kind), value in zip(usual, part.usual, strict=True):
                sql = re.sub(rf"\bgiven[.]{name}\b", f"{_literal(value)}::{kind}", sql)
        if single:
            values = (f"${at + n}::{kind} AS {name}" for n, (name, kind) in enumerate(columns))
            rows, count = f"(SELECT {', '.join(values)}) AS given", "1"
        else:
            arrays = [f"${at + n}::{kind}[]" for n, (_, kind) in enumerate(columns)]
            # In the SELECT list: in FROM each array would be copied to a tuple store.
            taken = (f"unnest({a}) AS {n}" for a, (n, _) in zip(arrays, columns, strict=True))
            rows = f"(SELECT {', '.join(taken)}) AS given"
            count = f"cardinality({arrays[0]})"
        for asked in part.asked:
            clause = asked.clause if mask & _bit_asked(asked.column) else asked.otherwise
            sql = sql.replace(f"/*{asked.column}*/", clause)
        sql = sql.replace("/*first*/ true", first)
        sql = sql.replace("stamp.at", _STAMP).replace("clock.at", _CLOCK)
        parts.append(f"{part.name} AS ({_GIVEN.sub(rows, sql)})")
        if part.counted:
            due = f"(SELECT count(*) FROM {rows} WHERE {first})" if part.of_first else count
            guards.append(_guard(part, due, single=bool(single)))
        at += len(columns)
    ids = "ARRAY(SELECT id FROM started)" if starts else "NULL::uuid[]"
    # The cases are evaluated one by one: first the fence, so that nothing is written without it,
    # then the guarded parts, each executed as its rows are counted. Parts of which no row is read
    # are executed after all that.
    return f"""
        WITH {", ".join(parts)}
        SELECT CASE WHEN ({_FENCE}) IS NULL THEN engine_check(0, 0, 0, 'fence')
                    {" ".join(guards)} END,
               {_STAMP} AS at, {_CLOCK} AS clock, {ids} AS started
    """


def _guard(part: Part, due: str, *, single: bool) -> str:
    """Return the case that raises if a part wrote fewer rows than it was given."""
    if single:
        found, missed = f"COALESCE((SELECT 1 FROM {part.name}), 0)", "0"
    else:
        found = missed = f"(SELECT count(*) FROM {part.name})"
    return f"WHEN {found} <> {due} THEN engine_check(1, {due}, {missed}, '{part.name}')"


def _literal(value: object) -> str:
    """Return one of the code's own constants as SQL."""
    return "NULL" if value is None else f"'{value}'"


_fields: Final = attrgetter(*(part.rows for part in PARTS))


def prepare(batch: Sequence[Transition], seal: Seal | None = None) -> Flush:
    """Lay a batch out as values or arrays; `seal` encrypts user data."""
    mask = 0
    tables: list[tuple[Part, list[tuple[Any, ...]]]] = []
    by_part = zip(*map(_fields, batch), strict=True)
    for bit, (part, found) in enumerate(zip(PARTS, by_part, strict=True)):
        if not any(found):
            continue
        given = [each for each in found if each]
        if part.once:  # by identity first: hundreds of starts may share ten thousand rows
            shared = {id(each): each for each in given}.values()
            rows: Iterable[tuple[Any, ...]] = dict.fromkeys(chain.from_iterable(shared))
        elif isinstance(given[0], dict):
            rows = chain.from_iterable(each.values() for each in given)
        else:
            rows = given[0] if len(given) == 1 else chain.from_iterable(given)
        mask |= 1 << bit
        tables.append((part, list(rows)))
    single = all(len(rows) == 1 for _, rows in tables)
    if single:
        mask |= _SINGLE
    arguments: list[Any] = []
    for part, rows in tables:
        columns, bits = _columns(part, rows)
        mask |= bits
        if seal is not None and part.data:
            columns = _sealed(columns, part, seal)
        arguments.extend(chain.from_iterable(columns) if single else columns)
    return Flush(statement(mask), arguments)


def _columns(part: Part, rows: Sequence[tuple[Any, ...]]) -> tuple[Sequence[Sequence[Any]], int]:
    """Return the columns, without the last ones if all their values are usual, and the mask bit."""
    columns = list(zip(*rows, strict=True))
    if not part.usual:
        return columns, 0
    last = columns[-len(part.usual) :]
    if all(
        column.count(value) == len(rows) for column, value in zip(last, part.usual, strict=True)
    ):
        return columns[: -len(part.usual)], 0
    bits = _bit_unusual(part)
    for asked in part.asked:
        if any(getattr(row, asked.column) is not None for row in rows):
            bits |= _bit_asked(asked.column)
    return columns, bits


def _sealed(columns: Sequence[Sequence[Any]], part: Part, seal: Seal) -> Sequence[Sequence[Any]]:
    names = [column.split()[0] for column in part.columns.split(",")]
    return [
        [None if each is None else seal(each) for each in values] if name in part.data else values
        for name, values in zip(names, columns, strict=False)  # the last ones may be left out
    ]


def arguments(flush: Flush, member_id: UUID, epoch: int, last: datetime) -> list[Any]:
    """Return all arguments for one attempt at a flush: fence, earliest stamp, values or arrays."""
    return [member_id, epoch, last, *flat(flush.arguments)]
