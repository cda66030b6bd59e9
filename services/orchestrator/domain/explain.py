"""Why a run is in its current state, and what helps: from its rows and the engine's memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

from services.orchestrator.domain import explain_kept, explain_limits
from services.orchestrator.domain.explain_kept import Kept
from services.orchestrator.domain.explain_limits import Limited
from services.orchestrator.domain.needs import (
    Needs,
    Offer,
    Wanted,
    action_for,
    python_of,
    takes,
    unmet,
)
from services.orchestrator.domain.remedies import go_on, remedy
from services.orchestrator.domain.status import NodeStatus, RunStatus

NAMES_MAX: Final = 10
_NOTHING_KEPT: Final = Kept()


class Cause(StrEnum):
    """The kinds of reasons."""

    SCHEDULED = "scheduled"
    CANCELLING = "cancelling"
    PAUSED = "paused"
    NO_RUNNER = "no_runner"
    NO_PYTHON = "no_python"
    NO_FITTING_RUNNER = "no_fitting_runner"
    RUNNERS_FULL = "runners_full"
    RUNNERS_KEPT = "runners_kept"
    ENVIRONMENT_PENDING = "environment_pending"
    RETRY_DUE = "retry_due"
    NODES_RUNNING = "nodes_running"
    RUNNER_SILENT = "runner_silent"
    NODES_WAITING = "nodes_waiting"
    LIMITED = "limited"
    CACHE_ASKED = "cache_asked"
    NOT_HERE = "not_here"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """A reason, with some of the nodes concerned and their number."""

    cause: Cause
    message: str
    action: str = ""
    nodes: tuple[str, ...] = ()
    node_count: int = 0
    time: datetime | None = None
    limit: Limited | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedParts:
    """Failed elements of a failed map: some of them, their number, and the tolerance."""

    names: Sequence[str]
    count: int
    max_failed: int
    max_failed_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """The state of a run."""

    status: RunStatus
    cancel_requested_at: datetime | None = None
    start_at: datetime | None = None
    completed_at: datetime | None = None
    error_type: str | None = None
    error_message: str | None = None
    failed_node_id: str | None = None
    failed_parts: FailedParts | None = None
    failed_child: UUID | None = None  # the sub-workflow in which a node failed
    alone: bool = False  # a run of a single node
    part_of: UUID | None = None  # the parent, if it is a sub-workflow


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """The state of a node with a row."""

    node_id: str
    status: NodeStatus
    started_at: datetime | None = None
    due_at: datetime | None = None
    error_type: str | None = None
    silent: bool = False  # its runner has no stream
    waits_for: str = ""  # what ends its wait; empty for a map or loop
    is_child: bool = False  # a sub-workflow
    is_part: bool = False  # an element or a turn, which callers cannot control
    closes: bool = False  # a compensation or finally node, which runs after a cancel


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A node that is ready but has no runner."""

    node_id: str
    wanted: Wanted
    locked: bool  # waits for its lock file


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What the engine knows of a run; `ready` is None if the run is not in memory."""

    ready: Sequence[Ready] | None
    offers: Sequence[Offer]  # of the attached runners
    coming: Sequence[Offer] = ()  # of runners that a placement service can start
    machines_come: bool = False  # a placement service adds machines of any kind
    kept: Kept = _NOTHING_KEPT
    limited: Sequence[Limited] = ()
    asked: Sequence[str] = ()  # nodes with a pending cache look-up


_SOONER: Final = (
    "wait; PauseNode and then ResumeNode try {node} at once, SkipNode goes on without it"
)


def explain(
    run: RunState, nodes: Iterable[NodeState], situation: Situation, *, now: datetime
) -> list[Reason]:
    """Return the reasons, the most important first; none for a completed run."""
    if run.completed_at is not None:
        return _ended(run)
    if run.cancel_requested_at is not None:
        nodes = list(nodes)
        left = [each for each in nodes if each.closes or each.is_child]
        held = [_paused()] if run.status is RunStatus.PAUSED else []
        return [*held, _cancelling(run, nodes), *_begun(left, now)]
    reasons = [_paused()] if run.status is RunStatus.PAUSED else []
    if run.start_at is not None and run.start_at > now:
        said = "the run is to start at a time that has not come"
        action = "wait, or cancel it and start another"
        scheduled = Reason(cause=Cause.SCHEDULED, message=said, action=action, time=run.start_at)
        return [*reasons, scheduled]
    if run.error_type is not None:
        nodes = [each for each in nodes if _outlasts_failure(each)]
        reasons.append(_failing(run, closes=any(each.closes for each in nodes)))
    if situation.ready is None:
        said = "another orchestrator has the run, or this one is reading it anew"
        reasons.append(Reason(cause=Cause.NOT_HERE, message=said, action="ask again in a moment"))
    elif run.status is not RunStatus.PAUSED:
        reasons += _limited(situation.limited)
        if situation.asked:
            said = "the cache is asked for their results; without an answer they run"
            reasons.append(_about(Cause.CACHE_ASKED, situation.asked, said))
        reasons += _unassigned(situation.ready, situation)
    return reasons + _begun(list(nodes), now)


def _paused() -> Reason:
    said = "the run is paused: nothing new begins"
    return Reason(cause=Cause.PAUSED, message=said, action="let it go on with ResumeExecution")


def _ended(run: RunState) -> list[Reason]:
    if run.status is RunStatus.CANCELLED:
        said, action = "a caller stopped the run", go_on(alone=run.alone)
        if run.part_of is not None:
            said += f", or execution {run.part_of} did, of which it is a part"
            action = f"go on from that one: ExplainExecution of {run.part_of} says how"
        time = run.cancel_requested_at
        return [Reason(cause=Cause.CANCELLED, message=said, action=action, time=time)]
    if run.status is not RunStatus.FAILED:
        return []
    kind = run.error_type or "failed"
    where = f"node {run.failed_node_id} failed" if run.failed_node_id else "the run failed"
    said = f"{where}: {kind}: {run.error_message or 'no message'}"
    nodes, count = ([run.failed_node_id], 1) if run.failed_node_id else ([], 0)
    if run.failed_parts is not None:
        said += f"; {_over_tolerance(run.failed_parts)}"
        nodes += run.failed_parts.names
        count += run.failed_parts.count
    return [
        Reason(
            cause=Cause.FAILED,
            message=said,
            action=remedy(kind, alone=run.alone, child=run.failed_child),
            nodes=tuple(nodes[:NAMES_MAX]),
            node_count=count,
            time=run.completed_at,
        )
    ]


def _failing(run: RunState, *, closes: bool) -> Reason:
    """Return the reason of an open run that is going to fail; `closes`: it has begun to close."""
    where = f"node {run.failed_node_id} failed" if run.failed_node_id else "the run failed"
    said = f"{where}: {run.error_type}: {run.error_message or 'no message'}; it ends once what runs"
    said += " in it and what closes it is over"
    names = [run.failed_node_id] if run.failed_node_id else []
    kills = "what closes it, and leaves what is not undone yet" if closes else "what runs"
    return _about(Cause.FAILED, names, said, action=f"wait, or CancelExecution kills {kills}")


def _outlasts_failure(node: NodeState) -> bool:
    """Return whether a failing run still waits for a node; all others end with it."""
    return node.closes or node.is_child or node.status is NodeStatus.RUNNING


def _over_tolerance(parts: FailedParts) -> str:
    names = ", ".join(parts.names[:NAMES_MAX]) + (", …" if parts.count > NAMES_MAX else "")
    allowed = [f"max_failed is {parts.max_failed}"] if parts.max_failed else []
    if parts.max_failed_ratio:
        allowed.append(f"max_failed_ratio is {parts.max_failed_ratio:g}")
    rule = " and ".join(allowed) or "it tolerates none"
    return f"{parts.count} of its elements failed ({names}), and {rule}"


def _cancelling(run: RunState, nodes: Sequence[NodeState]) -> Reason:
    left = [each.node_id for each in nodes if each.status is NodeStatus.RUNNING and not each.closes]
    said = f"the run was asked to stop; {len(left)} nodes are being killed"
    if any(each.closes for each in nodes):
        said = "the run was asked to stop; what closes it is not over"
    elif not left and any(each.is_child for each in nodes):
        said = "the run was asked to stop; the executions in it are not over"
    return _about(Cause.CANCELLING, left, said, time=run.cancel_requested_at)


def _limited(limited: Sequence[Limited]) -> list[Reason]:
    """Return the reasons of what waits for limits."""
    return [
        _about(
            Cause.LIMITED,
            each.nodes,
            explain_limits.situation(each),
            action=explain_limits.way_on(each),
            time=None if each.is_full else each.free_at,
            limit=each,
        )
        for each in sorted(limited, key=lambda each: each.limit)
    ]


def _unassigned(ready: Sequence[Ready], situation: Situation) -> list[Reason]:
    """Return the reasons why ready nodes have no runner."""
    reasons = []
    locked = [each.node_id for each in ready if each.locked]
    if locked:
        said = "the environments of nodes are not resolved yet"
        action = "wait; GetNode shows how far their locks are"
        reasons.append(_about(Cause.ENVIRONMENT_PENDING, locked, said, action=action))
    free = [each for each in ready if not each.locked]
    coming = [each for each in free if _comes_for(each, situation)]
    if coming:
        said, names = "a runner is started for them", [each.node_id for each in coming]
        action = "wait; where none comes the placing runner's log says why"
        reasons.append(_about(Cause.NO_RUNNER, names, said, action=action))
        free = [each for each in free if each not in coming]
    if free and not situation.offers:
        said, names = "no runner is attached", [each.node_id for each in free]
        return [*reasons, _about(Cause.NO_RUNNER, names, said, action="start a runner")]
    pythons = frozenset[str]().union(*(each.pythons for each in situation.offers))
    without = [each for each in free if python_of(each.wanted) not in pythons]
    for python in sorted({python_of(each.wanted) for each in without}):
        names = [each.node_id for each in without if python_of(each.wanted) == python]
        said = f"no runner has Python {python}"
        action = f"install Python {python} for a runner and restart it"
        reasons.append(_about(Cause.NO_PYTHON, names, said, action=action))
    having = [each for each in free if python_of(each.wanted) in pythons]
    reasons += _unfit(having, situation)
    able = [each for each in having if any(takes(offer, each.wanted) for offer in situation.offers)]
    return reasons + _busy(able, situation.kept)


def _busy(able: Sequence[Ready], kept: Kept) -> list[Reason]:
    """Return the reasons of nodes whose possible runners are busy or reserved."""
    held = [each.node_id for each in able if kept.holds_up(each.node_id, each.wanted)]
    full = [each.node_id for each in able if each.node_id not in held]
    reasons = []
    if held:
        said, action = explain_kept.situation(kept, held), explain_kept.way_on(kept)
        reasons.append(_about(Cause.RUNNERS_KEPT, held, said, action=action))
    if full:
        said = "every runner that could take them is full"
        action = "wait, add a runner, or start what matters with a higher priority"
        reasons.append(_about(Cause.RUNNERS_FULL, full, said, action=action))
    return reasons


def _comes_for(ready: Ready, situation: Situation) -> bool:
    """Return whether only a runner that can be started could take it."""
    if any(takes(offer, ready.wanted) for offer in situation.offers):
        return False
    return situation.machines_come or any(takes(offer, ready.wanted) for offer in situation.coming)


def _unfit(ready: Sequence[Ready], situation: Situation) -> list[Reason]:
    """Return the reasons of nodes that require what no runner has."""
    names: dict[Needs, list[str]] = {}
    for each in ready:
        if not isinstance(each.wanted, str) and not any(
            each.wanted.met_by(offer) for offer in situation.offers
        ):
            names.setdefault(each.wanted, []).append(each.node_id)
    reasons = []
    for needs, of in names.items():
        lacking = unmet(needs, situation.offers)
        said = f"no runner has {', '.join(lacking)}"
        reasons.append(_about(Cause.NO_FITTING_RUNNER, of, said, action=action_for(lacking)))
    return reasons


def _begun(nodes: Sequence[NodeState], now: datetime) -> list[Reason]:
    """Return the reasons of nodes that have begun and not ended."""
    reasons = []
    silent = [each for each in nodes if each.status is NodeStatus.RUNNING and each.silent]
    running = [each for each in nodes if each.status is NodeStatus.RUNNING and not each.silent]
    retrying = [  # those that are due already wait for a runner
        each
        for each in nodes
        if each.status is NodeStatus.RETRYING and (each.due_at is None or each.due_at > now)
    ]
    waiting = [each for each in nodes if each.waits_for]
    if silent:
        said = "their runner is silent: they begin elsewhere once its lease has ended"
        reasons.append(_about(Cause.RUNNER_SILENT, [each.node_id for each in silent], said))
    if retrying:
        errors = sorted({each.error_type or "" for each in retrying})
        said = f"their last attempt failed ({', '.join(errors)}); the next one is due"
        steered = [each.node_id for each in retrying if not each.is_part]
        reasons.append(
            _about(
                Cause.RETRY_DUE,
                [each.node_id for each in retrying],
                said,
                action=_SOONER.format(node=steered[0]) if steered else "",
                time=min((each.due_at for each in retrying if each.due_at), default=None),
            )
        )
    if waiting:
        said = "they wait for something outside: a time, a signal, a word of somebody"
        time = min((each.due_at for each in waiting if each.due_at), default=None)
        names = [each.node_id for each in waiting]
        words = list(dict.fromkeys(f"{each.node_id}: {each.waits_for}" for each in waiting))
        action = "; ".join(words[:NAMES_MAX])
        reasons.append(_about(Cause.NODES_WAITING, names, said, action=action, time=time))
    if running:
        since = min((each.started_at for each in running if each.started_at), default=None)
        names = [each.node_id for each in running]
        reasons.append(_about(Cause.NODES_RUNNING, names, "runners have them", time=since))
    return reasons


def _about(
    cause: Cause,
    names: Sequence[str],
    message: str,
    *,
    action: str = "",
    time: datetime | None = None,
    limit: Limited | None = None,
) -> Reason:
    return Reason(
        cause=cause,
        message=message,
        action=action,
        nodes=tuple(names[:NAMES_MAX]),
        node_count=len(names),
        time=time,
        limit=limit,
    )
