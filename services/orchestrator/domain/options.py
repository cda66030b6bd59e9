"""Options of a start besides its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

from services.kit import traces
from services.orchestrator.domain.amounts import NOTHING, Amounts


class KeyConflict(StrEnum):
    """Policy of a start while a run with its business key is open."""

    FAIL = "fail"
    USE_EXISTING = "use_existing"
    CANCEL_EXISTING = "cancel_existing"


class KeyReuse(StrEnum):
    """Policy of a start after runs with its business key have ended; checked by the flush."""

    ALLOW = "allow"
    ALLOW_IF_FAILED = "allow_if_failed"
    REJECT = "reject"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The options with which a run was started; they never change."""

    business_key: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    priority: int = 0
    start_at: datetime | None = None
    parent_execution_id: UUID | None = None
    relation: str | None = None
    node_version_id: UUID | None = None  # of a run of a single node, without a workflow
    ignores_cache: bool = False
    traceparent: str | None = None  # W3C trace context of the caller
    budget: Amounts = NOTHING  # as requested; includes sub-workflows

    def of_children(self, execution_id: UUID) -> RunOptions:
        """Return the options of a run's sub-workflows."""
        place = self.traceparent
        if place is None and not self.priority:  # the usual case
            return _NO_CACHE if self.ignores_cache else NO_OPTIONS
        if place is not None:
            place = traces.below(place, traces.execution_span(execution_id))
        return RunOptions(
            priority=self.priority, ignores_cache=self.ignores_cache, traceparent=place
        )


NO_OPTIONS: Final = RunOptions()
_NO_CACHE: Final = RunOptions(ignores_cache=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """The options of a start: those that the run keeps, and those of the start only."""

    options: RunOptions = NO_OPTIONS
    conflict: KeyConflict = KeyConflict.FAIL
    reuse: KeyReuse = KeyReuse.ALLOW
    timeout_ms: int | None = None

    def digest(self) -> str:
        """Return a digest of the options, to compare requests; empty if there are none."""
        if self == NO_WISHES:
            return ""
        kept = self.options
        parts = (
            kept.business_key,
            sorted(kept.labels.items()),
            kept.priority,
            kept.start_at and kept.start_at.isoformat(),
            self.conflict,
            self.reuse,
            self.timeout_ms,
            *(["ignores_cache"] if kept.ignores_cache else []),
            *([tuple(kept.budget)] if kept.budget != NOTHING else []),
        )
        return repr(parts)

    def timeout_within(self, limit_ms: int | None) -> int | None:
        """Return the timeout of the run: as requested, within the workflow's."""
        if self.timeout_ms is None or limit_ms is None:
            return self.timeout_ms or limit_ms
        return min(self.timeout_ms, limit_ms)


NO_WISHES: Final = Wishes()
