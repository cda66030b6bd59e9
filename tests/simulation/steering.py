"""Those who steer runs: they pause them, hold nodes up, end nodes by hand, and bring words.

What they call is production code, its refusals with it; only what it reads for its answers is not.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import UUID

from services.kit.caller import Caller
from services.kit.errors import FailedPrecondition, Unavailable
from services.orchestrator.domain.plan import Kind, Phase, Plan
from services.orchestrator.domain.status import RUN_FINAL
from services.orchestrator.storage import signals
from services.orchestrator.usecases.controls import Controls
from services.orchestrator.usecases.signals import Answer, Messenger, word_id_of
from tests.simulation import graphs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from services.orchestrator.domain.plan import Place
    from tests.simulation.clients import Clients
    from tests.simulation.processes import Orchestrator
    from tests.simulation.world import World

STEERS: Final = cast("Caller", SimpleNamespace(user_id=graphs.id_of(7), tenant_id=graphs.id_of(7)))
_HELP_S: Final = 0.3


class Reader:
    """Gives runs to whoever steers them, as their rows stand."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def get(self, _: Caller, run_id: UUID, *, full: bool) -> tuple[Any, Plan]:
        """Give a run that is there."""
        assert not full
        row = self._world.store.runs[run_id]
        told = SimpleNamespace(status=row["status"], final=row["status"] in RUN_FINAL)
        return told, self._world.plan_of(run_id)


class SimulatedControls(Controls):
    """The production controls, without what they answer."""

    async def _node(self, *_: Any) -> Any:
        return None


@dataclass(frozen=True, slots=True)
class SimulatedMessenger(Messenger):
    """The production messenger; words that were sent before it reads from the simulated rows."""

    database: Any

    async def _earlier(self, caller: Caller, ids: Sequence[UUID]) -> signals.SignalRow | None:
        row = await self.database.fetch(signals._FIND, ids, caller.user_id)
        return None if row is None else signals.SignalRow(**row)


