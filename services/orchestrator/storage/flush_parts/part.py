"""A part of the flush: rows of one kind, and the SQL that writes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, LiteralString, NamedTuple


class Asked(NamedTuple):
    """Replaces `/*column*/` in the part's SQL, depending on whether any row has a value there."""

    column: str
    clause: LiteralString
    otherwise: LiteralString = ""


@dataclass(frozen=True, slots=True)
class Part:
    """One data-modifying CTE over its rows, which it reads as `given`."""

    name: str
    columns: LiteralString  # name and type of each, in the order of the row's fields
    sql: LiteralString
    rows: str  # the field of a transition that holds its rows
    counted: bool = True  # guarded: fail the flush if any given row is not written
    once: bool = False  # rows shared by many transitions are given once
    of_first: bool = False  # rows of runs inserted by this flush are guarded if the run was
    data: tuple[str, ...] = ()  # columns encrypted if data at rest is
    # Clauses needed only if some row has a value in a certain column.
    asked: tuple[Asked, ...] = ()
    # The usual values of the last columns: constants of the statement if all rows have them.
    usual: tuple[Any, ...] = ()
