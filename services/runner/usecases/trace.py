"""Spans of attempts, and of the builds that they wait for."""

from __future__ import annotations

from collections.abc import Callable

from services.kit import traces
from services.kit.traces import Tracer
from services.runner.domain.attempts import AttemptRequest
from services.runner.domain.outcome import Outcome

# Called for a finished attempt if traces are exported: request, outcome, start in ns.
Trace = Callable[[AttemptRequest, Outcome, int], None]


def place_of(request: AttemptRequest) -> str:
    """Return an attempt's place in the trace of its run."""
    span_id = traces.attempt_span(request.attempt_ref, request.token)
    return traces.below(request.traceparent, span_id)


def told_by(tracer: Tracer) -> Trace:
    """Return a function that exports the span of an attempt."""

    def tell(request: AttemptRequest, outcome: Outcome, began_ns: int) -> None:
        tracer.ended(
            f"node {request.node_id}",
            parent=request.traceparent,
            span_id=traces.attempt_span(request.attempt_ref, request.token),
            began_ns=began_ns,
            fault=outcome.error.type.value if outcome.error else "",
            facts={
                "qflow.execution_id": str(request.execution_id),
                "qflow.node_id": request.node_id,
                "qflow.node_version_id": str(request.node_version_id),
                "qflow.attempt": request.attempt,
                "qflow.cpu_us": outcome.usage.cpu_us,
                "qflow.memory_peak_bytes": outcome.usage.memory_peak_bytes,
            },
        )

    return tell


def tell_build(request: AttemptRequest, began_ns: int, *, packages: int) -> None:
    """Export the span of an environment build that an attempt waited for, if traces are on."""
    tracer = traces.tracer()
    if tracer is not None:
        tracer.ended(
            "environment build",
            parent=place_of(request),
            span_id=traces.new_span(),
            began_ns=began_ns,
            facts={"qflow.packages": packages},
        )
