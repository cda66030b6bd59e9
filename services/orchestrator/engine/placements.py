"""Who can start runners, and on what: known while they listen to what waits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.orchestrator.domain.needs import Offer


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """What one of them can start runners on."""

    machines: Sequence[Offer]
    machines_come: bool = False  # of any kind, when something waits for one


class Placements:
    """Those that listen now."""

    def __init__(self) -> None:
        self._listening: list[Placement] = []

    def add(self, placement: Placement) -> None:
        """One has begun to listen."""
        self._listening.append(placement)

    def remove(self, placement: Placement) -> None:
        """One listens no longer."""
        self._listening.remove(placement)

    @property
    def machines_come(self) -> bool:
        """Whether a machine of any kind may come."""
        return any(each.machines_come for each in self._listening)

    def offers(self) -> list[Offer]:
        """Give what runners would offer that can be started."""
        return [offer for each in self._listening for offer in each.machines]
