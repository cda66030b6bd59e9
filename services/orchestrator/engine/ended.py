"""A cache of runs that just ended, for callers that ask for the result a moment later."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from services.orchestrator.domain.plan import Plan
from services.orchestrator.domain.state import Run
from services.orchestrator.storage import executions
from services.orchestrator.storage.executions import Execution

_KEPT_S: Final = 5.0
_BYTES_MAX: Final = 8 * 1024 * 1024
_COST_BYTES: Final = 2000


@dataclass(frozen=True, slots=True)
class _End:
    execution: Execution
    plan: Plan
    tenant_id: UUID
    until: float
    size: int


class Ended:
    """Results of the last few seconds, a few megabytes at most; older ones are read from rows."""

    def __init__(self) -> None:
        self._by_run: OrderedDict[UUID, _End] = OrderedDict()
        self._size = 0

    def keep(self, run: Run, now: float) -> None:
        """Add a run whose end is committed, and evict what is too old or too much."""
        size = _COST_BYTES + len(run.input_text) + len(run.output_data or "")
        if size > _BYTES_MAX // 8:
            return
        execution = executions.of_run(run, run.completed_at)
        self._by_run[run.id] = _End(execution, run.plan, run.tenant_id, now + _KEPT_S, size)
        self._size += size
        while self._by_run:
            oldest = next(iter(self._by_run.values()))
            if self._size <= _BYTES_MAX and oldest.until > now:
                break
            self._by_run.popitem(last=False)
            self._size -= oldest.size

    def __contains__(self, run_id: UUID) -> bool:
        """Return whether a run just ended, whichever tenant it belongs to."""
        return run_id in self._by_run

    def find(self, run_id: UUID, tenant_id: UUID, now: float) -> tuple[Execution, Plan] | None:
        """Return the result and plan of a run of this tenant that just ended, if it is here."""
        end = self._by_run.get(run_id)
        if end is None or end.tenant_id != tenant_id or end.until <= now:
            return None
        return end.execution, end.plan
