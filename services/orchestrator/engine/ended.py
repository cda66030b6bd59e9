"""The runs that ended last: for callers that ask for the end a moment after it came."""

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
    """Answers of a few seconds, of a few megabytes in all; whatever is not here is in the rows."""

    def __init__(self) -> None:
        self._by_run: OrderedDict[UUID, _End] = OrderedDict()
        self._size = 0

    def keep(self, run: Run, now: float) -> None:
        """Keep the answer of a run whose end is committed."""
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
        """Say whether a run ended a moment ago, whoever may know how."""
        return run_id in self._by_run

    def find(self, run_id: UUID, tenant_id: UUID, now: float) -> tuple[Execution, Plan] | None:
        """Give the answer of a run of this tenant that ended a moment ago."""
        end = self._by_run.get(run_id)
        if end is None or end.tenant_id != tenant_id or end.until <= now:
            return None
        return end.execution, end.plan
