"""Places that need no runner: choices, sleeps, signals and approvals, sub-workflows."""

from __future__ import annotations

import json
from bisect import insort
from collections.abc import Set as AbstractSet
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import msgspec

from services.kit.cel import ExpressionError
from services.orchestrator.domain import failed_edges
from services.orchestrator.domain.effects import Due, Effects, Start, Stop, Timer
from services.orchestrator.domain.history import flow_rows
from services.orchestrator.domain.plan import Kind, Place, Plan
from services.orchestrator.domain.records import NO_USAGE, Failure
from services.orchestrator.domain.rows import RunInsert, SignalWrite
from services.orchestrator.domain.state import Run, Signal
from services.orchestrator.domain.status import NodeStatus, RunStatus
from services.orchestrator.domain.transition import Transition, more
from services.orchestrator.domain.values import NodeOutput, UnconvertedError, UnreadableError
from services.orchestrator.domain.writes import change_row, place_row, touch

SUB_WORKFLOW: Final = "sub_workflow"
PARENT_FAILED: Final = "parent_failed"
CONVERSION_ERROR: Final = "conversion_error"
INPUT_BYTES_MAX: Final = 1024 * 1024
_SLEEP_MS_MAX: Final = 366 * 86_400_000
_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Refusal(Exception):  # noqa: N818  # a failure of the node, not of the engine
    """A place that cannot begin, and why."""

    def __init__(self, error_type: str, message: str) -> None:
        super().__init__(message)
        self.failure = Failure(error_type=error_type, message=message, retryable=False)


def refusal(run: Run, slot: int, error_type: str, error: Exception, where: str = "") -> Refusal:
    """Return the refusal of a place whose inputs cannot be read or converted."""
    if not isinstance(error, UnconvertedError):
        return Refusal(error_type, f"{where}{error}")
    refused = Refusal(CONVERSION_ERROR, str(error))
    refused.failure = failed_edges.named(run, slot, replace(refused.failure, input=error.input))
    return refused


def holds(run: Run, slot: int, place: Place) -> bool:
    """Evaluate a place's condition over its inputs."""
    assert place.condition is not None
    try:
        return place.condition.holds(read_by_condition(run, slot, place.condition.names))
    except (ExpressionError, UnreadableError) as error:
        raise refusal(run, slot, "condition_error", error, "condition: ") from None


def read_by_condition(run: Run, slot: int, names: AbstractSet[str]) -> dict[str, bytes]:
    """Return the inputs of a slot that a condition reads; those without a value are null.

    The node may have a default for them, which the engine does not know.
    """
    return dict.fromkeys(names, b"null") | run.values(slot, names)


def begin(run: Run, slot: int, t: Transition, fx: Effects) -> NodeOutput | None:
    """Begin a slot that needs no runner; returns its output, if it has one at once."""
    place = run.place(slot)
    match place.kind:
        case Kind.CHOICE:
            return _choose(run, slot, t, fx)
        case Kind.SLEEP:
            delay_ms = _delay_ms(run, slot, fx.wall())
            _wait(run, slot, t, fx, delay_ms)
        case Kind.SIGNAL | Kind.APPROVAL:
            return _listen(run, slot, t, fx)
        case Kind.WORKFLOW:
            begin_child(run, slot, t, fx)
        case Kind.PYTHON:
            raise AssertionError(place.id)
    return None


def _wait(run: Run, slot: int, t: Transition, fx: Effects, delay_ms: int | None) -> None:
    place_row(
        run, slot, t, NodeStatus.WAITING, new_id=fx.new_id, token=fx.next_token(), due_ms=delay_ms
    )
    if delay_ms is not None:
        fx.timers.append(Timer(run, slot, delay_ms))


