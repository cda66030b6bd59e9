"""The held streams: what waits to be sent to each runner."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias
from uuid import UUID

from services.orchestrator.domain.commands import AckCommand, KillCommand, SupersededCommand
from services.orchestrator.domain.plan import Binding, Place, Plan
from services.orchestrator.domain.values import Value

DEFINITIONS_MAX: Final = 4096  # that both ends of a stream keep

# Pins, place, whether it is the first turn, tenant, inputs given.
_Key: TypeAlias = tuple[UUID, int, bool, UUID, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Definition:
    """What a series of attempts has in common, told once per stream."""

    number: int
    place: Place
    tenant_id: UUID
    inputs: tuple[tuple[int, Binding], ...]  # the inputs that have a value, with their index


class Assignment(NamedTuple):
    """An attempt with its values."""

    attempt_ref: UUID
    token: int
    definition: int
    run_id: UUID
    attempt: int
    values: Sequence[Value]
    pull: bool
    progress: str = ""  # of an earlier attempt, JSON text
    traceparent: str = ""  # the run's place in a trace


class Owned(NamedTuple):
    """An attempt is another member's to answer for, or is this one's."""

    attempt_ref: UUID
    token: int
    member_id: UUID


class Peers(NamedTuple):
    """Where the other orchestrators may be reached."""

    addresses: tuple[str, ...]


class Demand(NamedTuple):
    """How many places wait for a runner."""

    waiting: int


Command = AckCommand | SupersededCommand | KillCommand | Owned | Peers | Demand
Outgoing = Definition | Assignment | Command


@dataclass(slots=True, eq=False)
class Stream:
    """One runner's stream: commands queue here after their commit, the RPC sends them."""

    runner: UUID
    definitions_max: int = DEFINITIONS_MAX
    outgoing: list[Outgoing] = field(default_factory=list)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    closed: bool = False
    by_lane: bool = False  # whether what it sends travels beside it
    # Says commands without a wait, where there is a way for that; whether it did.
    say: Callable[[Sequence[Outgoing]], bool] | None = None
    _awaited: bool = False  # whether somebody waits for what is queued next
    _definitions: OrderedDict[_Key, Definition] = field(default_factory=OrderedDict)

    def send(self, command: Outgoing) -> None:
        """Have a command sent."""
        self.queue(command)
        self.let_go()

    def queue(self, command: Outgoing) -> None:
        """Have a command sent with what is let go next."""
        if not self.closed:
            self.outgoing.append(command)

    def let_go(self) -> None:
        """Have what is queued sent: at once where that can be, else by whoever takes it.

        Nothing overtakes what was taken before: at once is only while the taker waits for more.
        """
        if not self.outgoing:
            return
        if self._awaited and not self.ready.is_set() and self.say and self.say(self.outgoing):
            self.outgoing = []
        else:
            self.ready.set()

    def define(
        self,
        plan: Plan,
        place: int,
        tenant_id: UUID,
        given: tuple[int, ...],
        *,
        first: bool = True,
    ) -> Definition:
        """Return what attempts of a place share, queued for the runner before its first use.

        A loop's turns after the first take other inputs.
        """
        key = (plan.pins_id, place, first, tenant_id, given)
        known = self._definitions.get(key)
        if known is None:
            number = len(self._definitions) + 1
            if number > self.definitions_max:  # the one that was used longest ago makes room
                _, forgotten = self._definitions.popitem(last=False)
                number = forgotten.number
            bindings = plan.places[place].inputs if first else plan.places[place].turn_inputs
            known = self._definitions[key] = Definition(
                number=number,
                place=plan.places[place],
                tenant_id=tenant_id,
                inputs=tuple((at, bindings[at]) for at in given),
            )
            self.queue(known)
        self._definitions.move_to_end(key)
        return known

    async def take(self) -> list[Outgoing]:
        """Wait for commands and take them all, in order."""
        self._awaited = True
        try:
            await self.ready.wait()
        finally:
            self._awaited = False
        self.ready.clear()
        taken, self.outgoing = self.outgoing, []
        return taken

    def close(self) -> None:
        """Let the RPC end; what waits is derived again when the runner is back."""
        self.closed = True
        self.outgoing.clear()
        self.ready.set()
