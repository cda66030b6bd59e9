"""The planner: what one event changes in one run.

Every function changes the run in place, and adds the rows and commands of the change to a
transition. The cost of an event is proportional to the node's edges, not to the size of the graph.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

from services.orchestrator.domain import groups, retry, routes, waits
from services.orchestrator.domain.commands import AckCommand, AssignCommand
from services.orchestrator.domain.effects import Effects, Stop, Timer
from services.orchestrator.domain.history import attempt_row, error_row, flow_rows, outcome_of
from services.orchestrator.domain.plan import Kind, Phase
from services.orchestrator.domain.records import (
    NO_USAGE,
    Failure,
    NodeRecord,
    Usage,
    detail_of_class,
)
from services.orchestrator.domain.rows import NodeInsert
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import NodeStatus, RunStatus
from services.orchestrator.domain.stopping import kill, why_stopped
from services.orchestrator.domain.transition import Transition, more
from services.orchestrator.domain.values import NodeOutput
from services.orchestrator.domain.waits import Refusal
from services.orchestrator.domain.writes import change_row, complete_row, set_running, touch

DELIVERIES_MAX: Final = 3
LOST: Final = Failure(error_type="runner_lost", message="the runner of the attempt was lost")
OVERDUE: Final = Failure(
    error_type="total_timeout",
    message="all attempts of the node together took longer than its total_timeout",
    retryable=False,
)
NOT_TAKEN: Final = Failure(
    error_type="queue_timeout",
    message="the node did not begin within its queue_timeout: no runner was free, or a limit"
    " delayed it",
    retryable=False,
)


def assign(
    run: Run, slot: int, t: Transition, fx: Effects, *, runner: UUID, alone: bool
) -> NodeRecord:
    """Assign a ready slot to a runner: its row is committed as running before it is sent."""
    record = run.records[slot]
    first = record is None or not record.begun
    token = fx.next_token()
    run.revision += 1
    run.running += 1
    if record is None:
        run.order += 1
        record = NodeRecord(
            id=fx.new_id(), order=run.order, status=NodeStatus.RUNNING, token=token, runner=runner
        )
        run.records[slot] = record
        place = run.place(slot)
        t.node_inserts = more(
            t.node_inserts,
            NodeInsert(
                id=record.id,
                run_id=run.id,
                node_id=run.node_id(slot),
                definition_node_id=place.id,
                node_version_id=place.node_version_id,
                execution_order=record.order,
                max_retries=place.retry.max_retries,
                runner=runner,
                token=token,
                revision=run.revision,
                first=bool(t.run_inserts),
            ),
        )
        record.revision = run.revision
    else:
        guard, record.token, record.runner = record.token, token, runner
        record.forget_usage()
        record.container_id = None
        change_row(run, slot, t, NodeStatus.RUNNING, guard=guard, starts=True)
    if first:
        waits.limit_total(run, slot, fx)
    record.alone = alone
    record.due_ms = record.due_s = None
    set_running(run, t)
    t.begun = more(t.begun, record)
    t.commands.append(AssignCommand(runner, run.id, slot, token))
    touch(run, slot, t)
    return record


def complete(
    run: Run, slot: int, t: Transition, fx: Effects, *, output: NodeOutput, usage: Usage
) -> None:
    """Complete a slot with a result."""
    _over(run, slot, usage, t)
    run.revision += 1
    complete_row(run, slot, t, output, usage)
    flow_rows(run, slot, t, usage, fx.new_id)
    touch(run, slot, t)
    routes.slot_done(run, slot, t, fx, output)
    routes.settle(run, t, fx)


def fail(
    run: Run, slot: int, t: Transition, fx: Effects, *, failure: Failure, usage: Usage
) -> None:
    """Handle a failed attempt: retry it after its backoff, or fail the slot for good."""
    record = _over(run, slot, usage, t)
    run.revision += 1
    record.failure = failure
    record.progress = failure.progress or record.progress
    attempt_row(run, record, t, failure, usage, outcome=outcome_of(failure), new_id=fx.new_id)
    _repeat_or_fail(run, slot, t, fx, failure, usage)
    routes.settle(run, t, fx)


def _repeat_or_fail(
    run: Run, slot: int, t: Transition, fx: Effects, failure: Failure, usage: Usage
) -> None:
    record, policy = run.records[slot], run.place(slot).retry
    assert record is not None
    repeats = retry.takes(policy, failure) and run.is_open(slot)
    if repeats and record.retry_count < policy.max_retries:
        record.retry_count += 1
        record.due_ms = retry.delay_ms(policy, failures=record.retry_count, draw=fx.draw())
        change_row(run, slot, t, NodeStatus.RETRYING, usage=usage)
        fx.timers.append(Timer(run, slot, record.due_ms))
        touch(run, slot, t)
        return
    change_row(run, slot, t, groups.failed_status(run, slot), usage=usage)
    touch(run, slot, t)
    routes.slot_failed(run, slot, t, fx, failure)


def lose(run: Run, slot: int, t: Transition, fx: Effects) -> bool:
    """Handle the loss of an attempt's runner; returns whether the slot may begin again.

    A loss is not a failure of user code. A slot whose runner is lost for the third time, while it
    ran alone, is quarantined.
    """
    record = _over(run, slot, NO_USAGE, None)
    run.revision += 1
    record.delivery_count += 1
    record.failure = LOST
    attempt_row(run, record, t, LOST, NO_USAGE, outcome="lost", new_id=fx.new_id)
    if not run.is_open(slot):
        stopped = groups.failed_status(run, slot)
        if run.is_stopping(slot):
            stopped, record.failure = NodeStatus.CANCELLED, why_stopped(run)
        change_row(run, slot, t, stopped)
        if stopped is not NodeStatus.CANCELLED:
            routes.slot_failed(run, slot, t, fx, LOST)
    elif record.overdue:
        _fail_overdue(run, slot, t, fx, NO_USAGE)
    elif record.delivery_count >= DELIVERIES_MAX and record.alone:
        change_row(run, slot, t, NodeStatus.QUARANTINED)
        routes.slot_failed(run, slot, t, fx, LOST)
    else:
        record.due_ms = 0
        change_row(run, slot, t, NodeStatus.RETRYING)
    touch(run, slot, t)
    routes.settle(run, t, fx)
    return record.status is NodeStatus.RETRYING and run.may_begin(slot)


def hand_back(run: Run, slot: int, t: Transition, fx: Effects) -> bool:
    """Take back an attempt that its runner declined; returns whether the slot may begin again.

    This counts neither as an attempt nor as a delivery.
    """
    record = _over(run, slot, NO_USAGE, None)
    run.revision += 1
    if run.is_open(slot) and record.overdue:
        _fail_overdue(run, slot, t, fx, NO_USAGE)
    elif run.is_open(slot):
        record.due_ms = 0
        change_row(run, slot, t, NodeStatus.RETRYING)
    else:
        record.failure = why_stopped(run) if run.is_stopping(slot) else record.failure
        change_row(run, slot, t, NodeStatus.CANCELLED)
        groups.part_left(run, slot)
    touch(run, slot, t)
    routes.settle(run, t, fx)
    return record.status is NodeStatus.RETRYING and run.may_begin(slot)


def refuse(run: Run, slot: int, t: Transition, fx: Effects, failure: Failure) -> None:
    """Handle a place that can never begin: the run stops as for a failed node.

    A compensation or finally node just fails itself; the others go on.
    """
    if run.place(slot).phase is not Phase.MAIN:
        _never_begin(run, slot, t, fx, failure)
        return
    error_row(run, t, failure, new_id=fx.new_id)
    record = run.records[slot]
    if record is not None and record.status is NodeStatus.RETRYING:
        record.failure = failure  # the row shows what ended it, not the last attempt's failure
    if run.failure is None:
        run.failure = (run.place(slot).id, failure)
        waits.fail_children(run, fx)
    routes.settle(run, t, fx)


def again(run: Run, slot: int, t: Transition, fx: Effects) -> None:
    """Retry a sub-workflow after its backoff."""
    assert run.place(slot).kind is Kind.WORKFLOW
    try:
        waits.begin_child(run, slot, t, fx)
    except Refusal as refusal:
        change_row(run, slot, t, groups.failed_status(run, slot))
        routes.slot_failed(run, slot, t, fx, refusal.failure)
    routes.settle(run, t, fx)


def confirm_stopped(run: Run, slot: int, t: Transition, fx: Effects, *, usage: Usage) -> None:
    """Handle a runner's confirmation that a killed attempt has ended."""
    record = _over(run, slot, usage, t)
    run.revision += 1
    if record.overdue and not run.is_stopping(slot):
        _fail_overdue(run, slot, t, fx, usage)
    else:
        record.failure = why_stopped(run)
        change_row(run, slot, t, NodeStatus.CANCELLED, usage=usage)
        touch(run, slot, t)
    routes.settle(run, t, fx)


