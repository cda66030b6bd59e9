"""Plans a start: what it would do. Nothing is written."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from services.kit.caller import Caller
from services.kit.pg import Db, as_caller, transaction
from services.orchestrator.domain.cautions import (
    Caution,
    Environment,
    Named,
    Outlook,
    PythonSeats,
    cautions,
    environment_of,
)
from services.orchestrator.domain.forecast import (
    NO_HITS,
    NO_PAST,
    Forecast,
    History,
    Hits,
    Past,
    Times,
    distinct,
    forecasts,
    key_of,
    within,
)
from services.orchestrator.domain.plan import Definition, Kind, Plan
from services.orchestrator.engine.engine import Engine
from services.orchestrator.storage import history as storage
from services.orchestrator.storage.history import VersionFacts
from services.orchestrator.usecases.launch import Started
from services.orchestrator.usecases.predicted_hits import predicted_hits
from services.orchestrator.usecases.read import Reader


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedWorkflow:
    """A workflow as it would be pinned, with its forecast."""

    definition: Definition
    plan: Plan
    expected: Forecast
    cache_hits: Collection[int] = ()  # places with cached results


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedVersion:
    """A node version that would run."""

    id: UUID
    facts: VersionFacts
    environment: Environment
    attempts: Past


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What a start would do."""

    workflows: Sequence[PlannedWorkflow]  # the started one first
    versions: Sequence[PlannedVersion]
    total: Times | None
    past_runs: Past
    pythons: Sequence[PythonSeats]
    queued: int
    cautions: Sequence[Caution]


async def plan_execution(
    reader: Reader,
    engine: Engine,
    caller: Caller,
    started: Started,
    timeout_ms: int | None,
    *,
    input_json: str,
) -> Planned:
    """Plan a validated start; `timeout_ms` is the timeout of the run."""
    ways = distinct(started.plan)
    plans = [plan for _, plan in ways]
    places = [Named(f"{way}{each.id}", each) for way, plan in ways for each in plan.places]
    ids = {each.place.node_version_id for each in places}
    wanted = {each.place.node_version_id for each in places if each.place.kind is Kind.PYTHON}
    history, past_runs = await _past(reader, caller, plans, ids)
    async with transaction(reader.engine_pool) as db:
        facts = await storage.facts_of_versions(db, caller.tenant_id, wanted)
        definitions = [await _definition(reader, db, plan) for plan in plans]
    hits: Hits = NO_HITS
    if not started.execution.ignores_cache:
        hits = await predicted_hits(reader.engine_pool, caller, started.plan, input_json)
    expected = await asyncio.to_thread(forecasts, plans, history, hits)
    pythons = _seats(engine, plans)
    environments = {
        version: environment_of(each.lock_state, each.environment_state)
        for version, each in facts.items()
    }
    slots = sum(each.slots for each in engine.core.runners.values())
    total = within(expected[0].total, expected[0].work, slots)
    outlook = Outlook(
        places=[
            Named(f"{way}{each.id}", each)
            for way, plan in ways
            for at, each in enumerate(plan.places)
            if at not in hits.get(key_of(plan), ())  # cached ones do not run
        ],
        environments=environments,
        history=history,
        total=total,
        timeout_ms=timeout_ms,
        pythons=pythons,
        runners=sum(each.connected for each in engine.core.runners.values()),
    )
    return Planned(
        workflows=[
            PlannedWorkflow(
                definition=definition,
                plan=plan,
                expected=each,
                cache_hits=hits.get(key_of(plan), ()),
            )
            for definition, plan, each in zip(definitions, plans, expected, strict=True)
        ],
        versions=_versions(places, facts, environments, history),
        total=total,
        past_runs=past_runs,
        pythons=pythons,
        queued=engine.core.ready.size,
        cautions=await asyncio.to_thread(cautions, outlook),
    )


async def _past(
    reader: Reader, caller: Caller, plans: Sequence[Plan], version_ids: Collection[UUID]
) -> tuple[History, Past]:
    """Return recent durations of the nodes, and of whole runs of the started workflow."""
    first = plans[0]
    workflows = [plan.workflow_id for plan in plans if plan.workflow_id is not None]
    async with as_caller(reader.api_pool, caller, plans_by_value=True) as db:
        history = await storage.of_nodes(db, caller.tenant_id, workflows, version_ids)
        if first.workflow_id is None or first.workflow_version is None:
            return history, NO_PAST
        return history, await storage.of_runs(
            db, caller.tenant_id, first.workflow_id, first.workflow_version
        )


async def _definition(reader: Reader, db: Db, plan: Plan) -> Definition:
    assert plan.workflow_id is not None, "what is started is a workflow, and so is what is in it"
    assert plan.workflow_version is not None
    found = await reader.plans.definition(db, plan.workflow_id, plan.workflow_version)
    assert found is not None, "it was just pinned"
    return found


def _versions(
    places: Iterable[Named],
    facts: Mapping[UUID, VersionFacts],
    environments: Mapping[UUID, Environment],
    history: History,
) -> list[PlannedVersion]:
    """Return each version once, in order of first use."""
    order = dict.fromkeys(each.place.node_version_id for each in places)
    return [
        PlannedVersion(
            id=version,
            facts=facts[version],
            environment=environments[version],
            attempts=history.get((version, None), NO_PAST),
        )
        for version in order
        if version in facts
    ]


def _seats(engine: Engine, plans: Iterable[Plan]) -> list[PythonSeats]:
    here = [each for each in engine.core.runners.values() if each.connected]
    needed = frozenset[str]().union(*(plan.pythons for plan in plans))
    kept = {each.incarnation for each in engine.core.kept()}
    seats = []
    for python in sorted(needed, key=lambda each: [int(part) for part in each.split(".")]):
        able = [each for each in here if python in each.pythons]
        seats.append(
            PythonSeats(
                python_version=python,
                runners=len(able),
                slots=sum(each.slots for each in able),
                free=sum(
                    max(0, each.slots - len(each.in_flight))
                    for each in able
                    if each.incarnation not in kept
                ),
            )
        )
    return seats
