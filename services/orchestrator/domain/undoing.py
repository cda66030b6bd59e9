"""Which run has to undo what a run did: that run, none any more, or the one that takes it over.

The first run that takes such a result over has it: no other run made of the same one undoes it.
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
    """What becomes of a result that has a compensation, for a run that is made of its run."""

    GONE = auto()  # it is undone, or may be by another: it cannot be kept
    STANDS = auto()  # it can be kept, and nobody undoes it any more
    PASSES = auto()  # it can be kept, and is the new run's to undo


@dataclass(frozen=True, slots=True)
class Heir:
    """The run that took over what another left to undo."""

    execution_id: UUID
    status: RunStatus
    skipped: Collection[str]  # the compensations that it does not make, whatever becomes of it


@dataclass(frozen=True, slots=True)
class Undoing:
    """How the compensations of a run stand, and who has them by now."""

    plan: Plan
    status: RunStatus
    compensations: Mapping[int, NodeStatus]  # those that have a row
    heir: Heir | None = None

    def undone(self) -> set[int]:
        """Give the places whose results are gone."""
        return {target for target, _, fate in self._fates() if fate is Fate.GONE}

    def settled(self) -> dict[int, tuple[int, ...]]:
        """Give the compensations that the new run does not make, by place."""
        settled: dict[int, tuple[int, ...]] = {}
        for target, at, fate in self._fates():
            if fate is Fate.STANDS:
                settled[target] = (*settled.get(target, ()), at)
        return settled

    def passed(self) -> set[int]:
        """Give the places whose results are the new run's to undo, if it keeps them."""
        return {target for target, _, fate in self._fates() if fate is Fate.PASSES}

    def whole(self, maps: Collection[int]) -> set[int]:
        """Give those of these maps that a run which completes them undoes as a whole."""
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
        """Tell of one compensation.

        What a run that completed did is nobody else's to undo, nor what it took over so itself; and
        whoever skipped a compensation wanted that to stay.
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
