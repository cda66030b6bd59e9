"""The effect of a node's change on a workflow: two checks of one definition compared."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from uuid import UUID

from services.registry.domain.definition import INFO, Checked, Connection, Finding

SHOWN_MAX: Final = 100


class Impact(StrEnum):
    """The effect on one workflow."""

    NONE = "none"
    CONVERTS = "converts"
    BREAKS = "breaks"


@dataclass(frozen=True, slots=True)
class EdgeChange:
    """An edge whose verdict or conversion changes."""

    place: str
    before: Connection
    after: Connection


@dataclass(frozen=True, slots=True)
class Difference:
    """The effect on a workflow, its changed edges, and its new findings."""

    impact: Impact
    edges: tuple[EdgeChange, ...] = ()
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class Starter:
    """A schedule or trigger that starts the workflow."""

    id: UUID
    name: str
    is_paused: bool


@dataclass(frozen=True, slots=True)
class Starters:
    """What starts the examined version, by its number or as the current one."""

    schedules: tuple[Starter, ...] = ()
    triggers: tuple[Starter, ...] = ()
    aliases: tuple[str, ...] = ()


UNTOUCHED: Final = Difference(Impact.NONE)


def compare(before: Checked, after: Checked) -> Difference:
    """Return the differences between two checks of the same definition.

    Findings that existed before are left out; a finding is identified by its place and code.
    """
    known = {(each.place, each.code) for each in before.findings}
    found = [
        each
        for each in after.findings
        if each.severity != INFO and (each.place, each.code) not in known
    ]
    pairs = zip(before.definition.connections, after.definition.connections, strict=True)
    edges = [
        EdgeChange(f"connections[{at}]", old, new)
        for at, (old, new) in enumerate(pairs)
        if (old.verdict, old.conversion) != (new.verdict, new.conversion)
    ]
    impact = Impact.NONE
    if found:
        impact = Impact.BREAKS
    elif edges:
        impact = Impact.CONVERTS
    return Difference(impact, tuple(edges[:SHOWN_MAX]), tuple(found[:SHOWN_MAX]))
