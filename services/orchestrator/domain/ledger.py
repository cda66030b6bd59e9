"""Budgets of runs and daily quotas of tenants, and what is used of them.

A ledger without any is false, so that unlimited deployments skip the checks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple
from uuid import UUID

from services.orchestrator.domain.amounts import NOTHING, Amounts, exceeded
from services.orchestrator.domain.records import Failure, Usage
from services.orchestrator.domain.rows import Charge, Spend
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.transition import Transition, more

BUDGET_EXCEEDED: Final = "budget_exceeded"
QUOTA_EXCEEDED: Final = "quota_exceeded"


class Quota(NamedTuple):
    """What a tenant may consume per day, and one of its runs in total."""

    per_day: Amounts = NOTHING
    per_run: Amounts = NOTHING


@dataclass(slots=True)
class Budget:
    """What a run may consume, including its sub-workflows, and what it has consumed."""

    most: Amounts
    nodes: int = 0
    cpu_us: int = 0
    gb_us: int = 0
    moved_bytes: int = 0

    @property
    def spent(self) -> Failure | None:
        """Return the failure of the run if the budget is used up."""
        used = Amounts(self.nodes, self.cpu_us, self.gb_us, self.moved_bytes)
        found = next(exceeded(self.most, used), None)
        if found is None:
            return None
        return Failure(
            error_type=BUDGET_EXCEEDED,
            message=f"the run's budget of {found} is used up, including by its sub-workflows",
            retryable=False,
        )


class Ledger:
    """Quotas of all tenants, and budgets of the runs in memory."""

    __slots__ = ("budgets", "charged", "quotas")

    def __init__(self) -> None:
        self.quotas: Mapping[UUID, Quota] = {}
        self.budgets: dict[UUID, Budget] = {}
        self.charged: set[UUID] = set()  # tenants charged since their usage was last read

    def __bool__(self) -> bool:
        """Whether there is any quota or budget."""
        return bool(self.budgets or self.quotas)

    def charge(self, run: Run, root: Run, usage: Usage, t: Transition) -> Failure | None:
        """Charge an ended attempt; returns the failure of its run if that used up the budget."""
        gb_us = usage.memory_peak_bytes * usage.took_us >> 30
        if run.tenant_id in self.quotas:
            charge = Charge(run.tenant_id, usage.cpu_us, gb_us, usage.moved_bytes)
            t.charges = more(t.charges, charge)
            self.charged.add(run.tenant_id)
        budget = self.budgets.get(root.id)
        if budget is None:
            return None
        budget.nodes += 1
        budget.cpu_us += usage.cpu_us
        budget.gb_us += gb_us
        budget.moved_bytes += usage.moved_bytes
        spend = Spend(root.id, 1, usage.cpu_us, gb_us, usage.moved_bytes, over=False)
        t.spends = more(t.spends, spend)
        return budget.spent

    def overdrawn(self, run: Run, used: Amounts) -> Failure | None:
        """Return the failure of a run whose tenant used up its quota, unless budgeted."""
        quota = self.quotas.get(run.tenant_id)
        if quota is None:
            return None
        budget = self.budgets.get(run.id)
        promised = budget.most if budget is not None else NOTHING
        open_ended = Amounts(
            *(
                most if held is None else None
                for most, held in zip(quota.per_day, promised, strict=True)
            )
        )
        found = next(exceeded(open_ended, used), None)
        if found is None:
            return None
        return Failure(
            error_type=QUOTA_EXCEEDED,
            message=f"the tenant's quota of {found} a day is used up",
            retryable=False,
        )
