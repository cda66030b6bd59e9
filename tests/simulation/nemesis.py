"""What befalls a world: at least three faults of several kinds, at moments that the seed draws."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from tests.simulation import graphs
from tests.simulation.database import FATES
from tests.simulation.processes import TTL_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simulation.world import World

_LASTS_S: Final = 3.0


class Nemesis:
    """Draws faults and undoes those that last."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.hit: dict[str, int] = {}
        self._kinds: list[tuple[Callable[[], str], int]] = [
            (self._flush, 6),
            (self._crash_orchestrator, 3),
            (self._take_over, 2),
            (self._join, 1),
            (self._cut_short, 1),
            (self._outage, 1),
            (self._bad_link, 2),
            (self._crash_runner, 2),
            (self._break_streams, 3),
            (self._part_runner, 2),
            (self._part_from_database, 1),
            (self._double_frames, 2),
            (self._set_clock, 1),
            (self._poison, 2),
            (self._declines, 2),
            (self._hold_lock, 2),
            (self._lose_workflow, 1),
        ]

    async def work(self) -> None:
        """Let faults come at their moments."""
        world, chance = self._world, self._world.chance
        kinds, weights = zip(*self._kinds, strict=True)
        moments = sorted(chance.random() * _LASTS_S for _ in range(chance.randint(3, 7)))
        for moment in moments:
            await asyncio.sleep(max(0.0, moment - world.loop.time()))
            befell = chance.choices(kinds, weights)[0]()
            world.note(f"FAULT {befell}")
            self.hit[befell] = self.hit.get(befell, 0) + 1

    def heal(self) -> None:
        """End all that lasts: from here on everything that was accepted has to end."""
        world = self._world
        world.note("all is healed")
        world.faults.rate = 0.0
        world.faults.down = False
        world.faults.forced.clear()
        world.faults.poisoned.clear()
        world.network.cut.clear()
        world.network.doubling = 0.0
        world.declining = False
        for orchestrator in world.orchestrators:
            orchestrator.part(parted=False)
        for runner in world.runners:
            runner.database.cut = False
        for version, state in world.store.locks.items():
            if state == "pending":
                world.store.locks[version] = "locked"
        if not world.orchestrators:
            world._start_again("first", "home")
        world.start_runner(pythons=("3.11", "3.12"))

    # --- the database ---------------------------------------------------------------------------

    def _flush(self) -> str:
        fate = self._world.chance.choice(FATES)
        self._world.faults.forced.append(fate)
        return f"one flush: {fate}"

    def _bad_link(self) -> str:
        faults = self._world.faults
        faults.rate = 0.15
        self._later(0.6, lambda: setattr(faults, "rate", 0.0))
        return "statements are lost"

    def _outage(self) -> str:
        faults = self._world.faults
        faults.down = True
        self._later(1.0, lambda: setattr(faults, "down", False))
        return "the database is away"

    def _set_clock(self) -> str:
        world = self._world
        world.store.skew_s += world.chance.choice((-20.0, -2.0, 0.5, 2.0, 30.0))
        world.clock_moved = True
        return "the database's clock is set"

    def _poison(self) -> str:
        world = self._world
        # Each family once: one that is refused three times in a row is let lie for an operator.
        known = {world.store.root_of(each) for each in world.poisoned}
        open_runs = [
            each
            for each in world.store.runs
            if world.store.root_of(each) not in known and not world.store.is_over(each)
        ]
        if not open_runs:
            return self._flush()
        run_id = world.chance.choice(open_runs)
        times = world.chance.choice((1, 2))
        world.faults.poisoned[run_id] = times
        world.poisoned.add(run_id)
        return f"the journal refuses a run {times} times"

    def _hold_lock(self) -> str:
        world, chance = self._world, self._world.chance
        version = chance.choice(graphs.version_ids())
        if world.store.locks[version] != "none":
            return self._flush()
        world.store.locks[version] = "pending"
        becomes = chance.choice(("locked", "locked", "failed"))

        def known() -> None:
            world.store.locks[version] = becomes

        self._later(1.0, known)
        return "a lock is not known yet"

    def _lose_workflow(self) -> str:
        plan = graphs.shape(self._world.chance.randrange(graphs.SHAPES))
        pins = list(self._world.plans.by_id.values())
        gone = self._world.chance.choice(pins) if pins else plan
        assert gone.workflow_id is not None
        self._world.store.gone_workflows.add(gone.workflow_id)
        return "a workflow is deleted"

    # --- orchestrators --------------------------------------------------------------------------

    def _crash_orchestrator(self) -> str:
        world = self._world
        if not world.orchestrators:
            return self._flush()
        world.crash_orchestrator(world.chance.choice(world.orchestrators))
        return "an orchestrator is killed"

    def _take_over(self) -> str:
        """Part the one at work from all others, and let another one wait for its lease."""
        world = self._world
        alone = len(world.orchestrators) == 1 and world.orchestrators[0].ready.is_set()
        if not alone or len(world.addresses) == 1:
            return self._crash_orchestrator()
        first = world.orchestrators[0]
        first.part(parted=True)
        self._later(1.5 * TTL_S, lambda: first.part(parted=False))
        address = next(each for each in world.addresses if each != first.address)
        world.start_orchestrator(address, host=f"beside {first.host}")
        return "an orchestrator is taken over"

    def _join(self) -> str:
        """Have another one share the work."""
        world = self._world
        taken = {each.address for each in world.orchestrators}
        free = [each for each in world.addresses if each not in taken]
        if not free or not taken:
            return self._set_clock()
        world.start_orchestrator(free[0], host=f"beside {world.orchestrators[0].host}")
        return "another orchestrator begins"

    def _cut_short(self) -> str:
        """Have one fenced that goes by a lease which still runs: the other looks at its end."""
        world = self._world
        if len(world.orchestrators) < 2:
            return self._join()
        if not all(each.ready.is_set() for each in world.orchestrators):
            return self._set_clock()
        looks, ends = world.chance.sample(world.orchestrators, 2)
        lease = world.store.members[ends.member.id]
        if lease.state != "live":
            return self._set_clock()
        lease.expires_at = world.store.clock() - timedelta(seconds=1)
        looks.engine.shards.look.set()
        self._later(0.6, self._break_streams)
        return "a lease is cut short"

    # --- runners and the wire -------------------------------------------------------------------

    def _crash_runner(self) -> str:
        world = self._world
        if not world.runners:
            return self._flush()
        world.crash_runner(world.chance.choice(world.runners))
        return "a runner is killed"

    def _break_streams(self) -> str:
        world = self._world
        for call in list(world.network.calls):
            if world.chance.random() < 0.6:
                call.break_off()
        return "streams break"

    def _part_runner(self) -> str:
        """Let a runner's frames vanish; later its streams break, or all comes back."""
        world, network = self._world, self._world.network
        if not world.runners:
            return self._flush()
        runner = world.chance.choice(world.runners)
        network.cut.add(runner.name)
        for call in network.calls:
            call.silent = call.silent or call.runner == runner.name
        if world.chance.random() < 0.5:
            runner.database.cut = True

        def back() -> None:
            network.cut.discard(runner.name)
            runner.database.cut = False
            network.end(lambda call: call.runner == runner.name)

        self._later(1.5 * TTL_S, back)
        return "a runner is parted from all others"

    def _part_from_database(self) -> str:
        world = self._world
        if not world.runners:
            return self._flush()
        runner = world.chance.choice(world.runners)
        runner.database.cut = True
        self._later(1.5 * TTL_S, lambda: setattr(runner.database, "cut", False))
        return "a runner is parted from the database"

    def _double_frames(self) -> str:
        network = self._world.network
        network.doubling = 0.5
        self._later(1.0, lambda: setattr(network, "doubling", 0.0))
        return "frames arrive twice"

    def _declines(self) -> str:
        world = self._world
        world.declining = True
        self._later(1.0, lambda: setattr(world, "declining", False))
        return "runners decline"

    def _later(self, within_s: float, undo: Callable[[], object]) -> None:
        self._world.loop.call_later(self._world.chance.random() * within_s, undo)
