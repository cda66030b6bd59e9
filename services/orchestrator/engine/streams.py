"""The held streams: what waits to be sent to each runner."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from uuid import UUID

from services.orchestrator.domain.plan import Binding, Place, Plan
from services.orchestrator.domain.rows import AckCommand, KillCommand, SupersededCommand
from services.orchestrator.domain.state import FileValue


@dataclass(frozen=True, slots=True)
class Definition:
    """What a series of attempts has in common, told once per stream."""

    number: int
    place: Place
    tenant_id: UUID
    inputs: tuple[tuple[int, Binding], ...]  # the inputs that have a value, with their index


@dataclass(frozen=True, slots=True)
class Assignment:
    """An attempt with its values."""

    attempt_ref: UUID
    token: int
    definition: int
    run_id: UUID
    attempt: int
    values: tuple[bytes | tuple[FileValue, str], ...]
    pull: bool


Outgoing = Definition | Assignment | AckCommand | SupersededCommand | KillCommand


@dataclass(slots=True, eq=False)
class Stream:
    """One runner's stream: commands queue here after their commit, the RPC sends them."""

    runner: UUID
    outgoing: list[Outgoing] = field(default_factory=list)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    closed: bool = False
    _definitions: dict[tuple[int, int, UUID, tuple[int, ...]], Definition] = field(
        default_factory=dict
    )
    _plans: list[Plan] = field(default_factory=list)  # kept, so that their ids stay theirs

    def send(self, command: Outgoing) -> None:
        """Queue a command."""
        self.outgoing.append(command)
        self.ready.set()

    def define(self, plan: Plan, place: int, tenant_id: UUID, given: tuple[int, ...]) -> Definition:
        """Return what attempts of a place share, telling the runner before its first use."""
        key = (id(plan), place, tenant_id, given)
        known = self._definitions.get(key)
        if known is None:
            if not any(each is plan for each in self._plans):
                self._plans.append(plan)
            bindings = plan.places[place].inputs
            known = Definition(
                number=len(self._definitions) + 1,
                place=plan.places[place],
                tenant_id=tenant_id,
                inputs=tuple((at, bindings[at]) for at in given),
            )
            self._definitions[key] = known
            self.send(known)
        return known

    async def take(self) -> list[Outgoing]:
        """Wait for commands and take them all, in order."""
        await self.ready.wait()
        self.ready.clear()
        taken, self.outgoing = self.outgoing, []
        return taken

    def close(self) -> None:
        """Let the RPC end."""
        self.closed = True
        self.ready.set()