class Steering:
    """What callers do to the runs of a world while they are under way."""

    def __init__(self, clients: Clients, world: World) -> None:
        self._clients = clients
        self._world = world
        self._reader = Reader(world)
        self.sent: set[UUID] = set()  # words whose bringing was answered

    async def steer(self, run_id: UUID) -> None:
        """Do what this run's callers do, at moments that the seed draws."""
        chance, plan = self._world.chance, self._world.plan_of(run_id)
        deeds: list[Awaitable[None]] = []
        for name in sorted({each.wait.name for each in plan.places if each.wait is not None}):
            deeds += [self._bring(run_id, name) for _ in range(chance.choice((0, 1, 1, 2)))]
        if chance.random() < 0.12:
            deeds.append(self._pause(run_id))
        main = [each for each in plan.places if each.phase is Phase.MAIN]
        later = [each for each in plan.places if each.phase is not Phase.MAIN]
        if chance.random() < 0.15:
            deeds.append(self._hold(run_id, chance.choice(main)))
        if later and chance.random() < 0.3:
            deeds.append(self._hold_late(run_id, chance.choice(later)))
        if chance.random() < 0.15:
            deeds.append(self._skip(run_id, chance.choice(main)))
        if any(each.kind is Kind.WORKFLOW for each in plan.places) and chance.random() < 0.2:
            deeds.append(self._cancel_a_part(run_id))
        await asyncio.gather(*deeds)

    # --- deeds ----------------------------------------------------------------------------------

    async def _pause(self, run_id: UUID) -> None:
        await self._moment(1.0)
        if await self.do(run_id, lambda each: each.pause(STEERS, run_id)):
            self._world.note(f"{run_id.int & 0xFFFF} is paused")
        await self._moment(1.0)
        await self.do(run_id, lambda each: each.resume(STEERS, run_id))

    async def _hold(self, run_id: UUID, place: Place) -> None:
        await self._moment(0.6)
        await self.do(run_id, lambda each: each.pause_node(STEERS, run_id, place.id))
        await self._moment(1.0)
        await self.do(run_id, lambda each: each.resume_node(STEERS, run_id, place.id))

    async def _hold_late(self, run_id: UUID, place: Place) -> None:
        """Hold up what closes the run, in its turn or before it, once that is possible."""
        row = self._world.store.runs[run_id]
        while row["status"] not in RUN_FINAL:
            if await self.do(run_id, lambda each: each.pause_node(STEERS, run_id, place.id)):
                self._world.note(f"{place.id} of {run_id.int & 0xFFFF} is held up as it closes")
                break
            await self._moment(0.2)
        await self._moment(1.0)
        await self.do(run_id, lambda each: each.resume_node(STEERS, run_id, place.id))

    async def _cancel_a_part(self, run_id: UUID) -> None:
        """Cancel the run of a sub-workflow: its parent goes on, and may be paused meanwhile."""
        await self._moment(1.5)
        parts = self._world.store.children_of[run_id]
        if parts:
            await self._clients.cancel(self._world.chance.choice(parts))
            if self._world.chance.random() < 0.5:
                await self._pause(run_id)

    async def _skip(self, run_id: UUID, place: Place) -> None:
        await self._moment(0.8)
        text = self._world.chance.choice(("", _outputs(place)))
        self._world.by_hand[run_id, place.id] = text
        if await self.do(run_id, lambda each: each.skip_node(STEERS, run_id, place.id, text)):
            self._world.note(f"{place.id} of {run_id.int & 0xFFFF} is ended by hand")

    async def _bring(self, run_id: UUID, name: str) -> None:
        await self._moment(1.2)
        await self.bring(run_id, name)

    async def bring(self, run_id: UUID, name: str) -> None:
        """Send a word, and answer an approval with it where that is what has the name."""
        world = self._world
        word = world.new_id()
        kinds = {each.kind for each in world.plan_of(run_id).places if _waits_for(each, name)}
        said = str(world.chance.randrange(50))
        answer = Answer(name=name, approved=True, comment="", reply_json=said)

        async def bring(orchestrator: Orchestrator) -> None:
            controls = self._controls(orchestrator)
            messenger = SimulatedMessenger(controls, orchestrator.database)
            if Kind.APPROVAL in kinds:
                await messenger.answer(STEERS, run_id, answer, word)
            else:
                await messenger.send(STEERS, run_id, name, said, word)

        if await self._until_answered(run_id, bring):
            self.sent.add(word_id_of(STEERS, word))

    async def do(self, run_id: UUID, deed: Callable[[Controls], Awaitable[Any]]) -> bool:
        """Ask until there is an answer; returns whether it was done."""

        async def ask(orchestrator: Orchestrator) -> None:
            await deed(self._controls(orchestrator))

        return await self._until_answered(run_id, ask)

    def _controls(self, orchestrator: Orchestrator) -> Controls:
        return SimulatedControls(cast("Any", self._reader), orchestrator.engine)

    async def _until_answered(self, run_id: UUID, ask: Callable[[Orchestrator], Any]) -> bool:
        while True:
            try:
                await self._clients.ask(ask, run_id)
            except (Unavailable, OSError):
                await asyncio.sleep(0.1)
            except FailedPrecondition:
                return False  # the run or the node is over, or has begun
            else:
                return True

    async def _moment(self, within_s: float) -> None:
        await asyncio.sleep(self._world.chance.random() * within_s)

    # --- the end --------------------------------------------------------------------------------

    async def help(self) -> None:
        """Let everything go that was held up, and bring what is waited for without end."""
        store = self._world.store
        while True:
            for run_id, run in list(store.runs.items()):
                if run["status"] not in RUN_FINAL:
                    await self._help(run_id, run["status"])
            await asyncio.sleep(_HELP_S)

    async def _help(self, run_id: UUID, status: str) -> None:
        if status == "paused":
            await self.do(run_id, lambda each: each.resume(STEERS, run_id))
        plan = self._world.plan_of(run_id)
        for name, row in list(self._world.store.nodes_of[run_id].items()):
            if row["status"] == "paused":
                await self._let_go(run_id, name)
            wait = plan.places[plan.index[name]].wait if name in plan.index else None
            if row["status"] == "waiting" and wait is not None and row["due_at"] is None:
                await self.bring(run_id, wait.name)

    async def _let_go(self, run_id: UUID, name: str) -> None:
        await self.do(run_id, lambda each: each.resume_node(STEERS, run_id, name))

    def check(self) -> None:
        """Hold the words that were brought against what is there in the end (G1)."""
        for word in self.sent:
            assert word in self._world.store.signals, "G1: a word was taken, and is not there"


def _waits_for(place: Place, name: str) -> bool:
    return place.wait is not None and place.wait.name == name


def _outputs(place: Place) -> str:
    """Give outputs in a node's stead."""
    values: dict[str, Any] = dict.fromkeys(place.outputs, 5)
    match place.kind:
        case Kind.CHOICE:
            values["branch"] = "odd"
        case Kind.SLEEP:
            values["result"] = "2026-01-01T00:00:00+00:00"
        case Kind.APPROVAL:
            values |= {"approved": True, "comment": "", "approver": str(STEERS.user_id)}
    for _ in range(place.map.depth if place.map is not None else 0):
        values = {name: [value, value] for name, value in values.items()}
    return json.dumps(values, separators=(",", ":"))
