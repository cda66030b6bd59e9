"""Commands to execute once a change of a run is committed."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias
from uuid import UUID


class AssignCommand(NamedTuple):
    """Send an attempt to the runner in its row."""

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
    """Tell a runner to kill an attempt and report it."""

    runner: UUID
    attempt_ref: UUID
    token: int


class Finished(NamedTuple):
    """Forget a run that has ended."""

    run_id: UUID


class CacheCommand(NamedTuple):
    """Store a committed result in the cache."""

    node_execution_id: UUID
    node_version_id: UUID
    tenant_id: UUID
    digest: str
    ttl_ms: int


Command: TypeAlias = (
    AssignCommand | AckCommand | SupersededCommand | KillCommand | Finished | CacheCommand
)
