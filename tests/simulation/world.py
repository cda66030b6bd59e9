"""One simulated world: orchestrators, runners, clients, and what befalls them, from a seed."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Iterable
from itertools import count
from typing import Any, Final
from uuid import UUID

import structlog

from services.kit.ids import uuid_from_bytes
from services.orchestrator.domain.plan import Plan
from tests.simulation import graphs, limits
from tests.simulation.checker import Checker
from tests.simulation.clients import Clients
from tests.simulation.clock import VirtualLoop
from tests.simulation.database import Faults
from tests.simulation.ledger import Ledger
from tests.simulation.nemesis import Nemesis
from tests.simulation.processes import Orchestrator, Runner
from tests.simulation.quotas import Accounts
from tests.simulation.scripts import Script, script_of
from tests.simulation.stands import stood_in
from tests.simulation.store import Store
from tests.simulation.wire import Network

FAULTS_MIN: Final = 3
EVERY_PYTHON: Final = ("3.11", "3.12")
_HEALED_MAX_S: Final = 60.0
_TRACE_MAX: Final = 400
_ID_BYTES: Final = 16


class World:
    """Everything of one seed.

    Memory is held against the rows after one flush in `compared_every`: it is what costs most.
    """

    def __init__(self, seed: int, *, recording: bool = False, compared_every: int = 1) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self._ids = count(1 << 64)
        self.trace: deque[str] = deque(maxlen=_TRACE_MAX)
        self.tracing = False
        self.loop = VirtualLoop()
        self.store = Store(recording=recording)
        self.faults = Faults(self.chance)
        self.network = Network(self.chance)
        self.ledger = Ledger(self)
        self.checker = Checker(self, compared_every)
        self.accounts = Accounts(self)
        self.clients = Clients(self)
        self.nemesis = Nemesis(self)
        self.plans = Plans()
        # Each runner dials all of them, whether anybody is there or not.
        self.addresses = ["first", "second"] if self.chance.random() < 0.3 else ["first"]
        self.orchestrators: list[Orchestrator] = []
        self.runners: list[Runner] = []
        self.processes: list[Orchestrator | Runner] = []  # all that there ever were
        self.by_hand: dict[tuple[UUID, str], str] = {}  # what ended a node: outputs, or empty
        self.poisoned: set[UUID] = set()  # runs that the journal was made to refuse
        self.cancel_asked: set[UUID] = set()
        self.cancelled: set[UUID] = set()  # where that was answered
        self.declining = False
        self._problems: list[BaseException] = []
        self.clock_moved = False
        self.store.observers += [self.checker.written, self.accounts.written]
        self.store.observers.append(lambda _: limits.check(self))
        self.network.observers.append(self.checker.told)

    def new_id(self) -> UUID:
        return uuid_from_bytes(next(self._ids).to_bytes(_ID_BYTES))

    def script(self, run_id: UUID, node_id: str, max_retries: int) -> Script:
        """Give what the attempts at a row do."""
        return script_of(self.seed, run_id, node_id, max_retries)

    def plan_of(self, run_id: UUID) -> Plan:
        return self.plans.by_id[self.store.runs[run_id]["pins_id"]]

    def note(self, what: str) -> None:
        """Keep a line of the trace, where somebody wants to read it."""
        if self.tracing:
            self.trace.append(f"{self.loop.time():9.4f}  {what}")

    # --- processes ------------------------------------------------------------------------------

    def start_orchestrator(self, address: str, *, host: str) -> Orchestrator:
        self.note(f"an orchestrator begins at {address} on {host}")
        started = Orchestrator(self, address, host=host)
        self.orchestrators.append(started)
        self.processes.append(started)
        return started

    def orchestrator_ended(self, ended: Orchestrator) -> None:
        """Have its supervisor start another one, where none is at work."""
        self.note(f"the orchestrator at {ended.address} ended by itself")
        self.orchestrators.remove(ended)
        if not self.orchestrators:
            delay_s = 0.05 + self.chance.random() * 0.2
            self.loop.call_later(delay_s, self._start_again, ended.address, ended.host)

    def _start_again(self, address: str, host: str) -> None:
        if not self.orchestrators:
            self.start_orchestrator(address, host=host)

    def crash_orchestrator(self, which: Orchestrator) -> None:
        self.note(f"the orchestrator at {which.address} is killed")
        which.kill()
        self.orchestrators.remove(which)
        delay_s = 0.05 + self.chance.random() * 0.2
        self.loop.call_later(delay_s, self._start_again, which.address, which.host)

    def start_runner(self, *, host: str = "", pythons: tuple[str, ...] = ()) -> Runner:
        number = next(self._ids) - (1 << 64)
        pythons = pythons or self.chance.choice((EVERY_PYTHON, ("3.11",)))
        slots = self.chance.randint(1, 4)
        runner = Runner(
            self, f"runner {number}", host=host or f"host {number}", slots=slots, pythons=pythons
        )
        self.note(f"{runner.name} begins with {slots} slots and {pythons}")
        self.runners.append(runner)
        self.processes.append(runner)
        return runner

    def crash_runner(self, which: Runner) -> None:
        if not which.alive:
            return
        self.note(f"{which.name} is killed")
        which.kill()
        self.runners.remove(which)
        host = which.host if self.chance.random() < 0.5 else ""
        self.loop.call_later(
            0.05 + self.chance.random() * 0.5,
            lambda: self.start_runner(host=host, pythons=which.pythons),
        )

    # --- its life -------------------------------------------------------------------------------

    async def live(self) -> None:
        """Let faults befall it for a while, then heal it: everything that was accepted ends."""
        for version in graphs.version_ids():
            self.store.locks[version] = "none"
        self.clients.draw()
        self.start_orchestrator("first", host="home")
        for _ in range(self.chance.randint(1, 3)):
            self.start_runner()
        working = self.loop.create_task(self.clients.work())
        await self.nemesis.work()
        self.nemesis.heal()
        helping = self.loop.create_task(self.clients.steering.help())
        until = self.loop.time() + _HEALED_MAX_S
        while not (working.done() and self._is_over()):
            self._raise_problems()
            assert self.loop.time() < until, f"stuck: {self._open() or self.orchestrators}"
            await asyncio.sleep(0.1)
        working.result()
        helping.cancel()
        await asyncio.sleep(0.1)  # what is on its way to runners arrives
        self._raise_problems()
        self._check_ends()

    def _is_over(self) -> bool:
        """Say whether all runs ended, and whoever has them in memory knows it."""
        return all(self.store.is_over(run_id) for run_id in self.store.runs) and not any(
            each.engine.core.runs for each in self.orchestrators
        )

    def _open(self) -> list[Any]:
        return [
            (
                str(run_id),
                run["status"],
                {n: r["status"] for n, r in self.store.nodes_of[run_id].items()},
            )
            for run_id, run in self.store.runs.items()
            if not self.store.is_over(run_id)
        ]

    def raises(self, error: BaseException) -> None:
        """Take what broke anywhere; the first is what the world fails with."""
        self._problems.append(error)

    def _raise_problems(self) -> None:
        for context in self.loop.faults:
            if context.get("exception") is not None:
                self._problems.append(context["exception"])
        if self._problems:
            raise self._problems[0]

    def _check_ends(self) -> None:
        assert len(self.store.nodes) >= graphs.NODES_MIN
        assert sum(self.nemesis.hit.values()) >= FAULTS_MIN
        self.clients.check()
        limits.check_end(self)
        self.accounts.check()
        for orchestrator in self.orchestrators:
            core = orchestrator.engine.core
            if not orchestrator.ready.is_set():
                continue
            assert not core.runs, f"runs left in memory: {list(core.runs)}"
            assert not core.ready.size, "places left waiting"
            assert not core._refs, "records left in memory"
            assert not any(each.in_flight for each in core.runners.values()), "credits leaked"
        for runner in self.runners:  # one whose lease is another's word away may not know it yet
            lost = not self.ledger.holds_lease(runner.membership.incarnation)
            assert lost or not runner.desk.busy(), "an attempt left on a runner"

    def run(self) -> World:
        """Live through it, and put everything away."""
        random.seed(self.seed)
        with stood_in(self):
            try:
                asyncio.set_event_loop(None)
                self.loop.run_until_complete(self.live())
            finally:
                self._end()
        return self

    def _end(self) -> None:
        for process in (*self.orchestrators, *self.runners):
            process.kill()
        self.loop.ends = True
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        if tasks:
            gathered = asyncio.gather(*tasks, return_exceptions=True)
            self.loop.run_until_complete(gathered)
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    def forget(self) -> None:
        """Take it apart, for what comes after it: to look for cycles in it costs a fifth of it."""
        for process in self.processes:
            engine = getattr(process, "engine", None)
            if engine is not None:
                vars(engine.core).clear()
                vars(engine).clear()
            vars(process).clear()
        for each in (self.store, self.network, self.ledger, self.checker, self.accounts, self):
            vars(each).clear()

    @property
    def hits(self) -> dict[str, int]:
        """How often each kind of fault befell it."""
        return {**self.faults.hit, **self.network.hit, **self.nemesis.hit}


class Plans:
    """Plans by what they pin, as the orchestrators find them."""

    def __init__(self) -> None:
        self.by_id: dict[UUID, Plan] = {}

    def know(self, plan: Plan) -> None:
        """Have a plan found, and those of its sub-workflows."""
        if plan.pins_id not in self.by_id:
            self.by_id[plan.pins_id] = plan
            for place in plan.places:
                if place.sub is not None:
                    self.know(place.sub)

    async def by_pins(self, _: Any, ids: Iterable[UUID]) -> dict[UUID, Plan]:
        return {each: self.by_id[each] for each in ids}


def quiet(*, for_good: bool = False) -> None:
    """Say nothing of what processes log: there are thousands of them.

    For good where nothing else runs in this process: loggers need not be made for each word then.
    """
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
        cache_logger_on_first_use=for_good or None,
    )
