"""How places begin, are skipped and end: the consequences of an event within its run.

Steps are taken from a queue rather than by recursion, so that a chain of 10,000 places which end at
once works as any other graph.
"""

from __future__ import annotations

from services.orchestrator.domain import closing, groups, waits
from services.orchestrator.domain.effects import Effects, Ready
from services.orchestrator.domain.ends import End, Verdict, decide, place_over
from services.orchestrator.domain.history import attempt_row, error_row
from services.orchestrator.domain.plan import Kind, Phase
from services.orchestrator.domain.records import NO_USAGE, Failure, Usage
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import NodeStatus
from services.orchestrator.domain.transition import Transition
from services.orchestrator.domain.values import NodeOutput
from services.orchestrator.domain.waits import Refusal
from services.orchestrator.domain.writes import change_row, place_row, touch


def settle(run: Run, t: Transition, fx: Effects) -> None:
    """Apply all immediate consequences, to the end of the run if nothing is left."""
    while True:
        while fx.todo or fx.over:
            while fx.over:
                slot, output, failure = fx.over.popleft()
                if failure is None:
                    slot_done(run, slot, t, fx, output)
                else:
                    slot_failed(run, slot, t, fx, failure)
            if fx.todo:
                consider(run, fx.todo.popleft(), t, fx)
        if not closing.advance(run, t, fx):
            return


def consider(run: Run, place: int, t: Transition, fx: Effects) -> None:
    """Begin or skip a place if its sources allow it and nothing prevents it."""
    record = run.records[place]
    if record is not None and record.status is not NodeStatus.PENDING:
        return
    if not run.may_begin(place):
        return
    phase = run.plan.places[place].phase
    if phase is not Phase.MAIN and place not in run.seeded:
        return  # resumed before its phase, in which `closing` begins it
    if phase is Phase.COMPENSATION:
        begin(run, place, t, fx)
        return
    verdict = decide(run, place)
    if verdict is Verdict.RUN:
        begin(run, place, t, fx)
    elif verdict is Verdict.SKIP:
        skip(run, place, t, fx)


def begin(run: Run, place: int, t: Transition, fx: Effects) -> None:
    """Begin a place that is ready."""
    if run.plan.places[place].direct:
        fx.ready.append(Ready(run, place))
        return
    rule = run.plan.places[place]
    try:
        if rule.condition is not None and not waits.holds(run, place, rule):
            skip(run, place, t, fx)
        elif rule.grouped:
            if groups.begin(run, place, t, fx):
                groups.finish(run, run.groups[place], t, fx)
        elif rule.kind is Kind.PYTHON:
            fx.ready.append(Ready(run, place))
        else:
            output = waits.begin(run, place, t, fx)
            if output is not None:
                slot_done(run, place, t, fx, output)
    except Refusal as refusal:
        refuse(run, place, t, fx, refusal.failure)


def skip(run: Run, place: int, t: Transition, fx: Effects) -> None:
    """Skip a place."""
    place_row(run, place, t, NodeStatus.SKIPPED, new_id=fx.new_id, token=fx.next_token())
    place_over(run, place, fx, End.SKIPPED)


def refuse(run: Run, place: int, t: Transition, fx: Effects, failure: Failure) -> None:
    """Fail a place that could not begin."""
    error_row(run, t, failure, new_id=fx.new_id)
    place_row(
        run,
        place,
        t,
        NodeStatus.FAILED,
        new_id=fx.new_id,
        token=fx.next_token(),
        failure=failure,
    )
    slot_failed(run, place, t, fx, failure)


def fail_for_good(
    run: Run,
    slot: int,
    t: Transition,
    fx: Effects,
    failure: Failure,
    *,
    usage: Usage | None = None,
) -> None:
    """Fail a slot without a retry; with `usage` if that ends an attempt."""
    record = run.records[slot]
    assert record is not None
    record.failure = failure
    if usage is None:
        error_row(run, t, failure, new_id=fx.new_id, record=record)
    else:
        attempt_row(run, record, t, failure, usage, outcome="failed", new_id=fx.new_id)
    change_row(run, slot, t, groups.failed_status(run, slot), usage=usage or NO_USAGE)
    touch(run, slot, t)
    slot_failed(run, slot, t, fx, failure)


def slot_done(run: Run, slot: int, t: Transition, fx: Effects, output: NodeOutput | None) -> None:
    """Pass the completion of a slot on to what waits for it."""
    if run.part(slot) is not None:
        groups.part_over(run, slot, t, fx, output)
        return
    record = run.records[slot]
    branch = record.branch if record is not None else ""
    place_over(run, slot, fx, End.DONE, output, branch=branch)


def slot_failed(run: Run, slot: int, t: Transition, fx: Effects, failure: Failure) -> None:
    """Pass the failure of a slot on to what waits for it; unhandled, it stops the run."""
    if run.part(slot) is not None:
        groups.part_over(run, slot, t, fx, None, failure=failure)
        return
    rule = run.plan.places[slot]
    if not rule.handled and rule.phase is not Phase.COMPENSATION:
        if run.failure is None:
            run.failure = (rule.id, failure)
            if rule.phase is Phase.MAIN:
                waits.fail_children(run, fx)
        if rule.phase is Phase.MAIN:
            return
    place_over(run, slot, fx, End.FAILED)


def revive(run: Run, t: Transition, fx: Effects) -> None:
    """Begin whatever may begin, after a pause or after loading a run."""
    for place in range(len(run.plan.places)):
        if (
            (run.plan.places[place].phase is Phase.MAIN and run.records[place] is None)
            or (place in run.seeded and run.records[place] is None)
            or ((record := run.records[place]) is not None and record.status is NodeStatus.PENDING)
        ):
            fx.todo.append(place)
    for group in list(run.groups.values()):
        group.queued = False
        groups.fill(run, group, t, fx)
    settle(run, t, fx)
