"""A part of the flush: the rows of one kind, and what is written of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, LiteralString, NamedTuple


class Asked(NamedTuple):
    """What the part's text has for `/*column*/`, by whether some row has a value in the column."""

    column: str
    clause: LiteralString
    otherwise: LiteralString = ""


@dataclass(frozen=True, slots=True)
class Part:
    """One data-modifying CTE over `given`, its rows."""

    name: str
    columns: LiteralString  # name and type of each, in the order of the row's fields
    sql: LiteralString
    rows: str  # which field of a transition has its rows
    counted: bool = True  # some given row may find nothing to write, which must not happen
    once: bool = False  # rows that many transitions share are given once
    of_first: bool = False  # those of a run that the flush inserts count where it was started
    data: tuple[str, ...] = ()  # columns with what is sealed where data at rest is
    # What rows with a value in a column are asked besides: left out where no row has one.
    asked: tuple[Asked, ...] = ()
    # What most rows have in the last columns: where all have, it stands in the statement instead.
    usual: tuple[Any, ...] = ()