def _fail_overdue(run: Run, slot: int, t: Transition, fx: Effects, usage: Usage) -> None:
    record = run.records[slot]
    assert record is not None
    record.overdue = False
    routes.fail_for_good(run, slot, t, fx, OVERDUE, usage=usage)


def take_too_long(run: Run, slot: int, t: Transition, fx: Effects) -> None:
    """Stop a slot at its timeout for all attempts, which is a failure without a retry."""
    record = run.records[slot]
    assert record is not None
    if record.status is NodeStatus.RUNNING and record.killing is None:
        run.revision += 1
        record.overdue = True
        kill(run, slot, t, fx)
    elif record.status is NodeStatus.WAITING and record.child is not None:
        record.overdue = True
        fx.stops.append(Stop(record.child))
    elif record.status is NodeStatus.RETRYING or (
        record.status is NodeStatus.PAUSED and record.begun  # timers go on during a pause
    ):
        run.revision += 1
        routes.fail_for_good(run, slot, t, fx, OVERDUE)
        routes.settle(run, t, fx)


def wait_too_long(run: Run, slot: int, t: Transition, fx: Effects) -> None:
    """Fail a slot at its queue timeout."""
    _never_begin(run, slot, t, fx, NOT_TAKEN)


def _never_begin(run: Run, slot: int, t: Transition, fx: Effects, failure: Failure) -> None:
    """Fail a slot that waits for a runner; a map fails as a whole."""
    record, group = run.records[slot], run.groups.get(slot)
    if group is not None:
        groups.fail(run, group, t, fx, failure)
    elif record is None or record.status is NodeStatus.PENDING:
        routes.refuse(run, slot, t, fx, failure)
    elif record.status is NodeStatus.RETRYING:
        run.revision += 1
        routes.fail_for_good(run, slot, t, fx, failure)
    routes.settle(run, t, fx)


