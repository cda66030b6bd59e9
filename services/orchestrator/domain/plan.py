"""Plans: definitions compiled into index arrays, shared by all their runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any, Final, NamedTuple
from uuid import UUID

from qflow.types import Type

from services.kit.cel import Expression
from services.orchestrator.domain.needs import Needs, Wanted

NODE_TIMEOUT_MS_DEFAULT: Final = 600_000
NODE_MEMORY_BYTES_DEFAULT: Final = 512 * 1024 * 1024
# Sources of inputs that are no nodes of the graph.
FROM_RUN: Final = -1
FROM_LITERAL: Final = -2
FROM_TURN: Final = -3  # an output of the previous turn of a loop
# The output of a failed node, for failure edges.
ERROR_OUTPUT: Final = "error"


class Kind(StrEnum):
    """The kinds of places, as definitions name them."""

    PYTHON = "python"
    CHOICE = "choice"
    SLEEP = "sleep"
    SIGNAL = "signal"
    APPROVAL = "approval"
    WORKFLOW = "workflow"


class Phase(IntEnum):
    """The phases of a run in which places run."""

    MAIN = 0
    COMPENSATION = 1  # after a failed or cancelled main phase
    FINALLY = 2  # after everything else


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often, when and for which failures an attempt is retried."""

    max_retries: int = 3
    initial_delay_ms: int = 1000
    factor: float = 2.0
    max_delay_ms: int = 60_000
    jitter: float = 0.1
    retryable: Sequence[str] = ()  # error types and exception classes; all if empty
    non_retryable: Sequence[str] = ()


