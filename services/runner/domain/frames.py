"""The messages between runners and orchestrators, independent of their encoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID

from services.runner.domain.attempts import FileReference, Spliced
from services.runner.domain.limits import Asked, Tier
from services.runner.domain.network import NO_NETWORK, Network, Reach
from services.runner.domain.outcome import Outcome
from services.runner.domain.reuse import Reuse

Value = bytes | FileReference | Spliced | None


class ValuesNotGiven(Exception):  # noqa: N818 - not an error of the attempt
    """The inputs of an attempt are not available there now; perhaps elsewhere, or later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """What a series of assignments has in common."""

    number: int
    node_version_id: UUID
    tenant_id: UUID
    node_id: str
    inputs: Sequence[tuple[str, str]]  # (parameter, conversion)
    outputs: Sequence[str]
    timeout_s: float
    limits: Asked
    python_version: str
    reuse: Reuse = Reuse.WARM
    heartbeat_timeout_s: float = 0.0  # 0: heartbeats are not required
    network: Network = NO_NETWORK
    concurrency: int = 1  # how many calls may share an interpreter at the same time


class Assignment(NamedTuple):
    """One attempt to run."""

    attempt_ref: UUID
    token: int
    definition: int
    execution_id: UUID
    attempt: int
    values: Sequence[Value]
    pull: bool
    timeout_s: float
    progress: str = ""  # the last progress of an earlier attempt, as JSON text
    traceparent: str = ""


class Kill(NamedTuple):
    """An attempt to kill, with the time that it gets to end by itself."""

    attempt_ref: UUID
    token: int
    grace_s: float


class Owned(NamedTuple):
    """Which orchestrator, by member id, owns an attempt."""

    attempt_ref: UUID
    token: int
    member: str


@dataclass(slots=True, kw_only=True)
class Incoming:
    """One frame from an orchestrator."""

    definitions: Sequence[Definition] = ()
    assignments: Sequence[Assignment] = ()
    acks: Sequence[tuple[UUID, int]] = ()
    superseded: Sequence[tuple[UUID, int]] = ()
    kills: Sequence[Kill] = ()
    demand: int | None = None
    owners: Sequence[Owned] = ()
    peers: Sequence[str] | None = None  # addresses of the other orchestrators


class Finished(NamedTuple):
    """A finished attempt; kept until it is acknowledged."""

    attempt_ref: UUID
    token: int
    outcome: Outcome
    file: FileReference | None = None
    container_id: UUID | None = None
    transfer_us: int = 0
    killed: bool = False
    moved_bytes: int = 0


class Declined(NamedTuple):
    """An assignment that is declined."""

    attempt_ref: UUID
    token: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What nodes may require of this runner, besides a tier and a Python."""

    labels: Mapping[str, str] = field(default_factory=dict)
    cpus: int = 0
    memory_bytes: int = 0
    gpus: int = 0
    networks: Sequence[Reach] = ()  # besides none


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting:
    """Who this runner is, and which attempts it has."""

    incarnation: UUID
    slots: int
    tiers: Sequence[Tier]
    pythons: Sequence[str]
    machine: Machine
    running: Sequence[tuple[UUID, int]]
    finished: Sequence[tuple[UUID, int]]


@dataclass(slots=True)
class Outgoing:
    """Messages to be sent; all of them go in one write."""

    results: list[Finished] = field(default_factory=list)
    declines: list[Declined] = field(default_factory=list)
    grant: tuple[int, int] | None = None  # (credits, epoch)

    def __bool__(self) -> bool:
        return bool(self.results or self.declines or self.grant)
