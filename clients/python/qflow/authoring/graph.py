"""A graph under construction: places, their inputs and their edges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, Literal, TypeAlias

from qflow.authoring.refs import Ref, Source, place_of, source_of
from qflow.changing import changed
from qflow.exceptions import AuthoringError
from qflow.types import Type

Isolation: TypeAlias = Literal["warm", "fork", "fresh", "container"]
Network: TypeAlias = Literal["none", "egress", "host"]
Tier: TypeAlias = Literal["T0", "T1", "T2", "T3", "T4"]
# Ids of places, edges between them, labels, and which places are compensations.
Picture: TypeAlias = tuple[list[str], list[tuple[str, str]], dict[str, str], frozenset[str]]
EdgeKind: TypeAlias = Literal["order", "branch", "failure"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """When a failed attempt is retried: at most `max_retries` times, with growing delays.

    `on` and `never_on` name exception classes (`"ValueError"`), without their subclasses, or error
    types (`"timeout"`); without `on` all failures are retried.
    """

    max_retries: int = 3
    initial_delay: timedelta = timedelta(seconds=1)
    factor: float = 2.0
    max_delay: timedelta = timedelta(seconds=60)
    jitter: float = 0.1
    on: tuple[str, ...] = ()
    never_on: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """What a place requires of the machine that runs it; nothing is reserved.

    `isolation` is the minimum tier.
    """

    isolation: Tier | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    cpus: int = 0
    memory_bytes: int = 0
    gpus: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of a place; the server's defaults apply to those not set."""

    id: str = ""
    retry: Retry | None = None
    timeout: timedelta | None = None
    queue_timeout: timedelta | None = None
    total_timeout: timedelta | None = None
    heartbeat_timeout: timedelta | None = None
    memory_bytes: int = 0
    cpu_millicores: int = 0
    processes: int = 0
    open_files: int = 0
    temporary_bytes: int = 0
    output_bytes: int = 0
    network: Network | None = None
    egress_hosts: Sequence[str] = ()
    runner: Runner | None = None
    cache_ttl: timedelta | None = None
    reuse: Isolation | None = None
    concurrency: int = 0
    condition: str = ""
    join: Literal["all", "any", "all_done"] | int = "all"
    continue_on_failure: bool = False
    conversions: Mapping[str, str] = field(default_factory=dict)

    def but(self, **changes: Any) -> Options:
        """Return a copy with changes."""
        return changed(self, changes)


@dataclass(frozen=True, slots=True)
class Each:
    """Runs a place once per element of a list, which `input` receives."""

    input: str
    max_in_flight: int | None = None
    max_failed: int | None = None


@dataclass(frozen=True, slots=True)
class Repeat:
    """Repeats a place while a CEL condition holds; `carry` maps inputs to previous outputs."""

    condition: str
    max_turns: int
    carry: Mapping[str, str]
    fail_at_max: bool = False


@dataclass(frozen=True, slots=True)
class Edge:
    """An edge without a value, which decides when its target runs."""

    kind: EdgeKind
    source: Place
    branch: str = ""


@dataclass(slots=True, eq=False)
class Place:
    """One node of the graph: what it runs, its inputs and its edges."""

    id: str
    runs: Any  # a Node, a Workflow or a construct
    outputs: tuple[str, ...]
    fed: dict[str, Source] = field(default_factory=dict, repr=False)
    literals: dict[str, Any] = field(default_factory=dict)
    options: Options = field(default_factory=Options)
    edges: tuple[Edge, ...] = field(default=(), repr=False)
    finally_: bool = False
    compensates: Place | None = None
    each: Each | None = None
    repeat: Repeat | None = None


@dataclass(slots=True)
class Input:
    """An input of the workflow."""

    name: str
    type: Type
    required: bool
    default: Any = None


def label(place_id: str, kind: str, *, each: bool, loop: bool, last: bool, undoes: str) -> str:
    """Return the label of a place with its marks: `price [each]`, `refund [undoes pay]`."""
    shown_kind = "" if place_id.startswith(kind) else kind
    marks = [
        shown_kind,
        "each" * each,
        "loop" * loop,
        "finally" * last,
        undoes and f"undoes {undoes}",
    ]
    shown = ", ".join(filter(None, marks))
    return f"{place_id} [{shown}]" if shown else place_id