NO_RETRY: Final = RetryPolicy(max_retries=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """One input of a place: the source of its value and its conversion."""

    name: str
    source: int  # index of a place, or one of FROM_…
    output: int  # index into the source's outputs, if it is a place
    key: str  # name of the source's output, or of the run's input
    literal: bytes  # the value of a literal, or the default of a run's input; else empty
    conversion: str
    source_type_json: str
    absent: bytes = b""  # the value if the source has none; empty: no value


class Link(NamedTuple):
    """How the end of one place counts for another."""

    child: int
    done: bool  # it counts if the source completed
    branches: frozenset[str]  # … or took one of these branches
    failure: bool  # … or failed for good

    @property
    def only_failure(self) -> bool:
        """Whether only the failure of the source counts."""
        return self.failure and not self.done and not self.branches


@dataclass(frozen=True, slots=True)
class MapRule:
    """Runs a place once for each element of a list."""

    input: str
    depth: int
    max_in_flight: int
    max_failed: int
    max_failed_ratio: float

    def allowed(self, count: int) -> int:
        """Return how many of so many elements may fail."""
        return max(self.max_failed, int(self.max_failed_ratio * count))


@dataclass(frozen=True, slots=True)
class LoopRule:
    """Repeats a place while a condition holds."""

    condition: Expression
    max_turns: int
    carry: Mapping[str, int]  # output of the previous turn, by input
    fails_at_max: bool


@dataclass(frozen=True, slots=True)
class WaitRule:
    """Makes a place wait for a signal or approval."""

    name: str
    type: Type | None
    timeout_ms: int | None
    default: bytes | None


@dataclass(frozen=True, slots=True)
class ChoiceRule:
    """Makes a place take the first branch whose condition holds."""

    branches: Sequence[tuple[str, Expression]]
    default: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One node of the graph, with everything that an attempt needs."""

    id: str
    node_version_id: UUID
    python_version: str
    inputs: tuple[Binding, ...]
    outputs: tuple[str, ...]
    output_types: tuple[Type, ...]  # of each output; lists for a map
    retry: RetryPolicy
    timeout_ms: int
    memory_bytes: int
    # Its other resource limits that differ from the default.
    limits: Mapping[str, int] = field(default_factory=dict, hash=False)
    node_id: UUID | None = None  # of the registry
    kind: Kind = Kind.PYTHON
    phase: Phase = Phase.MAIN
    needed: int | None = None  # how many active sources suffice; None: all
    all_done: bool = False  # runs however its sources ended
    rescues: bool = False  # has sources of which only the failure counts, and needs one
    condition: Expression | None = None
    handled: bool = False  # its failure does not stop the run
    compensates: int | None = None
    map: MapRule | None = None
    loop: LoopRule | None = None
    turn_inputs: tuple[Binding, ...] = ()  # of turns after the first
    choice: ChoiceRule | None = None
    wait: WaitRule | None = None
    sub: Plan | None = None
    queue_timeout_ms: int | None = None
    total_timeout_ms: int | None = None
    heartbeat_timeout_ms: int | None = None
    cache_ttl_ms: int | None = None  # None: results are not cached
    reuse: str = ""  # how far its calls share a process; empty: as far as possible
    needs: Needs | None = None  # requirements besides the Python version
    network: str = ""  # network mode; empty: none
    egress_hosts: tuple[str, ...] = ()
    concurrency: int = 0  # concurrent calls per interpreter; 0: one

    @property
    def wanted(self) -> Wanted:
        """What it requires of a runner."""
        return self.python_version if self.needs is None else self.needs

    @property
    def direct(self) -> bool:
        """Whether it goes to a runner as soon as it is ready, without further steps."""
        return (
            self.kind is Kind.PYTHON
            and self.condition is None
            and self.map is None
            and self.loop is None
        )

    @property
    def grouped(self) -> bool:
        """Whether it is a map or a loop."""
        return self.map is not None or self.loop is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInput:
    """An input of the workflow."""

    name: str
    type: Type
    required: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOutput:
    """An output of the workflow: which output of which place."""

    name: str
    source: int
    output: int
    type: Type  # as of when the definition was stored


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A definition with its versions pinned. Arrays are indexed by place, in definition order."""

    pins_id: UUID
    workflow_id: UUID | None  # None for a single node
    workflow_version: int | None
    places: tuple[Place, ...]
    children: tuple[tuple[int, ...], ...]
    links: tuple[tuple[Link, ...], ...]
    parents: tuple[int, ...]  # how many distinct places each one waits for
    readers: tuple[int, ...]  # how many places and run outputs read its output
    plain: tuple[bool, ...]  # all its links count exactly if it completes
    direct: tuple[bool, ...]  # goes straight to a runner once all its sources completed
    roots: tuple[int, ...]  # of the main phase
    compensations: tuple[int, ...]
    finals: tuple[int, ...]
    index: Mapping[str, int]
    inputs: tuple[RunInput, ...]
    outputs: tuple[RunOutput, ...]
    timeout_ms: int | None
    pythons: frozenset[str]  # Python versions of its places
    floating: bool = False  # has a sub-workflow without a fixed version

    @property
    def main_size(self) -> int:
        """Count the places of the main phase."""
        return len(self.places) - len(self.compensations) - len(self.finals)

    @property
    def python_version(self) -> str | None:
        """Return the Python version of the first place that has one, within sub-workflows too."""
        for place in self.places:
            found = place.python_version or (place.sub and place.sub.python_version)
            if found:
                return found
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeVersion:
    """The version of a Python node that a place is pinned to."""

    id: UUID
    python_version: str
    output_types: Sequence[Mapping[str, Any]]
    # Loaded only to check a definition against these versions for the first time.
    input_types: Sequence[Mapping[str, Any]] = ()
    node_id: UUID | None = None  # loaded only for a run of a single node


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """A stored workflow version, as its JSON columns hold it."""

    workflow_id: UUID | None
    version: int | None
    nodes: Sequence[Mapping[str, Any]]
    connections: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]
    input_types: Sequence[Mapping[str, Any]]
    output_types: Sequence[Mapping[str, Any]]

    def of_kind(self, kind: Kind) -> list[Mapping[str, Any]]:
        """Return the nodes of one kind."""
        return [node for node in self.nodes if kind_of(node) is kind]


def kind_of(node: Mapping[str, Any]) -> Kind:
    """Return the kind of a node of a stored definition."""
    return Kind(node.get("kind") or Kind.PYTHON)
