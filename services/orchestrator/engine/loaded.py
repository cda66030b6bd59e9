"""Open runs as they are loaded, with what else there is to know of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol
from uuid import UUID

from services.orchestrator.domain.children import EndedChild
from services.orchestrator.domain.ledger import Budget, Quota
from services.orchestrator.domain.limits import Claim, Limit
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.transition import Transition


class Loaded:
    """Open runs as their rows say they stand."""

    def __init__(self) -> None:
        self.runs: list[tuple[Run, dict[int, float], float | None]] = []
        self.unlocked: set[UUID] = set()
        self.ended_children: list[EndedChild] = []
        self.limits: list[Limit] = []
        self.held: dict[UUID, Claim] = {}  # places under limits, by the run or node row
        self.quotas: Mapping[UUID, Quota] = {}  # by tenant
        self.budgets: dict[UUID, Budget] = {}  # by run
        self.clock: datetime | None = None  # what the database's showed with the last of the runs
        # Ends of runs whose rows no run can be made of.
        self.given_up: list[Transition] = []


class Load(Protocol):
    """Gives open runs: the named ones, or those of some shards."""

    async def __call__(
        self, *, ids: Sequence[UUID] | None = None, shards: Sequence[int] | None = None
    ) -> Loaded:
        """Give them as their rows stand now."""
