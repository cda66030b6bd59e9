"""What a change of a node does to a workflow: two checks of one definition, held side by side."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from uuid import UUID

from services.registry.domain.definition import INFO, Checked, Connection, Finding

SHOWN_MAX: Final = 100


class Impact(StrEnum):
    """What is said of one workflow."""

    NONE = "none"
    CONVERTS = "converts"
    BREAKS = "breaks"


@dataclass(frozen=True, slots=True)
class EdgeChange:
    """An edge that the change has judged otherwise."""

    place: str
    before: Connection
    after: Connection


@dataclass(frozen=True, slots=True)
class Difference:
    """What the change does to a workflow, its edges, and what hinders it since."""

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
    """What starts the version that was looked at, be it by its number or as the current one."""

    schedules: tuple[Starter, ...] = ()
    triggers: tuple[Starter, ...] = ()
    aliases: tuple[str, ...] = ()


UNTOUCHED: Final = Difference(Impact.NONE)


def compare(before: Checked, after: Checked) -> Difference:
    """Tell what the second check of a definition says that the first did not.

    What hinders a start already is not the change's doing; a finding is new by its place and code.
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
