"""Which run compensates the effects of a run: the run itself, none any more, or its heir.

The first run that takes such a result over is the heir: no other run made of the same one
compensates it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final
from uuid import UUID

from services.orchestrator.domain.plan import Plan
from services.orchestrator.domain.status import NODE_FINAL, RUN_FINAL, NodeStatus, RunStatus

_UNDID_NOTHING: Final = NODE_FINAL - {NodeStatus.COMPLETED}


class Fate(Enum):
    """What a rerun may do with a result that has a compensation."""

    GONE = auto()  # compensated, or may be by another run: it cannot be kept
    STANDS = auto()  # it can be kept, and is never compensated
    PASSES = auto()  # it can be kept, and the new run compensates it


@dataclass(frozen=True, slots=True)
class Heir:
    """The run that took over the compensations of another."""

    execution_id: UUID
    status: RunStatus
    skipped: Collection[str]  # the compensations that it never runs


@dataclass(frozen=True, slots=True)
class Undoing:
    """The compensations of a run, and its heir, if any."""

    plan: Plan
    status: RunStatus
    compensations: Mapping[int, NodeStatus]  # statuses of those with a row
    heir: Heir | None = None

    def undone(self) -> set[int]:
        """Return the places whose results cannot be kept."""
        return {target for target, _, fate in self._fates() if fate is Fate.GONE}

    def settled(self) -> dict[int, tuple[int, ...]]:
        """Return the compensations that the new run does not run, by place."""
        settled: dict[int, tuple[int, ...]] = {}
        for target, at, fate in self._fates():
            if fate is Fate.STANDS:
                settled[target] = (*settled.get(target, ()), at)
        return settled

    def passed(self) -> set[int]:
        """Return the places whose results the new run compensates, if it keeps them."""
        return {target for target, _, fate in self._fates() if fate is Fate.PASSES}

    def whole(self, maps: Collection[int]) -> set[int]:
        """Return those of these maps that a rerun which completes them compensates as a whole."""
        return {
            target
            for target, at in self._pairs()
            if target in maps and not self._is_undone_here(at)
        }

    def _pairs(self) -> list[tuple[int, int]]:
        targets = ((self.plan.places[at].compensates, at) for at in self.plan.compensations)
        return [(target, at) for target, at in targets if target is not None]

    def _fates(self) -> list[tuple[int, int, Fate]]:
        return [(target, at, self._fate(at)) for target, at in self._pairs()]

    def _is_undone_here(self, at: int) -> bool:
        return self.compensations.get(at, NodeStatus.SKIPPED) not in _UNDID_NOTHING

    def _fate(self, at: int) -> Fate:
        """Return the fate of one compensation's target.

        The effects of a completed run stay, and so do those whose compensation a caller skipped.
        """
        if self._is_undone_here(at):
            return Fate.GONE
        skipped = self.heir is not None and self.plan.places[at].id in self.heir.skipped
        if skipped or self.compensations.get(at) is NodeStatus.SKIPPED:
            return Fate.STANDS
        holder = self.status if self.heir is None else self.heir.status
        if holder is RunStatus.COMPLETED:
            return Fate.STANDS
        if self.heir is not None or holder not in RUN_FINAL:
            return Fate.GONE
        return Fate.PASSES
