"""Spans of ended runs."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from services.kit import traces
from services.kit.traces import Tracer
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import RunStatus


def told_by(tracer: Tracer) -> Callable[[Run], None]:
    """Return a function that exports the span of a run, from its creation to its end."""

    def tell(run: Run) -> None:
        place = run.options.traceparent
        if place is None or run.created_at is None:
            return
        failed = run.status is RunStatus.FAILED
        error = run.failure[1].error_type if failed and run.failure else "failed"
        workflow = run.plan.workflow_id
        tracer.ended(
            "execution",
            parent=place,
            span_id=traces.execution_span(run.id),
            began_ns=_ns(run.created_at),
            ended_ns=None if run.completed_at is None else _ns(run.completed_at),
            fault=error if failed else "",
            facts={
                "qflow.execution_id": str(run.id),
                "qflow.workflow_id": str(workflow or ""),
                "qflow.status": run.status.value,
            },
        )

    return tell


def _ns(moment: datetime) -> int:
    return round(moment.timestamp() * 1_000_000) * 1000
