"""The streams of attached runners: what is queued to be sent on each."""

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

DEFINITIONS_MAX: Final = 4096  # kept by both ends of a stream

# Pins, place, whether it is the first turn of a loop, tenant, which inputs have values.
_Key: TypeAlias = tuple[UUID, int, bool, UUID, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Definition:
    """What attempts of one place have in common; sent once per stream."""

    number: int
    place: Place
    tenant_id: UUID
    inputs: tuple[tuple[int, Binding], ...]  # the inputs that have a value, with their index


class Assignment(NamedTuple):
    """An attempt to run, with its values."""

    attempt_ref: UUID
    token: int
    definition: int
    run_id: UUID
    attempt: int
    values: Sequence[Value]
    pull: bool
    progress: str = ""  # of an earlier attempt, JSON text
    traceparent: str = ""  # W3C trace context of the run


class Owned(NamedTuple):
    """Tells a runner which member owns an attempt's run."""

    attempt_ref: UUID
    token: int
    member_id: UUID


class Peers(NamedTuple):
    """Addresses of the other orchestrators."""

    addresses: tuple[str, ...]


class Demand(NamedTuple):
    """How many nodes wait for a runner."""

    waiting: int


Command = AckCommand | SupersededCommand | KillCommand | Owned | Peers | Demand
Outgoing = Definition | Assignment | Command


@dataclass(slots=True, eq=False)
class Stream:
    """One runner's stream: commands are queued after their commit and sent by the RPC."""

    runner: UUID
    definitions_max: int = DEFINITIONS_MAX
    outgoing: list[Outgoing] = field(default_factory=list)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    closed: bool = False
    by_lane: bool = False  # whether frames go through a unix socket beside the RPC
    # Sends commands without waiting, if that is possible; returns whether it did.
    say: Callable[[Sequence[Outgoing]], bool] | None = None
    _awaited: bool = False  # whether `take` is waiting
    _definitions: OrderedDict[_Key, Definition] = field(default_factory=OrderedDict)

    def send(self, command: Outgoing) -> None:
        """Queue a command and send what is queued."""
        self.queue(command)
        self.let_go()

    def queue(self, command: Outgoing) -> None:
        """Queue a command for the next `let_go`."""
        if not self.closed:
            self.outgoing.append(command)

    def let_go(self) -> None:
        """Send what is queued: directly if possible, else by waking `take`.

        It is sent directly only while `take` waits, so that it does not overtake what was taken.
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
        """Return the definition for attempts of a place; queues it before its first use.

        Turns of a loop after the first (`first=False`) have other inputs.
        """
        key = (plan.pins_id, place, first, tenant_id, given)
        known = self._definitions.get(key)
        if known is None:
            number = len(self._definitions) + 1
            if number > self.definitions_max:  # evict the least recently used
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
        """Wait for commands; remove and return them all, in order."""
        self._awaited = True
        try:
            await self.ready.wait()
        finally:
            self._awaited = False
        self.ready.clear()
        taken, self.outgoing = self.outgoing, []
        return taken

    def close(self) -> None:
        """End the RPC; what is queued is derived again when the runner reconnects."""
        self.closed = True
        self.outgoing.clear()
        self.ready.set()