def _choose(run: Run, slot: int, t: Transition, fx: Effects) -> NodeOutput:
    rule = run.place(slot).choice
    assert rule is not None
    taken = rule.default
    try:
        for name, condition in rule.branches:
            if condition.holds(read_by_condition(run, slot, condition.names)):
                taken = name
                break
    except (ExpressionError, UnreadableError) as error:
        raise refusal(run, slot, "condition_error", error, f"branch {name}: ") from None
    output = (json.dumps(taken or "").encode(),)
    record = place_row(
        run,
        slot,
        t,
        NodeStatus.COMPLETED,
        new_id=fx.new_id,
        token=fx.next_token(),
        output=output,
    )
    record.branch = taken or ""
    flow_rows(run, slot, t, NO_USAGE, fx.new_id)
    return output


def _delay_ms(run: Run, slot: int, wall: datetime) -> int:
    """Return how long a sleep lasts, from its input `seconds` or `until`."""
    try:
        values = {name: json.loads(text) for name, text in run.values(slot).items()}
    except (UnreadableError, ValueError) as error:
        raise refusal(run, slot, "sleep_invalid", error) from None
    seconds, until = values.get("seconds"), values.get("until")
    if isinstance(seconds, int | float) and not isinstance(seconds, bool):
        delay_ms = seconds * 1000
    elif isinstance(until, str):
        try:
            moment = datetime.fromisoformat(until)
        except ValueError:
            raise Refusal("sleep_invalid", f"until: {until[:100]} is not a timestamp") from None
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        delay_ms = (moment - wall).total_seconds() * 1000
    else:
        raise Refusal("sleep_invalid", "neither seconds nor until has a value")
    if not delay_ms <= _SLEEP_MS_MAX:  # NaN compares as false
        raise Refusal("sleep_invalid", "a sleep lasts at most 366 days")
    return int(max(0, delay_ms))  # in this order: int() refuses minus infinity


def _listen(run: Run, slot: int, t: Transition, fx: Effects) -> NodeOutput | None:
    """Take a signal that arrived before, or wait for one."""
    place = run.place(slot)
    rule = place.wait
    assert rule is not None
    early = run.signals.get(rule.name) if place.kind is Kind.SIGNAL else None
    if not early:
        _wait(run, slot, t, fx, rule.timeout_ms)
        # In the order of their rows, as after a reload: a slot that was paused has an older row.
        slots = run.waiting.setdefault((place.kind, rule.name), [])
        insort(slots, slot, key=lambda each: _order(run, each))
        return None
    signal = early.popleft()
    if not early:
        del run.signals[rule.name]
    write_signal(run, slot, t, signal, rule.name)
    place_row(
        run,
        slot,
        t,
        NodeStatus.COMPLETED,
        new_id=fx.new_id,
        token=fx.next_token(),
        output=signal.outputs,
    )
    flow_rows(run, slot, t, NO_USAGE, fx.new_id)
    return signal.outputs


def _order(run: Run, slot: int) -> int:
    record = run.records[slot]
    assert record is not None
    return record.order


def write_signal(run: Run, slot: int | None, t: Transition, signal: Signal, name: str) -> None:
    """Write a signal, with the node that took it."""
    payload = b"[" + b",".join(signal.outputs) + b"]"
    t.signals = more(
        t.signals,
        SignalWrite(
            id=signal.id,
            run_id=run.id,
            tenant_id=run.tenant_id,
            name=name,
            payload=payload.decode(),
            sent_by=signal.sent_by,
            node_id=None if slot is None else run.node_id(slot),
        ),
    )


def begin_child(run: Run, slot: int, t: Transition, fx: Effects) -> None:
    """Start a sub-workflow as an execution of its own, in the same shard."""
    child = _child(run, slot, fx.new_id())
    before = run.records[slot]
    first = before is None or not before.begun
    place_row(
        run, slot, t, NodeStatus.WAITING, new_id=fx.new_id, token=fx.next_token(), child=child.id
    )
    if first:
        limit_total(run, slot, fx)
    run.running += 1
    fx.starts.append(Start(child, _child_row(run, slot, child)))


def fail_children(run: Run, fx: Effects) -> None:
    """Stop the sub-workflows of a failed run: nothing new begins in them."""
    for slot, record in enumerate(run.records):
        if record is not None:
            fail_child(run, slot, fx)


