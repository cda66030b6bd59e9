"""Workflows as frozen values: what is stored, and what is found in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from qflow.types import LOSSY, Type

from services.registry.domain import setting_table as table
from services.registry.domain.constructs import (
    BRANCH,
    CONTINUE,
    DATA,
    FAILURE,
    FINALLY,
    PYTHON,
    Construct,
    Join,
    Loop,
    Map,
    Requirements,
)
from services.registry.domain.node_limits import DEFAULT as DEFAULT_LIMITS
from services.registry.domain.node_limits import NodeLimits
from services.registry.domain.setting_table import Setting

NODES_MAX: Final = 10_000
CONNECTIONS_MAX: Final = 50_000
TIMEOUT_MS_DEFAULT: Final = int(table.NODE_TIMEOUT.default or 0)
MEMORY_BYTES_DEFAULT: Final = int(table.MEMORY_LIMIT.default or 0)

ERROR: Final = "error"
WARNING: Final = "warning"
INFO: Final = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """When failed attempts of a node are tried again."""

    max_retries: int = int(table.MAX_RETRIES.default or 0)
    initial_delay_ms: int = int(table.INITIAL_DELAY.default or 0)
    factor: float = table.FACTOR.default or 0.0
    max_delay_ms: int = int(table.MAX_DELAY.default or 0)
    jitter: float = table.JITTER.default or 0.0
    # Of error types; without any, every error is tried again that is not named as no use.
    retryable: tuple[str, ...] = ()
    non_retryable: tuple[str, ...] = ()

    def settings(self) -> Iterator[tuple[Setting, float | None]]:
        """Give each of its settings with its value."""
        yield table.MAX_RETRIES, self.max_retries
        yield table.INITIAL_DELAY, self.initial_delay_ms
        yield table.FACTOR, self.factor
        yield table.MAX_DELAY, self.max_delay_ms
        yield table.JITTER, self.jitter


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowNode:
    """One place of a graph.

    `literals` are pairs of an input and JSON text, `variables` and `parameters` of an input and a
    name.
    """

    id: str
    node_id: UUID
    version: int = 0
    literals: tuple[tuple[str, str], ...] = ()
    retry: Retry | None = None
    timeout_ms: int = TIMEOUT_MS_DEFAULT
    memory_bytes: int = MEMORY_BYTES_DEFAULT
    variables: tuple[tuple[str, str], ...] = ()
    parameters: tuple[tuple[str, str], ...] = ()
    construct: Construct | None = None  # what runs here in the place of a Python node
    join: Join | None = None
    condition: str = ""
    on_failure: str = ""
    phase: str = ""
    compensates: str = ""
    mapped: Map | None = None
    loop: Loop | None = None
    queue_timeout_ms: int | None = None
    total_timeout_ms: int | None = None
    limits: NodeLimits = DEFAULT_LIMITS
    cache_ttl_ms: int | None = None
    reuse: str = ""  # empty: as much as the node's author allows
    runner: Requirements | None = None
    heartbeat_timeout_ms: int | None = None
    network: str = ""  # empty: none
    egress_hosts: tuple[str, ...] = ()
    concurrency: int = 0  # 0: one call at a time

    @property
    def kind(self) -> str:
        """What runs here."""
        return PYTHON if self.construct is None else self.construct.kind

    @property
    def continues(self) -> bool:
        """Whether its failure is said not to stop the run."""
        return self.on_failure == CONTINUE

    @property
    def is_main(self) -> bool:
        """Whether it runs as its sources end: not last of all, and not to undo another."""
        return self.phase != FINALLY and not self.compensates

    def settings(self) -> Iterator[tuple[Setting, float | None]]:
        """Give each of its settings with its value."""
        yield table.NODE_TIMEOUT, self.timeout_ms
        yield table.MEMORY_LIMIT, self.memory_bytes
        yield from self.limits.settings()
        yield table.QUEUE_TIMEOUT, self.queue_timeout_ms
        yield table.TOTAL_TIMEOUT, self.total_timeout_ms
        yield table.HEARTBEAT_TIMEOUT, self.heartbeat_timeout_ms
        yield table.CACHE_TTL, self.cache_ttl_ms
        yield table.CONCURRENCY, self.concurrency or 1
        if self.runner is not None:
            yield table.RUNNER_CPUS, self.runner.cpus
            yield table.RUNNER_MEMORY, self.runner.memory_bytes
            yield table.RUNNER_GPUS, self.runner.gpus
        if self.retry is not None:
            yield from self.retry.settings()


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """An edge; an empty `source` is the workflow's own input."""

    source: str
    source_output: str
    target: str
    target_input: str
    conversion: str = ""
    verdict: str = ""
    kind: str = DATA
    branch: str = ""
    # What is given where the source ends without a value; decided by the check, as the next is.
    absent: str = ""
    # What the conversion reads, where that is not the source's output as its version has it.
    source_type: Type | None = None
    # JSON text of a value that a refuted edge could not carry; such an edge is never stored.
    counter_example: str = ""

    @property
    def is_lossless(self) -> bool:
        """Whether what it carries always arrives, and can be told from all else."""
        return self.conversion not in LOSSY

    @property
    def ends(self) -> tuple[str, ...]:
        """What makes two edges the same."""
        ends = (self.source, self.source_output, self.target, self.target_input)
        return (*ends, self.kind, self.branch) if self.kind else ends

    @property
    def is_value(self) -> bool:
        """Whether it carries a value to an input."""
        return not self.kind or (self.kind == FAILURE and bool(self.target_input))

    @property
    def is_branch(self) -> bool:
        """Whether it is a way out of a choice."""
        return self.kind == BRANCH


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowInput:
    """What a starter gives; without a type it is taken from what the input feeds."""

    name: str
    type: Type | None = None
    default_json: str | None = None
    # The form of the type as a caller wrote it: the check reads it, and tells what is wrong in it.
    type_text: str = field(default="", compare=False)

    @property
    def required(self) -> bool:
        """Whether a starter must give it."""
        return self.default_json is None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowOutput:
    """What a run answers with."""

    name: str
    node: str
    output: str
    type: Type | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """What is filled in when a workflow is made of this one."""

    name: str
    type: Type | None = None
    description: str = ""
    default_json: str | None = None
    # The form of the type as a caller wrote it, as of an input.
    type_text: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """A graph, whole."""

    nodes: tuple[WorkflowNode, ...]
    connections: tuple[Connection, ...] = ()
    inputs: tuple[WorkflowInput, ...] = ()
    outputs: tuple[WorkflowOutput, ...] = ()
    timeout_ms: int | None = None
    parameters: tuple[Parameter, ...] = ()

    def settings(self) -> Iterator[tuple[Setting, float | None]]:
        """Give each of the settings of the whole graph with its value."""
        yield table.RUN_TIMEOUT, self.timeout_ms

    @property
    def variables(self) -> frozenset[str]:
        """The names of the variables that its nodes read."""
        return frozenset(name for node in self.nodes for _, name in node.variables)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """An input of a node, as far as edges need to know it."""

    type: Type
    required: bool
    default_json: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What edges need to know of one version of a node."""

    python_version: str
    inputs: Mapping[str, InputSpec]
    outputs: Mapping[str, Type]
    # Of a workflow that runs as a node of another; the runs of its nodes have a Python each.
    is_workflow: bool = False
    # Whether it takes whatever is connected to it, under any name.
    is_open: bool = False
    # Whether its calls may meet on one event loop: it is an `async def`.
    is_async: bool = False


# By node and by the version that was asked for; 0 asks for the current one. None: no such version.
Signatures = Mapping[tuple[UUID, int], Signature | None]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something found in a definition, with the path of the part that has it."""

    severity: str
    place: str
    code: str
    message: str
    hint: str = ""
    # Of a refuted edge: a value that it could not carry, and the conversions that would mend it.
    counter_example: str = ""
    mended_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Checked:
    """A definition as it would be stored, and everything that was found in it, worst first."""

    definition: Definition
    findings: tuple[Finding, ...]

    @property
    def storable(self) -> bool:
        """Whether nothing hinders storing it."""
        return all(each.severity != ERROR for each in self.findings)

    @property
    def activatable(self) -> bool:
        """Whether nothing hinders starting it."""
        return all(each.severity == INFO for each in self.findings)
