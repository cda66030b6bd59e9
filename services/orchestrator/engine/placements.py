"""Services that can start runners (such as the Ray dispatcher), while they are connected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.orchestrator.domain.needs import Offer


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """The machines on which one such service can start runners."""

    machines: Sequence[Offer]
    machines_come: bool = False  # whether it adds machines of any kind on demand


class Placements:
    """The services that are connected now."""

    def __init__(self) -> None:
        self._listening: list[Placement] = []

    def add(self, placement: Placement) -> None:
        """Register a service that connected."""
        self._listening.append(placement)

    def remove(self, placement: Placement) -> None:
        """Remove a service that disconnected."""
        self._listening.remove(placement)

    @property
    def machines_come(self) -> bool:
        """Whether any service adds machines on demand."""
        return any(each.machines_come for each in self._listening)

    def offers(self) -> list[Offer]:
        """Return what runners that could be started would offer."""
        return [offer for each in self._listening for offer in each.machines]
