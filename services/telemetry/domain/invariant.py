"""Invariants of the database, and findings about them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import LiteralString


@dataclass(frozen=True, slots=True, kw_only=True)
class Invariant:
    """An invariant, as a query for its violations.

    One that settles may be violated for a moment, between two steps of another process: only what
    is still violated on a second look counts.
    """

    id: str
    name: str
    title: str
    settles: bool
    query: LiteralString


@dataclass(frozen=True, slots=True)
class Breach:
    """A row that violates an invariant: the table, the row's key, and the facts."""

    place: str
    what: str
    facts: str


class Verdict(Enum):
    """The result for an invariant."""

    HOLDS = "holds"
    BROKEN = "broken"
    UNDECIDED = "undecided"  # the query timed out


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of checking one invariant."""

    invariant: Invariant
    verdict: Verdict
    breaches: tuple[Breach, ...] = ()
    has_more: bool = False
    duration_ms: float = 0.0
