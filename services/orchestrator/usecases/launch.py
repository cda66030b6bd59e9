"""Starts a run with a known plan: its row, kept results, and earlier equal requests."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from typing import Any, Final, NamedTuple
from uuid import UUID

from services.kit import traces
from services.kit.caller import Caller
from services.kit.errors import (
    AlreadyExists,
    FailedPrecondition,
    QflowError,
    ResourceExhausted,
    Unavailable,
)
from services.kit.ids import uuid7
from services.kit.pg import Pool, as_caller
from services.orchestrator.domain.amounts import NOTHING
from services.orchestrator.domain.core import SHARDS
from services.orchestrator.domain.ledger import Budget
from services.orchestrator.domain.needs import action_for, unmet
from services.orchestrator.domain.options import NO_WISHES, RunOptions, Wishes
from services.orchestrator.domain.partly import Partly
from services.orchestrator.domain.plan import Place, Plan
from services.orchestrator.domain.reuse import Kept, take_over
from services.orchestrator.domain.rows import Follows, RunInsert
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import RunStatus
from services.orchestrator.engine.callers import NotStarted
from services.orchestrator.engine.engine import Beginning, Engine
from services.orchestrator.storage import executions
from services.orchestrator.storage.executions import Execution
from services.orchestrator.storage.recovery import split_object

# Errors after which a run has certainly not begun.
_NEVER_BEGAN: Final = (NotStarted, ResourceExhausted)
_NOT_HANDED_OVER: Final = frozenset({"NO_SHARD", "DRAINING"})


class Started(NamedTuple):
    """The run that a start returns; `existing` if it had been started before."""

    run: Run | Execution
    plan: Plan
    existing: bool = False

    @property
    def execution(self) -> Execution:
        """Return the run as it is now, in the BASIC view."""
        run = self.run
        return executions.of_run(run, with_values=False) if isinstance(run, Run) else run


class Launch(NamedTuple):
    """A run to start."""

    plan: Plan
    input_json: str
    request_id: UUID | None = None
    digest: str = ""
    wishes: Wishes = NO_WISHES
    current: int | None = None  # the version that the workflow must still have
    follows: tuple[Follows, ...] = ()
    alias: str = ""
    kept: tuple[Kept, ...] = ()  # results of another run
    partly: tuple[Partly, ...] = ()  # maps of which some elements are kept
    undoes: bool = False  # it takes over compensations

    @property
    def kept_count(self) -> int:
        """How many results are kept, counting elements with rows of their own."""
        whole = sum(each.size for each in self.kept)
        return whole + sum(each.size for each in self.partly)


async def launch(engine: Engine, caller: Caller, asked: Launch) -> Run:
    """Start a run and return it once it is committed; raises `NotStarted` if the flush refused it.

    Raises `QuotaExceeded` if too little of the tenant's quota is left.
    """
    run = new_run(caller, asked)
    copies = take_over(run, asked.kept, new_id=uuid7)
    budget = await engine.reserve(run, run.options.budget)
    try:
        await engine.start(run, _row(run, asked), asked.follows, copies, asked.partly, budget)
    except (NotStarted, QflowError) as error:
        if budget is not None and _never_began(error):
            await engine.unreserve([run.id])
        raise
    return run


async def launch_many(
    engine: Engine, caller: Caller, asked: Iterable[Launch]
) -> list[Run | NotStarted | QflowError]:
    """Start runs without kept results; returns each run or its error, once all are committed."""
    runs = [(new_run(caller, each), each) for each in asked]
    budgets: dict[UUID, Budget] = {}
    told: dict[UUID, Any] = {}
    reserved = await engine.reserve_many((run, run.options.budget) for run, _ in runs)
    for run_id, answer in reserved.items():
        if isinstance(answer, Budget):
            budgets[run_id] = answer
        else:
            told[run_id] = answer
    told |= await engine.start_many(
        [
            Beginning(run, _row(run, each), each.follows, budget=budgets.get(run.id))
            for run, each in runs
            if run.id not in told
        ]
    )
    unused = [each for each in budgets if _never_began(told.get(each))]
    if unused:
        await engine.unreserve(unused)
    return [told.get(run.id, run) for run, _ in runs]


def _never_began(told: object) -> bool:
    if isinstance(told, Unavailable):
        return told.reason in _NOT_HANDED_OVER
    return isinstance(told, _NEVER_BEGAN)


def preview(caller: Caller, asked: Launch) -> Started:
    """Return the run that a start would make."""
    run = new_run(caller, asked)
    take_over(run, asked.kept, new_id=uuid7)
    return Started(run, asked.plan)


def new_run(caller: Caller, asked: Launch) -> Run:
    """Return a new run of which nothing has begun."""
    text = asked.input_json or "{}"
    return Run(
        id=uuid7(),
        plan=asked.plan,
        tenant_id=caller.tenant_id,
        created_by=caller.user_id,
        status=RunStatus.PENDING,
        input_values=split_object(text),
        input_text=text,
        request_id=asked.request_id,
        options=_traced(asked.wishes.options),
    )


def _traced(options: RunOptions) -> RunOptions:
    """Add the current trace to the options of a run, or a new one."""
    tracer = traces.tracer()
    if tracer is None:
        return options
    place = traces.CURRENT.get(None) or tracer.begin()
    return options if place is None else replace(options, traceparent=place)


def _row(run: Run, asked: Launch) -> RunInsert:
    plan, options = asked.plan, asked.wishes.options
    return RunInsert(
        id=run.id,
        workflow_id=plan.workflow_id,
        tenant_id=run.tenant_id,
        created_by=run.created_by,
        workflow_version=plan.workflow_version,
        current_version=asked.current,
        pins_id=plan.pins_id,
        shard=zlib.crc32(run.id.bytes) % SHARDS,
        status=RunStatus.PENDING,
        input_data=run.input_text,
        request_id=asked.request_id,
        request_digest=asked.digest if asked.request_id else None,
        python_version=plan.python_version,
        timeout_ms=asked.wishes.timeout_within(plan.timeout_ms),
        revision=1,
        alias=asked.alias or None,
        business_key=options.business_key,
        key_reuse=asked.wishes.reuse,
        labels=json.dumps(dict(options.labels)) if options.labels else "{}",
        priority=options.priority,
        start_at=options.start_at,
        parent_execution_id=options.parent_execution_id,
        relation=options.relation,
        node_version_id=options.node_version_id,
        ignores_cache=options.ignores_cache,
        traceparent=run.options.traceparent,
        undoes_parent=asked.undoes,
        budget=None if options.budget is NOTHING else json.dumps(options.budget._asdict()),
    )


def digest_of(*parts: object) -> str:
    """Return a digest of a request without its id."""
    return hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()


class Earlier(NamedTuple):
    """What an earlier request with the same id started."""

    execution: Execution
    digest: str  # of that request

    def answer(self, digest: str) -> Execution | AlreadyExists:
        """Return the answer to a request with this id: the run, if it is equal."""
        if self.digest == digest:
            return self.execution
        return AlreadyExists(
            "REQUEST_ID_REUSED",
            "request_id was used to start something else; use a new one",
            resource=("execution", str(self.execution.id)),
            execution_id=self.execution.id,
        )


async def earlier_requests(
    pool: Pool, caller: Caller, request_ids: Collection[UUID]
) -> dict[UUID, Earlier]:
    """Return what these request ids started before; new ones are left out."""
    if not request_ids:
        return {}
    async with as_caller(pool, caller) as db:
        found = await executions.find_requests(db, caller.user_id, request_ids)
    return {request_id: Earlier(*each) for request_id, each in found.items()}


async def same_request(
    pool: Pool, caller: Caller, request_id: UUID | None, digest: str
) -> Execution | None:
    """Return the run of an equal request, if any; raises `AlreadyExists` if it differs."""
    if request_id is None:
        return None
    for earlier in (await earlier_requests(pool, caller, [request_id])).values():
        answer = earlier.answer(digest)
        if isinstance(answer, AlreadyExists):
            raise answer
        return answer
    return None


def check_pythons(engine: Engine, plan: Plan) -> None:
    """Refuse a run that would wait forever, as no attached runner has its Python version."""
    coming = engine.placements.offers()
    here = engine.core.pythons().union(*(each.pythons for each in coming))
    if not here or plan.pythons <= here:
        return
    missing = min(plan.pythons - here)
    names = (each.id for each in plan.places if each.python_version == missing)
    place = next(names, "of a sub-workflow")
    known = ", ".join(sorted(here, key=lambda each: [int(part) for part in each.split(".")]))
    raise FailedPrecondition(
        "PYTHON_MISSING",
        f"node {place} needs Python {missing}, and the runners have {known}; "
        "change the node's python_version, or install that Python for a runner and restart it",
        resource=("workflow", str(plan.workflow_id)) if plan.workflow_id else None,
    )


def check_runners(engine: Engine, plan: Plan) -> None:
    """Refuse a run that would wait forever, as no attached runner can run one of its nodes."""
    if engine.placements.machines_come:
        return
    needy = [place for place in _places_below(plan) if place.needs is not None]
    if not needy and _takes_all(engine, plan):
        return
    check_pythons(engine, plan)
    coming = engine.placements.offers()
    offers = [each.offer for each in engine.core.runners.values() if each.connected]
    if not offers and not coming:
        return
    offers += coming
    if not any(each.tier for each in offers):
        raise FailedPrecondition(
            "TIER_MISSING",
            "no runner can isolate code as strongly as its QFLOW_MINIMUM_TIER requires; "
            "GetRunner shows what is missing",
        )
    for place in needy:
        assert place.needs is not None
        if any(place.needs.met_by(each) for each in offers):
            continue
        lacking = unmet(place.needs, offers)
        raise FailedPrecondition(
            "RUNNER_MISSING",
            f"node {place.id} needs a runner with {', '.join(lacking)}, and none has it; "
            f"{action_for(lacking)}",
            resource=("workflow", str(plan.workflow_id)) if plan.workflow_id else None,
        )


def _takes_all(engine: Engine, plan: Plan) -> bool:
    """Return whether one attached runner has all Python versions of a plan."""
    return any(
        each.connected and each.offer.tier and plan.pythons <= each.offer.pythons
        for each in engine.core.runners.values()
    )


def _places_below(plan: Plan) -> Iterator[Place]:
    """Yield all places of a plan and its sub-workflows."""
    for place in plan.places:
        yield place
        if place.sub is not None:
            yield from _places_below(place.sub)


def changes_all_the_time(wishes: Wishes) -> Unavailable:
    """Return the error if every attempt met a change."""
    what = "the workflow, its alias or its nodes"
    if wishes.options.business_key is not None:
        what = "the run that has the business_key (others start with it too), or the workflow,"
    return Unavailable(
        "WORKFLOW_CHANGES", f"{what} changed during every attempt; retry", retry_after_s=0.1
    )
