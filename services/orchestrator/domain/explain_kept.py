"""Runners reserved for attempts that may have killed another runner, and what that holds up."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from uuid import UUID

from services.orchestrator.domain.needs import Offer, Wanted, takes


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What is reserved for attempts that must run alone, because their runner was lost."""

    offers: Sequence[Offer] = ()  # of the reserved runners
    suspects: AbstractSet[str] = frozenset()  # nodes of this run that wait to run alone
    executions: Sequence[UUID] = ()  # some other runs of the tenant with such attempts

    def holds_up(self, node_id: str, wanted: Wanted) -> bool:
        """Return whether this is why a ready node waits."""
        return node_id in self.suspects or any(takes(offer, wanted) for offer in self.offers)


def situation(kept: Kept, nodes: Sequence[str]) -> str:
    """Describe why nodes wait."""
    if kept.suspects >= set(nodes):
        return (
            "they were on a runner that was lost: each runs again alone, once one is empty for it"
        )
    return (
        "a runner that could take them takes nothing else while what was on one that was lost runs"
        " again, each attempt alone"
    )


def way_on(kept: Kept) -> str:
    """Describe what helps; a higher priority does not."""
    if not kept.executions:
        return "wait, or add a runner"
    ids = ", ".join(str(each) for each in kept.executions)
    return f"wait, add a runner, or end with CancelExecution what runs alone: execution {ids}"