@dataclass(slots=True)
class Graph:
    """The graph of a workflow; places are in the order of calls."""

    name: str
    inputs: list[Input] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    outputs: dict[str, Source] = field(default_factory=dict)
    edges: tuple[Edge, ...] = ()
    in_finally: bool = False

    def picture(self) -> Picture:
        """Return what `qflow.picture` draws."""
        fed = [
            (source.place.id, place.id)
            for place in self.places
            for source in place.fed.values()
            if source.place is not None
        ]
        led = [(edge.source.id, place.id) for place in self.places for edge in place.edges]
        labels = {
            place.id: label(
                place.id,
                getattr(place.runs, "KIND", ""),
                each=place.each is not None,
                loop=place.repeat is not None,
                last=place.finally_,
                undoes=place.compensates.id if place.compensates is not None else "",
            )
            for place in self.places
        }
        undoing = frozenset(each.id for each in self.places if each.compensates is not None)
        return [*labels], fed + led, labels, undoing

    def add(
        self,
        runs: Any,
        name: str,
        outputs: tuple[str, ...],
        given: Mapping[str, Any],
        *,
        options: Options | None = None,
        each: Each | None = None,
        repeat: Repeat | None = None,
        compensates: Ref | None = None,
    ) -> Ref:
        """Add a place with its inputs; returns the ref of its value."""
        options = options or Options()
        place = Place(
            self._free_id(options.id or name, fixed=bool(options.id)),
            runs,
            outputs,
            options=options,
            edges=self.edges,
            finally_=self.in_finally,
            each=each,
            repeat=repeat,
            compensates=place_of(compensates) if compensates is not None else None,
        )
        for key, value in given.items():
            if isinstance(value, Ref):
                place.fed[key] = source_of(value)
            else:
                _refuse_hidden(value, place.id, key)
                place.literals[key] = value
        self.places.append(place)
        return Ref(place, outputs)

    def _free_id(self, wanted: str, *, fixed: bool) -> str:
        taken = {place.id for place in self.places}
        if wanted not in taken:
            return wanted
        if fixed:
            raise AuthoringError(f"there are two places with the id {wanted}")
        return next(found for n in range(2, 10**6) if (found := f"{wanted}_{n}") not in taken)


_CURRENT: ContextVar[Graph | None] = ContextVar("qflow_graph", default=None)
_DEPTH_MAX: Final = 64


def current() -> Graph | None:
    """Return the graph under construction, if any."""
    return _CURRENT.get()


def needed(what: str) -> Graph:
    """Return the graph under construction; raises AuthoringError outside of a workflow."""
    graph = _CURRENT.get()
    if graph is None:
        raise AuthoringError(f"{what} stands in a function with @qflow.workflow")
    return graph


@contextmanager
def building(graph: Graph) -> Iterator[None]:
    """Make calls of nodes add places to this graph."""
    token = _CURRENT.set(graph)
    try:
        yield
    finally:
        _CURRENT.reset(token)


@contextmanager
def under(*edges: Edge) -> Iterator[None]:
    """Give the places added in the block these edges, in addition to those of outer blocks."""
    graph = needed("an edge")
    before = graph.edges
    graph.edges = tuple(dict.fromkeys((*before, *edges)))  # without duplicates
    try:
        yield
    finally:
        graph.edges = before


def _refuse_hidden(value: Any, place: str, name: str, depth: int = 0) -> None:
    """Refuse a ref within a list or dict, for which there is no edge."""
    if depth > _DEPTH_MAX:
        raise AuthoringError(f"{place}: {name} is nested deeper than {_DEPTH_MAX}")
    parts = value.values() if isinstance(value, dict) else value
    if isinstance(value, list | tuple | set | dict):
        for each in parts:
            if isinstance(each, Ref):
                raise AuthoringError(
                    f"{place}: {name} has {each!r} inside of a {type(value).__name__}: an edge "
                    "feeds a whole input; put it together in a node"
                )
            _refuse_hidden(each, place, name, depth + 1)
