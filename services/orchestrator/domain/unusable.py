"""Results that cannot be stored, and rows of which no run can be restored."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from uuid import UUID

from services.orchestrator.domain.records import ENGINE_ERROR, Failure
from services.orchestrator.domain.rows import NodeChange, RunChange
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import NodeStatus, RunStatus
from services.orchestrator.domain.transition import Transition, more
from services.orchestrator.domain.values import FileValue

UNREADABLE: Final = "the engine cannot read its rows"


def checked(
    run: Run, slot: int, result: tuple[bytes, ...] | FileValue | Failure
) -> tuple[bytes, ...] | FileValue | Failure:
    """Return the result, or a failure if it cannot be stored.

    Runners check what their sandboxes return; one that does not must not break the engine.
    """
    if isinstance(result, Failure | FileValue):
        return result
    wanted = len(run.place(slot).outputs)
    if len(result) != wanted:
        return _unusable(f"{len(result)} values for {wanted} outputs")
    for value in result:
        try:
            text = value.decode()
        except UnicodeDecodeError:
            return _unusable("a value that is no UTF-8")
        if not text or "\0" in text:
            return _unusable("a value that is no JSON")
    return result


def _unusable(what: str) -> Failure:
    return Failure(error_type="exited", message=f"the runner answered with {what}")


def give_up(
    run_id: UUID,
    revision: int,
    open_nodes: Iterable[tuple[UUID, int]],
    why: str = UNREADABLE,
) -> Transition:
    """Return the transition that ends a run by its rows only, if it cannot be restored or ended."""
    failure = Failure(error_type=ENGINE_ERROR, message=why)
    t = Transition(run_id, revision=revision + 1)
    t.run_changes = more(
        t.run_changes,
        RunChange(
            id=run_id,
            status=RunStatus.FAILED,
            starts=False,
            final=True,
            output_data=None,
            revision=revision + 1,
            cpu_us=0,
            memory_peak_bytes=0,
            container_id=None,
            error_type=failure.error_type,
            error_message=failure.message,
        ),
    )
    for node_id, token in open_nodes:
        t.changes[node_id] = NodeChange(
            id=node_id,
            token=token,
            status=NodeStatus.CANCELLED,
            new_token=token,
            runner=None,
            starts=False,
            final=True,
            due_ms=None,
            retry_count=0,
            delivery_count=0,
            error_type=failure.error_type,
            error_message=failure.message,
            stack_trace=None,
            revision=revision + 1,
            cpu_us=0,
            memory_peak_bytes=0,
            stdout_tail="",
            stderr_tail="",
            container_id=None,
        )
    return t
