"""One attempt as an orchestrator asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID


@dataclass(frozen=True, slots=True)
class FileReference:
    """A field of a committed file that holds one JSON object."""

    file_id: UUID
    size_bytes: int
    sha256: str
    field: str


class Input(NamedTuple):
    """One input: its exact JSON text or where that lies, and how the edge converts it."""

    name: str
    value: bytes | FileReference
    conversion: str = ""


class AttemptRequest(NamedTuple):
    """What to run, for whom, with what, and how long."""

    attempt_ref: UUID
    token: int
    execution_id: UUID
    tenant_id: UUID
    node_id: str
    node_version_id: UUID
    attempt: int
    inputs: Sequence[Input]
    outputs: Sequence[str]
    timeout_s: float
    memory_bytes: int = 0
