"""Runners reserved for attempts that may have killed another runner, and what that holds up."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from uuid import UUID

from services.orchestrator.domain.needs import Offer, Wanted, takes


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What attempts keep that run alone, or wait to, because the runner they were on was lost."""

    offers: Sequence[Offer] = ()  # of the runners that take nothing else
    suspects: AbstractSet[str] = frozenset()  # nodes of this run that wait to run alone
    executions: Sequence[UUID] = ()  # others of the tenant that have such attempts, some of them

    def holds_up(self, node_id: str, wanted: Wanted) -> bool:
        """Whether a node that could run waits for this."""
        return node_id in self.suspects or any(takes(offer, wanted) for offer in self.offers)


def situation(kept: Kept, nodes: Sequence[str]) -> str:
    """Say why nodes wait."""
    if kept.suspects >= set(nodes):
        return (
            "they were on a runner that was lost: each runs again alone, once one is empty for it"
        )
    return (
        "a runner that could take them takes nothing else while what was on one that was lost runs"
        " again, each attempt alone"
    )


def way_on(kept: Kept) -> str:
    """Say what helps; a priority does not."""
    if not kept.executions:
        return "wait, or add a runner"
    ids = ", ".join(str(each) for each in kept.executions)
    return f"wait, add a runner, or end with CancelExecution what runs alone: execution {ids}"
