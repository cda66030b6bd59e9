"""Those who start and cancel runs: they repeat what was not answered, as the API tells them to."""

from __future__ import annotations

import asyncio
import zlib
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID

from services.kit.errors import QuotaExceeded, ResourceExhausted, Unavailable
from services.orchestrator.domain.core import SHARDS
from services.orchestrator.domain.options import RunOptions
from services.orchestrator.domain.rows import RunInsert
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import RUN_FINAL, RunStatus
from services.orchestrator.engine.callers import NotStarted
from services.orchestrator.engine.engine import Beginning, Engine
from services.orchestrator.engine.hub import Moved
from services.orchestrator.storage.recovery import split_object
from services.orchestrator.usecases.plans import unlocked
from tests.simulation import cache, graphs, limits, quotas
from tests.simulation.steering import Steering

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from datetime import datetime

    from services.orchestrator.domain.amounts import Amounts
    from services.orchestrator.domain.plan import Plan
    from tests.simulation.processes import Orchestrator
    from tests.simulation.world import World

OWNER: Final = graphs.id_of(7)
OTHER: Final = graphs.id_of(9)  # of the same tenant
_RETRY_S: Final = 0.1
_SPREAD_S: Final = 3.0


class _Wish(NamedTuple):
    """What a client asks for, as often as it has to."""

    plan: Plan
    given: int
    start_at: datetime | None
    tenant_id: UUID
    budget: Amounts


def owner_of(request: UUID) -> UUID:
    """Give who asks for something: one of two users, by what they ask."""
    return OTHER if request.int % 3 == 0 else OWNER


