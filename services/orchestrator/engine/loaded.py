"""What is loaded from the rows of open runs, and what else the engine needs for them."""

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
    """Open runs as their rows describe them."""

    def __init__(self) -> None:
        self.runs: list[tuple[Run, dict[int, float], float | None]] = []
        self.unlocked: set[UUID] = set()
        self.ended_children: list[EndedChild] = []
        self.limits: list[Limit] = []
        self.held: dict[UUID, Claim] = {}  # slots held under limits, by run or node execution
        self.quotas: Mapping[UUID, Quota] = {}  # by tenant
        self.budgets: dict[UUID, Budget] = {}  # by run
        self.clock: datetime | None = None  # the database's time when the last run was read
        # The ends of runs whose rows could not be understood.
        self.given_up: list[Transition] = []


class Load(Protocol):
    """Loads open runs: by id, or all of some shards."""

    async def __call__(
        self, *, ids: Sequence[UUID] | None = None, shards: Sequence[int] | None = None
    ) -> Loaded:
        """Return them as their rows are now."""
