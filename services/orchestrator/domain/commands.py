"""What follows once a change of a run is committed."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias
from uuid import UUID


class AssignCommand(NamedTuple):
    """Send an attempt to the runner that holds its row."""

    runner: UUID
    run_id: UUID
    slot: int
    token: int


class AckCommand(NamedTuple):
    """Tell a runner that a result is committed."""

    runner: UUID
    attempt_ref: UUID
    token: int


class SupersededCommand(NamedTuple):
    """Tell a runner to kill and forget an attempt."""

    runner: UUID
    attempt_ref: UUID
    token: int


class KillCommand(NamedTuple):
    """Tell a runner to kill an attempt and say so."""

    runner: UUID
    attempt_ref: UUID
    token: int


class Finished(NamedTuple):
    """A run is over: forget it."""

    run_id: UUID


class CacheCommand(NamedTuple):
    """Keep a result, which is committed, for runs that would give its node the same inputs."""

    node_execution_id: UUID
    node_version_id: UUID
    tenant_id: UUID
    digest: str
    ttl_ms: int


Command: TypeAlias = (
    AssignCommand | AckCommand | SupersededCommand | KillCommand | Finished | CacheCommand
)
