"""The processes of the world: orchestrators and runners as their apps put them together.

What is theirs is production code: engine, core, journal, member, loops, servicer; desk, streams,
membership. What they stand on is not: database, wire and sandboxes are the simulation's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from services.kit.errors import QflowError
from services.orchestrator.app.journal_connection import hear_of_limits, hear_of_members
from services.orchestrator.engine.callers import NotStarted
from services.orchestrator.engine.engine import Engine
from services.orchestrator.engine.journal import FencedError
from services.orchestrator.engine.member import Member
from services.orchestrator.engine.shards import Shards
from services.orchestrator.engine.treasury import Treasury
from services.orchestrator.loops.lease import keep_lease
from services.orchestrator.loops.limits import keep_limits
from services.orchestrator.loops.members import judge_strays, keep_share, tell_demand
from services.orchestrator.loops.quotas import keep_quotas
from services.orchestrator.loops.result_cache import keep_cache
from services.orchestrator.loops.sweep import sweep_runners, watch_locks
from services.orchestrator.rpc.attach import AttachServicer
from services.orchestrator.usecases.balance import begin
from services.orchestrator.usecases.recover import load
from services.runner.domain.limits import Tier
from services.runner.domain.outcome import AttemptError, ErrorType, Outcome, Usage
from services.runner.loops.attach import Streams, greeting_of
from services.runner.usecases.attempt import CANCELLED, Attempt
from services.runner.usecases.desk import Desk
from services.runner.usecases.membership import Membership, Offer
from services.runner.usecases.pulling import InputsMissing
from tests.simulation import cache
from tests.simulation.database import Database
from tests.simulation.ledger import Act

if TYPE_CHECKING:
    from tests.simulation.world import World

TTL_S = 2.0
_HEARTBEAT_S = 0.6


class Process:
    """Tasks that live and die together."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.database = Database(world.store, world.faults)
        self.alive = True
        self.stop = asyncio.Event()
        self._tasks: list[asyncio.Task[Any]] = []

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.append(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        """Raise in the world what no process should die of; what callers are told is theirs."""
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, (QflowError, NotStarted, OSError)):
            self.world.raises(error)

    def kill(self) -> None:
        """End it as kill -9 does: nothing more of it happens."""
        self.alive = False
        for task in self._tasks:
            task.cancel()


class StrictEngine(Engine):
    """An engine in which no step of a run may go wrong: the world is told."""

    world: World

    def _read_faulty(self) -> None:
        for fault in self.core.faults:
            self.world.raises(fault.error)
        super()._read_faulty()


class Orchestrator(Process):
    """One orchestrator at one address."""

    def __init__(self, world: World, address: str, *, host: str) -> None:
        super().__init__(world)
        self.address = address
        pool = cast("Any", self.database)
        clock = asyncio.get_running_loop().time
        self.member = Member(pool, host=host, address=address, proof=True, ttl_s=TTL_S, clock=clock)
        self.engine = StrictEngine(
            member=self.member,
            connect=self._connect,
            load=partial(load, pool, cast("Any", world.plans)),
            shards=Shards(),
            treasury=Treasury(pool),
        )
        self.engine.world = world
        self.host = host
        self.ready = asyncio.Event()
        self._journals = self.database
        self._servicer: AttachServicer | None = None
        world.checker.follow(self)
        self.spawn(self._live())

    async def _connect(self) -> Any:
        await asyncio.sleep(0.001)
        if self.world.faults.down or self.database.cut:
            raise OSError
        self._journals = Database(self.world.store, self.world.faults)
        self.world.store.listeners[self.member.id] = self._heard
        self.world.store.limit_listeners[self.member.id] = self._heard_of_limits
        return self._journals

    def _heard(self, told_by: str) -> None:
        if not self.database.cut:
            hear_of_members(self.engine, told_by)

    def _heard_of_limits(self, told: str) -> None:
        if not self.database.cut:
            hear_of_limits(self.engine, told)

    def part(self, *, parted: bool) -> None:
        """Part this process from database and runners, or let it have them again."""
        if not self.alive or parted == self.database.cut:
            return
        self.database.cut = self._journals.cut = parted
        network = self.world.network
        if parted:
            network.cut.add(self.address)
            network.end(lambda call: call.servicer is self._servicer)
        else:
            network.cut.discard(self.address)

    async def _live(self) -> None:
        pool = cast("Any", self.database)
        try:
            await begin(self.engine)
        except (OSError, FencedError):
            self._over()  # its supervisor starts another
            return
        self._servicer = AttachServicer(self.engine, pool)
        self.world.network.servers[self.address] = self._servicer
        self.ready.set()
        self.spawn(sweep_runners(self.engine, pool, self.stop))
        self.spawn(watch_locks(self.engine, pool, self.stop))
        self.spawn(judge_strays(self.engine, pool, self.stop))
        self.spawn(tell_demand(self.engine, self.stop))
        if cache.is_in(self.world):
            self.spawn(keep_cache(self.engine, pool, self.stop))
        if self.world.store.quotas:
            self.spawn(keep_quotas(self.engine, pool, self.stop))
        self.spawn(self._until_fenced(keep_limits(self.engine, pool, self.stop)))
        self.spawn(self._until_fenced(keep_lease(self.engine, self.stop)))
        self.spawn(self._until_fenced(keep_share(self.engine, self.stop)))
        await self._until_fenced(self.engine.run())

    async def _until_fenced(self, work: Coroutine[Any, Any, None]) -> None:
        with contextlib.suppress(FencedError):
            await work
            return
        self._over()

    def _over(self) -> None:
        """Leave in order: another owns the runs now, or it could not begin."""
        self.alive = False
        self.world.orchestrator_ended(self)
        asyncio.get_running_loop().call_soon(self.kill)

    def kill(self) -> None:
        super().kill()
        self.world.store.listeners.pop(self.member.id, None)
        self.world.store.limit_listeners.pop(self.member.id, None)
        network = self.world.network
        if self._servicer is not None:
            if network.servers.get(self.address) is self._servicer:
                del network.servers[self.address]
            network.end(lambda call: call.servicer is self._servicer)


