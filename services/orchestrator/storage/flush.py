"""The flush: whole transitions of many executions in one statement under the member's fence.

A statement is put together from `flush_parts`, only those that the batch needs: an unused part
would cost its start in every flush. Each combination is one prepared statement, and of most there
are two: where no part has more than one row, as in a chain of nodes, they are plain values, which
cost a third less than arrays of one do.

The fence locks the member's row before anything is written. Without it `engine_check` raises QF002;
where a guarded part found fewer rows than it was given, QF001. Either way nothing of the batch is
written, whatever the parts did: they are one statement.

`stamp` is one time for the whole flush, never before that of the flush before: so a successor
never starts before its predecessor completed, whatever the clock does. It is the statement's own
time, which is the same wherever it is asked.

New rows are not sorted: they come in the order in which they were queued, nearly that of their ids,
and no other flush can wait for an id that only this one knows.
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

# The order of tables is the order of locks: runs before nodes before what hangs on them.
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
_GIVEN: Final = re.compile(r"(?<=FROM |SING )given(?![.])")  # where rows are read, not a column
# The transaction's own time, in the words that need no look-up of a function: what lies ahead is
# told by it as it is, so that a clock that was ahead for a while holds up nothing.
_CLOCK: Final = "CURRENT_TIMESTAMP"
# What follows is never stamped earlier than what came before, whatever the clock did meanwhile.
_STAMP: Final = f"GREATEST({_CLOCK}, $3::timestamptz)"
# The bits of a statement's mask: its parts, what rows are asked besides, of which parts some row is
# unusual, whether each part has one row.
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
    """A statement and its arguments after the fence's three."""

    sql: str
    arguments: list[Any]


@cache
def statement(mask: int) -> str:
    """Put together the statement for the parts whose bits are set."""
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
            # In the list of a SELECT: in FROM each array would be copied to a store of its own.
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
    # Cases are looked at one by one: first the fence, then the guarded parts, each of which is
    # carried out as its rows are asked for. Before anything is written it is known who writes.
    # Parts that nobody asks for a row are carried out after all that.
    return f"""
        WITH {", ".join(parts)}
        SELECT CASE WHEN ({_FENCE}) IS NULL THEN engine_check(0, 0, 0, 'fence')
                    {" ".join(guards)} END,
               {_STAMP} AS at, {_CLOCK} AS clock, {ids} AS started
    """


def _guard(part: Part, due: str, *, single: bool) -> str:
    """Raise where a part wrote fewer rows than are due; of values that is none instead of one."""
    if single:
        found, missed = f"COALESCE((SELECT 1 FROM {part.name}), 0)", "0"
    else:
        found = missed = f"(SELECT count(*) FROM {part.name})"
    return f"WHEN {found} <> {due} THEN engine_check(1, {due}, {missed}, '{part.name}')"


def _literal(value: object) -> str:
    """Write one of the code's own values as SQL has it."""
    return "NULL" if value is None else f"'{value}'"


_fields: Final = attrgetter(*(part.rows for part in PARTS))


def prepare(batch: Sequence[Transition], seal: Seal | None = None) -> Flush:
    """Lay a batch out as values or arrays; `seal` gives what is stored in place of user data."""
    mask = 0
    tables: list[tuple[Part, list[tuple[Any, ...]]]] = []
    by_part = zip(*map(_fields, batch), strict=True)
    for bit, (part, found) in enumerate(zip(PARTS, by_part, strict=True)):
        if not any(found):
            continue
        given = [each for each in found if each]
        if part.once:  # by identity first: they may be ten thousand rows, in hundreds of starts
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
    """Give the columns without those that are usual in all rows, or all; and what the mask has."""
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
    """All arguments of a flush, for one attempt at it: fence, earliest stamp, arrays."""
    return [member_id, epoch, last, *flat(flush.arguments)]
