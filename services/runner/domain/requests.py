"""Builds attempt requests from definitions, which are sent once, and assignments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from services.runner.domain.attempts import AttemptRequest, Input
from services.runner.domain.frames import Assignment, Definition, Value

_TIMEOUT_DEFAULT_S: Final = 600.0


def request_of(
    definition: Definition,
    assignment: Assignment,
    attempt_s_max: float,
    values: Sequence[Value] | None = None,
) -> AttemptRequest:
    """Return the request; inputs that were pulled separately are in `values`."""
    asked_s = assignment.timeout_s or definition.timeout_s or _TIMEOUT_DEFAULT_S
    given = assignment.values if values is None else values
    inputs = [
        Input(name, value, conversion)
        for (name, conversion), value in zip(definition.inputs, given, strict=False)
        if value is not None
    ]
    return AttemptRequest(
        attempt_ref=assignment.attempt_ref,
        token=assignment.token,
        execution_id=assignment.execution_id,
        tenant_id=definition.tenant_id,
        node_id=definition.node_id,
        node_version_id=definition.node_version_id,
        attempt=assignment.attempt,
        inputs=inputs,
        outputs=definition.outputs,
        timeout_s=min(asked_s, attempt_s_max),
        limits=definition.limits,
        reuse=definition.reuse,
        heartbeat_timeout_s=definition.heartbeat_timeout_s,
        progress=assignment.progress,
        network=definition.network,
        traceparent=assignment.traceparent,
        concurrency=definition.concurrency,
    )
