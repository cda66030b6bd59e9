"""Workflow definitions as frozen values, and the findings of their check."""

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
    """When a node's failed attempts are retried."""

    max_retries: int = int(table.MAX_RETRIES.default or 0)
    initial_delay_ms: int = int(table.INITIAL_DELAY.default or 0)
    factor: float = table.FACTOR.default or 0.0
    max_delay_ms: int = int(table.MAX_DELAY.default or 0)
    jitter: float = table.JITTER.default or 0.0
    # Error types; without `retryable`, all errors except the `non_retryable` ones are retried.
    retryable: tuple[str, ...] = ()
    non_retryable: tuple[str, ...] = ()

    def settings(self) -> Iterator[tuple[Setting, float | None]]:
        """Yield each setting with its value."""
        yield table.MAX_RETRIES, self.max_retries
        yield table.INITIAL_DELAY, self.initial_delay_ms
        yield table.FACTOR, self.factor
        yield table.MAX_DELAY, self.max_delay_ms
        yield table.JITTER, self.jitter


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowNode:
    """One place of a graph.

    `literals` are pairs of an input and JSON text; `variables` and `parameters` are pairs of an
    input and a name.
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
    construct: Construct | None = None  # None for a Python node
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
    reuse: str = ""  # empty: as much sharing as the node's author allows
    runner: Requirements | None = None
    heartbeat_timeout_ms: int | None = None
    network: str = ""  # empty: no network
    egress_hosts: tuple[str, ...] = ()
    concurrency: int = 0  # 0: one call at a time

    @property
    def kind(self) -> str:
        """The kind of what runs here."""
        return PYTHON if self.construct is None else self.construct.kind

    @property
    def continues(self) -> bool:
        """Whether the run continues if this node fails."""
        return self.on_failure == CONTINUE

    @property
    def is_main(self) -> bool:
        """Whether it runs in the main phase: neither in the finally phase nor as a compensation."""
        return self.phase != FINALLY and not self.compensates

    def settings(self) -> Iterator[tuple[Setting, float | None]]:
        """Yield each setting with its value."""
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
    # What the target gets if the source ends without a value; filled in by the check, as is the
    # next.
    absent: str = ""
    # The type the conversion reads, if it differs from the source's declared output.
    source_type: Type | None = None
    # JSON text of a value that a refuted edge could not carry; such edges are never stored.
    counter_example: str = ""

    @property
    def is_lossless(self) -> bool:
        """Whether the conversion keeps every value distinct."""
        return self.conversion not in LOSSY

    @property
    def ends(self) -> tuple[str, ...]:
        """The identity of an edge; two edges with equal ends are duplicates."""
        ends = (self.source, self.source_output, self.target, self.target_input)
        return (*ends, self.kind, self.branch) if self.kind else ends

    @property
    def is_value(self) -> bool:
        """Whether it carries a value to an input."""
        return not self.kind or (self.kind == FAILURE and bool(self.target_input))

    @property
    def is_branch(self) -> bool:
        """Whether it is a branch of a choice."""
        return self.kind == BRANCH


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowInput:
    """An input of the workflow; without a type, the type is inferred from what the input feeds."""

    name: str
    type: Type | None = None
    default_json: str | None = None
    # The type as the caller wrote it; the check parses it and reports its faults.
    type_text: str = field(default="", compare=False)

    @property
    def required(self) -> bool:
        """Whether a start must provide a value."""
        return self.default_json is None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowOutput:
    """A result of a run."""

    name: str
    node: str
    output: str
    type: Type | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A value to fill in when a workflow is created from this template."""

    name: str
    type: Type | None = None
    description: str = ""
    default_json: str | None = None
    # The type as the caller wrote it, as for an input.
    type_text: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """A whole workflow graph."""

    nodes: tuple[WorkflowNode, ...]
    connections: tuple[Connection, ...] = ()
    inputs: tuple[WorkflowInput, ...] = ()
    outputs: tuple[WorkflowOutput, ...] = ()
    timeout_ms: int | None = None
    parameters: tuple[Parameter, ...] = ()

    def settings(self) -> Iterator[tuple[Setting, float | None]]:
        """Yield each setting of the whole graph with its value."""
        yield table.RUN_TIMEOUT, self.timeout_ms

    @property
    def variables(self) -> frozenset[str]:
        """The names of the variables that its nodes read."""
        return frozenset(name for node in self.nodes for _, name in node.variables)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """An input of a node, as far as edges need it."""

    type: Type
    required: bool
    default_json: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """The signature of a node version, as far as edges need it."""

    python_version: str
    inputs: Mapping[str, InputSpec]
    outputs: Mapping[str, Type]
    # True for a sub-workflow; it has no Python version, since its nodes have their own.
    is_workflow: bool = False
    # Whether it accepts any connected input, by any name.
    is_open: bool = False
    # Whether several calls can share one event loop, as for an `async def`.
    is_async: bool = False


# By node id and requested version, 0 for the current one. None: no such version.
Signatures = Mapping[tuple[UUID, int], Signature | None]


@dataclass(frozen=True, slots=True)
class Finding:
    """A finding in a definition, with the path of the affected part."""

    severity: str
    place: str
    code: str
    message: str
    hint: str = ""
    # For a refuted edge: a value that it could not carry, and the conversions that would fix it.
    counter_example: str = ""
    mended_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Checked:
    """A definition as it would be stored, with all findings, worst first."""

    definition: Definition
    findings: tuple[Finding, ...]

    @property
    def storable(self) -> bool:
        """Whether it can be stored."""
        return all(each.severity != ERROR for each in self.findings)

    @property
    def activatable(self) -> bool:
        """Whether it can be activated."""
        return all(each.severity == INFO for each in self.findings)
