"""What must hold, and what was found about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import LiteralString


@dataclass(frozen=True, slots=True, kw_only=True)
class Invariant:
    """One thing that must hold, as a query for whatever breaks it.

    One that settles may be broken for a moment, between two steps of somebody else: only what is
    still so on a second look counts.
    """

    id: str
    name: str
    title: str
    settles: bool
    query: LiteralString


@dataclass(frozen=True, slots=True)
class Breach:
    """One row that breaks an invariant: the table, the row's key, and what is wrong with it."""

    place: str
    what: str
    facts: str


class Verdict(Enum):
    """How an invariant was found."""

    HOLDS = "holds"
    BROKEN = "broken"
    UNDECIDED = "undecided"  # the database did not answer within the time there was


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a look at one invariant gave."""

    invariant: Invariant
    verdict: Verdict
    breaches: tuple[Breach, ...] = ()
    has_more: bool = False
    duration_ms: float = 0.0
