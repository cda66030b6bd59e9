"""Plans: definitions compiled once to index arrays that all their runs share."""

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
# Where an input comes from when it is no node of the graph.
FROM_RUN: Final = -1
FROM_LITERAL: Final = -2
FROM_TURN: Final = -3  # of a loop: an output of the turn before
# The word of a failed node, for whoever is connected to its failure.
ERROR_OUTPUT: Final = "error"


class Kind(StrEnum):
    """What runs at a place; the words are the definition's."""

    PYTHON = "python"
    CHOICE = "choice"
    SLEEP = "sleep"
    SIGNAL = "signal"
    APPROVAL = "approval"
    WORKFLOW = "workflow"


class Phase(IntEnum):
    """When a place has its turn."""

    MAIN = 0
    COMPENSATION = 1  # after the main phase ended badly
    FINALLY = 2  # after everything else


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often, when and after what a failed attempt is tried again."""

    max_retries: int = 3
    initial_delay_ms: int = 1000
    factor: float = 2.0
    max_delay_ms: int = 60_000
    jitter: float = 0.1
    retryable: Sequence[str] = ()  # these error types and classes alone; all when empty
    non_retryable: Sequence[str] = ()


NO_RETRY: Final = RetryPolicy(max_retries=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """One input of a place: where its value comes from and what happens to it on the way."""

    name: str
    source: int  # index of a place, or one of FROM_…
    output: int  # index into the source's outputs; meaningless otherwise
    key: str  # name of the source's output, or of the run's input
    literal: bytes  # the value of a literal, or the default of a run's input; else empty
    conversion: str
    source_type_json: str
    absent: bytes = b""  # what is given where the source gave nothing; empty: nothing is given


class Link(NamedTuple):
    """What one place's end means to another."""

    child: int
    done: bool  # it counts when the source completed
    branches: frozenset[str]  # … or took one of these branches
    failure: bool  # … or failed for good

    @property
    def only_failure(self) -> bool:
        """Whether nothing else than its source's failure counts for the other place."""
        return self.failure and not self.done and not self.branches


@dataclass(frozen=True, slots=True)
class MapRule:
    """A place that runs once for each element of a list."""

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
    """A place that runs again while a condition holds."""

    condition: Expression
    max_turns: int
    carry: Mapping[str, int]  # the input that takes an output of the turn before
    fails_at_max: bool


@dataclass(frozen=True, slots=True)
class WaitRule:
    """A place that waits for a word from outside."""

    name: str
    type: Type | None
    timeout_ms: int | None
    default: bytes | None


@dataclass(frozen=True, slots=True)
class ChoiceRule:
    """A place that takes one of its branches: the first whose condition holds."""

    branches: Sequence[tuple[str, Expression]]
    default: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One node of the graph with all that an attempt needs."""

    id: str
    node_version_id: UUID
    python_version: str
    inputs: tuple[Binding, ...]
    outputs: tuple[str, ...]
    output_types: tuple[Type, ...]  # of each output; of a map, lists of what its elements give
    retry: RetryPolicy
    timeout_ms: int
    memory_bytes: int
    # Its other limits, where they are not the default.
    limits: Mapping[str, int] = field(default_factory=dict, hash=False)
    node_id: UUID | None = None  # of the node, whatever its version
    kind: Kind = Kind.PYTHON
    phase: Phase = Phase.MAIN
    needed: int | None = None  # how many active sources are enough; None: it waits for all
    all_done: bool = False  # it runs however its sources ended
    rescues: bool = False  # of some of its sources the failure alone counts: one has to come
    condition: Expression | None = None
    handled: bool = False  # its failure does not stop the run
    compensates: int | None = None
    map: MapRule | None = None
    loop: LoopRule | None = None
    turn_inputs: tuple[Binding, ...] = ()  # of a loop's turns after the first
    choice: ChoiceRule | None = None
    wait: WaitRule | None = None
    sub: Plan | None = None
    queue_timeout_ms: int | None = None
    total_timeout_ms: int | None = None
    heartbeat_timeout_ms: int | None = None
    cache_ttl_ms: int | None = None  # of a node that runs once, and on a runner
    reuse: str = ""  # how much of a process its calls share; empty: as much as they may
    needs: Needs | None = None  # of a runner, besides a Python
    network: str = ""  # what its code reaches; empty: nothing
    egress_hosts: tuple[str, ...] = ()
    concurrency: int = 0  # how many calls one interpreter serves at once; 0: one

    @property
    def wanted(self) -> Wanted:
        """What it needs of a runner."""
        return self.python_version if self.needs is None else self.needs

    @property
    def direct(self) -> bool:
        """Whether it needs a runner as soon as it is ready, and nothing else."""
        return (
            self.kind is Kind.PYTHON
            and self.condition is None
            and self.map is None
            and self.loop is None
        )

    @property
    def grouped(self) -> bool:
        """Whether it runs as elements of a map or as turns of a loop."""
        return self.map is not None or self.loop is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInput:
    """An input of the workflow, for whoever starts it."""

    name: str
    type: Type
    required: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOutput:
    """An output of the workflow: which output of which place."""

    name: str
    source: int
    output: int
    type: Type  # that was declared when the definition was stored


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A definition with its versions pinned. Arrays are indexed by place, in definition order."""

    pins_id: UUID
    workflow_id: UUID | None  # none of a node that runs alone
    workflow_version: int | None
    places: tuple[Place, ...]
    children: tuple[tuple[int, ...], ...]
    links: tuple[tuple[Link, ...], ...]
    parents: tuple[int, ...]  # how many distinct places each one waits for
    readers: tuple[int, ...]  # how many places and outputs read what it gives
    plain: tuple[bool, ...]  # all its links count when it completes, and only then
    direct: tuple[bool, ...]  # it needs a runner and waits for all its sources
    roots: tuple[int, ...]  # of the main phase
    compensations: tuple[int, ...]
    finals: tuple[int, ...]
    index: Mapping[str, int]
    inputs: tuple[RunInput, ...]
    outputs: tuple[RunOutput, ...]
    timeout_ms: int | None
    pythons: frozenset[str]  # that its places need
    floating: bool = False  # a sub-workflow of it follows its current version

    @property
    def main_size(self) -> int:
        """Count the places of the main phase."""
        return len(self.places) - len(self.compensations) - len(self.finals)

    @property
    def python_version(self) -> str | None:
        """Give the Python of the first place that has one; of a sub-workflow that is its first."""
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
    # Read only to hold a definition against versions it was not compiled with before.
    input_types: Sequence[Mapping[str, Any]] = ()
    node_id: UUID | None = None  # read only for a node that runs alone: no definition names it


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
        """Give the nodes of one kind."""
        return [node for node in self.nodes if kind_of(node) is kind]


def kind_of(node: Mapping[str, Any]) -> Kind:
    """Say what runs at a place of a stored definition."""
    return Kind(node.get("kind") or Kind.PYTHON)