class Clients:
    """Starts graphs until there are nodes enough, and cancels some of them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.accepted: dict[UUID, UUID] = {}  # runs by request
        self._plans: list[Plan] = []
        self._cached: list[int] = []  # graphs that are drawn from in a world with a cache
        self.steering = Steering(self, world)

    def draw(self) -> None:
        """Draw the graphs that are started, and the limits that hold for them."""
        if cache.is_in(self._world):
            self._cached = cache.draw(self._world)
        nodes = 0
        while nodes < graphs.NODES_MIN:
            plan = self._draw_one()
            nodes += len(plan.places)
            self._plans.append(plan)
        limits.draw(self._world, self._plans, OWNER, (OWNER, OTHER))
        quotas.draw(self._world)

    def _draw_one(self) -> Plan:
        chance = self._world.chance
        if self._cached:
            return graphs.cached_shape(chance.choice(self._cached))
        return graphs.shape(chance.randrange(graphs.SHAPES))

    async def work(self) -> None:
        """Do all that clients do; returns once everything they asked for is answered."""
        world, chance = self._world, self._world.chance
        tasks = []
        for plan in self._plans:
            world.plans.know(plan)
            at_s = 0.0 if chance.random() < 0.5 else chance.random() * _SPREAD_S
            cancel_s = chance.random() * 1.5 if chance.random() < 0.12 else None
            tasks.append(asyncio.ensure_future(self._one(plan, at_s, cancel_s)))
        await asyncio.gather(*tasks)
        # What fails, is cancelled or takes another branch leaves nodes out: more has to be done.
        while len(world.store.nodes) < graphs.NODES_MIN:
            if all(map(world.store.is_over, world.store.runs)):
                plan = graphs.shape(chance.randrange(graphs.SHAPES))
                world.plans.know(plan)
                await self._one(plan, 0.0, None)
            await asyncio.sleep(_RETRY_S)

    async def _one(self, plan: Plan, at_s: float, cancel_s: float | None) -> None:
        await asyncio.sleep(at_s)
        world, chance = self._world, self._world.chance
        request = world.new_id()
        given = chance.randrange(2 if self._cached else 100)
        later_s = chance.random() * 2 if chance.random() < 0.08 else None
        start_at = None if later_s is None else world.store.clock() + timedelta(seconds=later_s)
        wish = _Wish(plan, given, start_at, *quotas.draw_of_run(world, OWNER))
        again = chance.random() < 0.15  # a client that did not hear the answer
        run_id = await self._start(wish, request)
        if run_id is None:
            return
        if again:
            twice = await self._start(wish, request)
            assert twice == run_id, "I12: one request, two runs"
        if chance.random() < 0.3:
            self._watch(run_id)
        steering = asyncio.ensure_future(self.steering.steer(run_id))
        if cancel_s is not None:
            await asyncio.sleep(cancel_s)
            await self.cancel(run_id)
        await steering

    async def _start(self, wish: _Wish, request: UUID) -> UUID | None:
        """Ask until there is an answer; None when the workflow is gone, or its tenant's day."""
        world, plan = self._world, wish.plan
        while True:
            run = self._new_run(wish, request)
            try:
                await self.ask(self._starting(run, wish.budget), run.id)
            except QuotaExceeded:
                assert run.tenant_id == quotas.LIMITED, "refused for a quota that it has not"
                if (owner_of(request), request) not in world.store.requests:
                    return None
                run_id = world.store.requests[owner_of(request), request]
            except NotStarted:
                earlier = world.store.requests.get((owner_of(request), request))
                if earlier is None:
                    assert plan.workflow_id in world.store.gone_workflows, "refused for nothing"
                    return None
                run_id = earlier
            except (Unavailable, ResourceExhausted, OSError):
                await asyncio.sleep(_RETRY_S)
                continue
            else:
                run_id = run.id
            assert run_id in world.store.runs, "G1: accepted, and not there"
            assert world.store.runs[run_id]["input_data"] == run.input_text
            world.note(f"run {run_id.int & 0xFFFF} of {len(plan.places)} nodes is accepted")
            self.accepted[request] = run_id
            return run_id

    def _starting(
        self, run: Run, asked: Amounts
    ) -> Callable[[Orchestrator], Coroutine[Any, Any, None]]:
        async def start(orchestrator: Orchestrator) -> None:
            engine = orchestrator.engine
            pool: Any = orchestrator.database
            engine.core.unlocked |= await unlocked(pool, [run.plan], engine.core.unlocked)
            budget = await engine.reserve(run, asked)
            try:
                if run.id.int % 2:
                    await engine.start(run, _row_of(run), (), budget=budget)
                    return
                beginning = Beginning(run, _row_of(run), budget=budget)
                for error in (await engine.start_many([beginning])).values():  # the others' way
                    raise error
            except (NotStarted, ResourceExhausted):  # as `launch` does
                if budget is not None:
                    await engine.unreserve([run.id])
                raise

        return start

    def _new_run(self, wish: _Wish, request: UUID) -> Run:
        text = f'{{"x":{wish.given}}}'
        return Run(
            id=self._world.new_id(),
            plan=wish.plan,
            tenant_id=wish.tenant_id,
            created_by=owner_of(request),
            status=RunStatus.PENDING,
            input_values=split_object(text),
            input_text=text,
            request_id=request,
            options=RunOptions(start_at=wish.start_at, ignores_cache=cache.is_ignored_by(request)),
        )

    def _watch(self, run_id: UUID) -> None:
        """Watch a run at one of the orchestrators, for as long as that lives."""
        for orchestrator in self._world.orchestrators:
            orchestrator.spawn(_watched(orchestrator.engine, run_id))

    async def cancel(self, run_id: UUID) -> None:
        """Ask until it is answered, as CancelExecution answers."""
        world = self._world
        world.cancel_asked.add(run_id)
        row = world.store.runs[run_id]
        while row["status"] not in RUN_FINAL:
            try:
                await self.ask(lambda each: each.engine.cancel(run_id), run_id)
            except (Unavailable, OSError):
                await asyncio.sleep(_RETRY_S)
                continue
            if row["status"] not in RUN_FINAL and row["cancel_requested_at"] is not None:
                world.note(f"the cancel of {run_id.int & 0xFFFF} is answered")
                world.cancelled.add(run_id)
                return
            await asyncio.sleep(_RETRY_S)

    async def ask(
        self, call: Callable[[Orchestrator], Coroutine[Any, Any, None]], run_id: UUID
    ) -> None:
        """Make a call to an orchestrator that is there; its death is UNAVAILABLE."""
        ready = [each for each in self._world.orchestrators if each.ready.is_set()]
        if not ready:
            raise OSError
        having = [each for each in ready if run_id in each.engine.core.runs]  # calls are forwarded
        orchestrator = self._world.chance.choice(having or ready)
        task = orchestrator.spawn(call(orchestrator))
        over = self._world.loop.create_future()
        task.add_done_callback(lambda _: _wake(over))
        await over
        if task.cancelled():
            raise OSError
        task.result()

    def check(self) -> None:
        """Hold what was answered against what is there in the end (I12, I13, I14)."""
        store = self._world.store
        for request, run_id in self.accepted.items():
            assert store.requests[owner_of(request), request] == run_id, (
                "I12: one request, two runs"
            )
        self.steering.check()
        for run_id in self._world.cancelled:
            assert store.runs[run_id]["status"] == "cancelled", "I14: only cancelled can follow"


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


async def _watched(engine: Engine, run_id: UUID) -> None:
    """Read every change: revisions never go back, and a final change is the last."""
    revision, final = 0, False
    with engine.hub.subscribed(run_id) as subscription:
        engine.watch(run_id, 1)
        while not final:
            try:
                change = await subscription.next()
            except Moved:
                return  # the run is another's: who watches is told to go there
            assert change is not None
            assert change.revision >= revision or not change.complete, "I13: a revision went back"
            revision, final = max(revision, change.revision), change.final


def _row_of(run: Run) -> RunInsert:
    plan = run.plan
    return RunInsert(
        id=run.id,
        workflow_id=plan.workflow_id,
        tenant_id=run.tenant_id,
        created_by=run.created_by,
        workflow_version=1,
        current_version=None,
        pins_id=plan.pins_id,
        shard=zlib.crc32(run.id.bytes) % SHARDS,
        status=RunStatus.PENDING,
        input_data=run.input_text,
        request_id=run.request_id,
        request_digest="same",
        python_version=plan.places[0].python_version,
        timeout_ms=plan.timeout_ms,
        revision=1,
        start_at=run.options.start_at,
        ignores_cache=run.options.ignores_cache,
    )
