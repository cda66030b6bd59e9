"""What runs may consume and have consumed: budgets of runs, and quotas of tenants per day.

What is set for nobody costs nothing: a ledger without a quota and without a budget is false.
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
    """What a tenant may consume per day, and a run of it in all."""

    per_day: Amounts = NOTHING
    per_run: Amounts = NOTHING


@dataclass(slots=True)
class Budget:
    """What a run may consume with all its sub-workflows, and what it has."""

    most: Amounts
    nodes: int = 0
    cpu_us: int = 0
    gb_us: int = 0
    moved_bytes: int = 0

    @property
    def spent(self) -> Failure | None:
        """Why the run ends, once it is used up."""
        used = Amounts(self.nodes, self.cpu_us, self.gb_us, self.moved_bytes)
        found = next(exceeded(self.most, used), None)
        if found is None:
            return None
        return Failure(
            error_type=BUDGET_EXCEEDED,
            message=f"the run's budget of {found} is used up, its sub-workflows' share included",
            retryable=False,
        )


class Ledger:
    """Quotas of all tenants, and budgets of the runs that this orchestrator has."""

    __slots__ = ("budgets", "charged", "quotas")

    def __init__(self) -> None:
        self.quotas: Mapping[UUID, Quota] = {}
        self.budgets: dict[UUID, Budget] = {}
        self.charged: set[UUID] = set()  # tenants, since somebody looked at what they used

    def __bool__(self) -> bool:
        """Whether anything is limited at all."""
        return bool(self.budgets or self.quotas)

    def charge(self, run: Run, root: Run, usage: Usage, t: Transition) -> Failure | None:
        """Count an attempt with the change that ends it; gives why its run ends if that does."""
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
        """Say why a run ends whose tenant used up its day; what it has a budget of it may use."""
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