def child_over(run: Run, slot: int, t: Transition, fx: Effects, child: Run) -> None:
    """Handle the end of a sub-workflow's execution."""
    record = run.records[slot]
    if record is None or record.child != child.id or record.status is not NodeStatus.WAITING:
        return
    run.running -= 1
    run.revision += 1
    usage = Usage(
        cpu_us=child.cpu_us,
        memory_peak_bytes=child.memory_peak_bytes,
        io_read_bytes=child.io_read_bytes,
        io_write_bytes=child.io_write_bytes,
    )
    _count(run, record, usage)
    if run.is_stopping(slot):
        record.failure = why_stopped(run)
        change_row(run, slot, t, NodeStatus.CANCELLED, usage=usage)
        touch(run, slot, t)
    elif not run.is_open(slot) and child.failure and _is_parents(child.failure[1]):
        record.failure = child.failure[1]
        change_row(run, slot, t, NodeStatus.CANCELLED, usage=usage)
        groups.part_left(run, slot)
        touch(run, slot, t)
    elif record.overdue and child.status is not RunStatus.COMPLETED:
        _fail_overdue(run, slot, t, fx, usage)
    elif child.status is RunStatus.COMPLETED:
        output = waits.outputs_of(run, slot, child.output_data or "{}")
        complete_row(run, slot, t, output, usage)
        flow_rows(run, slot, t, NO_USAGE, fx.new_id)
        touch(run, slot, t)
        routes.slot_done(run, slot, t, fx, output)
    else:
        record.failure = failure = _failure_of(child)
        attempt_row(run, record, t, failure, usage, outcome="failed", new_id=fx.new_id)
        _repeat_or_fail(run, slot, t, fx, failure, usage)
    routes.settle(run, t, fx)


def _is_parents(failure: Failure) -> bool:
    """Return whether a run failed only because its parent did."""
    return failure.error_type == waits.PARENT_FAILED


def _failure_of(child: Run) -> Failure:
    if child.status is RunStatus.CANCELLED:
        message = f"the run of the sub-workflow was cancelled: execution {child.id}"
        return Failure(error_type="sub_workflow_cancelled", message=message)
    place, failure = child.failure or ("", None)
    where = f"node {place} of " if place else ""
    return Failure(
        error_type=failure.error_type if failure else "sub_workflow_failed",
        message=f"{where}execution {child.id}: {failure.message if failure else 'failed'}",
        stack_trace=failure.stack_trace if failure else "",
        detail=detail_of_class(failure.exception) if failure else None,
    )


def _count(run: Run, record: NodeRecord, usage: Usage) -> None:
    """Record the usage of an attempt, and add it to its run's."""
    record.cpu_us = usage.cpu_us
    record.memory_peak_bytes = usage.memory_peak_bytes
    record.io_read_bytes = usage.io_read_bytes
    record.io_write_bytes = usage.io_write_bytes
    run.cpu_us += usage.cpu_us
    run.memory_peak_bytes = max(run.memory_peak_bytes, usage.memory_peak_bytes)
    run.io_read_bytes += usage.io_read_bytes
    run.io_write_bytes += usage.io_write_bytes


def _over(run: Run, slot: int, usage: Usage, t: Transition | None) -> NodeRecord:
    """Detach an attempt from its runner and record its usage; `t` gets the Ack, if given."""
    record = run.records[slot]
    assert record is not None, "only what has begun can end"
    assert record.status is NodeStatus.RUNNING, record.status
    run.running -= 1
    _count(run, record, usage)
    record.container_id = usage.container_id
    run.container_id = usage.container_id or run.container_id
    record.serialization_us = usage.serialization_us
    if t is not None and record.runner is not None:
        known = record.token if record.killing is None else record.killing
        t.commands.append(AckCommand(record.runner, record.id, known))
    record.killing = None
    return record
