"""One attempt, as an orchestrator requests it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from services.runner.domain.limits import NOTHING_ASKED, Asked
from services.runner.domain.network import NO_NETWORK, Network
from services.runner.domain.reuse import Reuse


@dataclass(frozen=True, slots=True)
class FileReference:
    """A committed file with one JSON object; as an input, one of its fields or list elements."""

    file_id: UUID
    size_bytes: int
    sha256: str
    field: str
    index: int | None = None  # of the list in that field
    counts: Mapping[str, int] = dataclasses.field(
        default_factory=dict
    )  # lengths of the fields that are lists


@dataclass(frozen=True, slots=True)
class Spliced:
    """A JSON text in pieces, some of which are in files."""

    pieces: Sequence[bytes | FileReference]


class Input(NamedTuple):
    """One input: its exact JSON text or where that is stored, and the edge's conversion."""

    name: str
    value: bytes | FileReference | Spliced
    conversion: str = ""


class AttemptRequest(NamedTuple):
    """What to run, for whom, with what, and for how long."""

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
    limits: Asked = NOTHING_ASKED
    reuse: Reuse = Reuse.WARM
    heartbeat_timeout_s: float = 0.0  # 0: heartbeats are not required
    progress: str = ""  # the last progress of an earlier attempt, as JSON text
    network: Network = NO_NETWORK
    traceparent: str = ""  # the run's place in a trace
    concurrency: int = 1  # how many calls may share an interpreter at the same time