def fail_child(run: Run, slot: int, fx: Effects) -> None:
    """Stop the sub-workflow of a slot, if there is one: nothing new begins in it."""
    record = run.records[slot]
    if record is None or record.child is None or record.status is not NodeStatus.WAITING:
        return
    node = run.failure[0] if run.failure is not None else run.place(slot).id
    what = f"node {node} of execution {run.id}" if node else f"execution {run.id}"
    message = f"{what} failed: nobody reads this part of it any more, and nothing new began here"
    failed = Failure(error_type=PARENT_FAILED, message=message, retryable=False)
    fx.stops.append(Stop(record.child, failed=failed))


def limit_total(run: Run, slot: int, fx: Effects) -> None:
    """Set the timer for all attempts of a slot, from its first one on."""
    limit_ms = run.place(slot).total_timeout_ms
    if limit_ms is not None:
        fx.timers.append(Timer(run, slot, limit_ms, Due.TOTAL))


def start_again(run: Run, slot: int, fx: Effects) -> None:
    """Start a sub-workflow whose row was never inserted, with the id chosen before."""
    record = run.records[slot]
    assert record is not None
    assert record.child is not None
    child = _child(run, slot, record.child)
    fx.starts.append(Start(child, _child_row(run, slot, child)))


def _child(run: Run, slot: int, child_id: UUID) -> Run:
    plan = run.place(slot).sub
    assert plan is not None
    values, text = _inputs(run, slot, plan)
    return Run(
        id=child_id,
        plan=plan,
        tenant_id=run.tenant_id,
        created_by=run.created_by,
        status=RunStatus.PENDING,
        input_values=values,
        input_text=text,
        shard=run.shard,
        parent=(run.id, slot),
        options=run.options.of_children(run.id),
    )


def _inputs(run: Run, slot: int, plan: Plan) -> tuple[dict[str, bytes], str]:
    try:
        values = run.values(slot)
    except UnreadableError as error:
        raise refusal(run, slot, "input_too_large", error) from None
    known = {each.name for each in plan.inputs}
    given = {name: value for name, value in values.items() if name in known}
    text = "{" + ",".join(f"{json.dumps(n)}:{v.decode()}" for n, v in given.items()) + "}"
    if len(text.encode()) > INPUT_BYTES_MAX:
        raise Refusal("input_too_large", "the inputs of a sub-workflow take at most 1 MiB")
    return given, text


def _child_row(run: Run, slot: int, child: Run) -> RunInsert:
    plan = child.plan
    return RunInsert(
        id=child.id,
        workflow_id=plan.workflow_id,
        tenant_id=run.tenant_id,
        created_by=run.created_by,
        workflow_version=plan.workflow_version,
        current_version=None,
        pins_id=plan.pins_id,
        shard=child.shard,
        status=RunStatus.PENDING,
        input_data=child.input_text,
        request_id=None,
        request_digest=None,
        python_version=plan.python_version,
        timeout_ms=plan.timeout_ms,
        revision=1,
        parent_execution_id=run.id,
        relation=SUB_WORKFLOW,
        parent_node_id=run.node_id(slot),
        priority=child.options.priority,
        ignores_cache=child.options.ignores_cache,
        traceparent=child.options.traceparent,
    )


def outputs_of(run: Run, slot: int, text: str) -> NodeOutput:
    """Return the outputs of a sub-workflow, in the order of its place."""
    values = _OBJECT.decode(text)
    return tuple(bytes(values.get(name, b"null")) for name in run.place(slot).outputs)


def stop_waiting(run: Run, slot: int, t: Transition, status: NodeStatus) -> None:
    """End a waiting row with a status."""
    run.revision += 1
    forget_waiting(run, slot)
    change_row(run, slot, t, status)
    touch(run, slot, t)


def forget_waiting(run: Run, slot: int) -> None:
    """Remove a slot from those that wait for a signal."""
    place = run.place(slot)
    if place.wait is None:
        return
    word = (place.kind, place.wait.name)
    slots = run.waiting.get(word, [])
    if slot in slots:
        slots.remove(slot)
    if not slots:
        run.waiting.pop(word, None)
