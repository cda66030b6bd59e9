"""Passes the end of a place on to the places that wait for it."""

from __future__ import annotations

import json
from enum import Enum, auto

from services.orchestrator.domain.effects import Effects
from services.orchestrator.domain.plan import Kind, Phase, Place
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.values import NodeOutput


class End(Enum):
    """How a node ended, for those that depend on it."""

    DONE = auto()
    SKIPPED = auto()
    FAILED = auto()


class Verdict(Enum):
    """What a place may do, given its sources."""

    RUN = auto()
    SKIP = auto()
    WAIT = auto()


def place_over(
    run: Run,
    place: int,
    fx: Effects,
    end: End,
    output: NodeOutput | None = None,
    *,
    branch: str = "",
) -> None:
    """Record the end of a place: keep its output while it is needed, and update its children."""
    plan = run.plan
    main = plan.places[place].phase is Phase.MAIN
    run.done += main
    if output is not None and run.keep[place]:
        run.outputs[place] = output
    release_inputs(run, place)
    if end is End.DONE and main and plan.plain[place]:
        remaining, active, direct = run.remaining, run.active, plan.direct
        for child in plan.children[place]:
            remaining[child] -= 1
            active[child] += 1
            if remaining[child] == 0 or not direct[child]:
                fx.todo.append(child)
        return
    count_end(run, place, end, branch)
    if main:
        fx.todo.extend(plan.children[place])


def branch_of(place: Place, output: NodeOutput | None) -> str:
    """Return the branch that a choice took, from its output; empty if that names none."""
    if place.kind is not Kind.CHOICE or not isinstance(output, tuple):
        return ""
    taken = json.loads(output[0])
    return taken if isinstance(taken, str) else ""


def count_end(run: Run, place: int, end: End, branch: str) -> None:
    """Count the end of a place at each child, as an active source or an inactive one."""
    for link in run.plan.links[place]:
        run.remaining[link.child] -= 1
        if end is End.FAILED:
            active = link.failure
            if link.only_failure:
                run.called.add(link.child)
            run.broken[link.child] = run.broken[link.child] or not active
        else:
            active = end is End.DONE and (link.done or branch in link.branches)
            if link.branches and not link.done and not active:
                run.broken[link.child] = True  # it is on a branch that was not taken
        run.active[link.child] += active


def decide(run: Run, place: int) -> Verdict:
    """Return what a place may do, given its sources so far."""
    rule = run.plan.places[place]
    left, active = run.remaining[place], run.active[place]
    if rule.needed is not None:
        if active >= rule.needed:
            return Verdict.RUN
        return Verdict.WAIT if active + left >= rule.needed else Verdict.SKIP
    if left:
        return Verdict.WAIT
    if rule.all_done or not run.plan.parents[place]:
        return Verdict.RUN
    if run.broken[place] or not active or (rule.rescues and place not in run.called):
        return Verdict.SKIP
    return Verdict.RUN


def release_inputs(run: Run, place: int) -> None:
    """Drop outputs that nothing reads any more."""
    for source in {binding.source for binding in run.plan.places[place].inputs}:
        if source >= 0:
            run.keep[source] -= 1
            if run.keep[source] == 0:
                run.outputs.pop(source, None)