class Runner(Process):
    """One runner, under as many incarnations as it loses leases."""

    def __init__(
        self, world: World, name: str, *, host: str, slots: int, pythons: tuple[str, ...]
    ) -> None:
        super().__init__(world)
        self.name = name
        self.host = host
        self.pythons = pythons
        pool = cast("Any", self.database)
        self.membership = Membership(
            pool,
            Offer(host=host, tier="T0", slots=slots, pythons=pythons),
            ttl_s=TTL_S,
            heartbeat_s=_HEARTBEAT_S,
            clock=asyncio.get_running_loop().time,
        )
        self.desk = Desk(
            cast("Any", Sandboxes(self)),
            self.membership,
            slots=slots,
            store=cast("Any", None),
            pythons=pythons,
        )
        greet = greeting_of(
            self.desk,
            lambda: self.membership.incarnation,
            slots=slots,
            tiers=(Tier.T0,),
            pythons=pythons,
        )
        self.streams = Streams(
            self.desk,
            greet,
            joined=self.membership.joined,
            token=name,
            on_refused=self.membership.doubt,
        )
        self.spawn(self._live())

    async def _live(self) -> None:
        while True:
            try:
                await self.membership.begin()
                break
            except OSError:
                await asyncio.sleep(0.1)
        self.spawn(self.streams.hold_all(self.world.addresses, self.stop))
        await self.membership.keep(self.stop, busy=self.desk.busy, on_lost=self._lost)

    async def _lost(self) -> None:
        self.desk.abandon_all()
        await self.streams.reset()

    def kill(self) -> None:
        super().kill()
        self.world.network.end(lambda call: call.runner == self.name)
        for attempt in list(self.desk._running.values()):
            if attempt.task is not None:
                attempt.task.cancel()


class Sandboxes:
    """Stands in for the interpreters: an attempt takes its time and gives what the world says."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._under_way: dict[Attempt, asyncio.Future[str]] = {}

    def begin(
        self, attempt: Attempt, over: Callable[[Outcome], None], left: Callable[[], None]
    ) -> bool:
        """Make every other call as those are made that need no task of the desk's."""
        if attempt.request.token % 2:
            return False
        act = self._begin(attempt)
        if act.kind == "decline":
            return False
        self._runner.spawn(self._make(attempt, act, over, left))
        return True

    async def _make(
        self,
        attempt: Attempt,
        act: Act,
        over: Callable[[Outcome], None],
        left: Callable[[], None],
    ) -> None:
        over(await self._end_of(attempt, act))
        left()

    async def run(self, attempt: Attempt) -> Outcome:
        act = self._begin(attempt)
        if act.kind == "decline":
            self._runner.world.faults.count("attempt declined")
            raise InputsMissing
        return await self._end_of(attempt, act)

    def _begin(self, attempt: Attempt) -> Act:
        world = self._runner.world
        try:
            return world.ledger.begin(self._runner, attempt.request)
        except Exception as error:
            world.raises(error)  # the desk would make an outcome of it
            raise

    async def _end_of(self, attempt: Attempt, act: Act) -> Outcome:
        try:
            return CANCELLED if attempt.told else await self._carry_out(attempt, act)
        finally:
            self._runner.world.ledger.over(attempt.request)

    async def _carry_out(self, attempt: Attempt, act: Act) -> Outcome:
        world, loop = self._runner.world, asyncio.get_running_loop()
        over = self._under_way[attempt] = loop.create_future()
        timer = loop.call_later(act.lasts_s, _end, over, "")
        try:
            told = await over
        finally:
            timer.cancel()
            del self._under_way[attempt]
        if told:
            error = AttemptError(type=ErrorType.CANCELLED, message="the attempt was stopped")
            return Outcome(error=error, usage=Usage(cpu_us=1))
        if act.kind == "kill the runner":
            world.crash_runner(self._runner)
            await loop.create_future()  # the process is gone
        outcome = act.outcome()
        world.ledger.end(attempt.request, outcome)
        return outcome

    def tell_to_end(self, attempt: Attempt, why: str, *, grace_s: float) -> None:
        if not attempt.told:
            attempt.told = why
        over = self._under_way.get(attempt)
        if over is not None:
            delay_s = self._runner.world.chance.random() * min(grace_s, 0.3)
            asyncio.get_running_loop().call_later(delay_s, _end, over, why)
        elif attempt.task is not None:
            attempt.task.cancel()


def _end(over: asyncio.Future[str], told: str) -> None:
    if not over.done():
        over.set_result(told)
