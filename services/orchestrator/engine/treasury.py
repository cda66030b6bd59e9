"""Reserves a run's budget from its tenant's quota before the run begins."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Final
from uuid import UUID

from services.kit.errors import QflowError, QuotaExceeded
from services.kit.pg import Db, Pool, transaction
from services.orchestrator.domain.amounts import NOTHING, Amounts, plain
from services.orchestrator.domain.ledger import Budget, Ledger
from services.orchestrator.domain.state import Run
from services.orchestrator.storage import quota_usage
from services.orchestrator.storage.quota_usage import Refused

_US: Final = 1_000_000
# How many runs one transaction reserves for: other starts of the tenant wait for it.
_TOGETHER: Final = 50
_SECONDS: Final = frozenset({"cpu_seconds_per_day", "gb_seconds_per_day"})


class Treasury:
    """Reserves budgets; the runs of one tenant are served one after the other."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def reserve(
        self, ledger: Ledger, member_id: UUID, wanted: Sequence[tuple[Run, Amounts]]
    ) -> dict[UUID, Budget | QuotaExceeded]:
        """Reserve each run's budget, or return the refusal if too little of the quota is left."""
        told: dict[UUID, Budget | QuotaExceeded] = {}
        for begin in range(0, len(wanted), _TOGETHER):
            try:
                async with transaction(self._pool) as db:
                    for run, asked in wanted[begin : begin + _TOGETHER]:
                        told[run.id] = await _taken(db, ledger, member_id, run, asked)
            except QflowError:
                with suppress(QflowError):  # else the sweep releases it, within a minute
                    await self.release(member_id, told)
                raise
        return told

    async def release(self, member_id: UUID, runs: Collection[UUID]) -> None:
        """Release the budgets of runs that were not started."""
        async with transaction(self._pool) as db:
            for run_id in runs:
                await quota_usage.release(db, member_id, run_id)


async def _taken(
    db: Db, ledger: Ledger, member_id: UUID, run: Run, asked: Amounts
) -> Budget | QuotaExceeded:
    quota = ledger.quotas.get(run.tenant_id)
    most = NOTHING if quota is None else quota.per_run
    amounts = Amounts(*map(_least, asked, most))
    answer = await quota_usage.reserve(db, run.tenant_id, member_id, run.id, amounts)
    return _refused(run.tenant_id, answer) if isinstance(answer, Refused) else answer


def _least(asked: int | None, most: int | None) -> int | None:
    if asked is None or most is None:
        return most if asked is None else asked
    return min(asked, most)


def _refused(tenant_id: UUID, answer: Refused) -> QuotaExceeded:
    unit = _US if answer.by in _SECONDS else 1
    later = (
        "wait until runs have ended, or end some"
        if answer.by == "executions_running"
        else "start it with a smaller budget, or after midnight UTC"
    )
    return QuotaExceeded(
        "QUOTA_EXCEEDED",
        f"the tenant's quota {answer.by} is {plain(answer.most, unit)}, and "
        f"{plain(answer.used, unit)} of it are used or reserved by runs; {later}, or ask an "
        "administrator for more",
        subject=f"tenant/{tenant_id}",
        quota=answer.by,
        limit=plain(answer.most, unit),
        used=plain(answer.used, unit),
    )
