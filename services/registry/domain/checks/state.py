"""A check under way: the definition, its indexes, and what was found so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from qflow.types import (
    Type,
    ValueTextError,
    Verdict,
    VerdictKind,
    check_value,
    contains_named,
    parse_strict,
    verdict,
)

from services.registry.domain.bindings import Bindings
from services.registry.domain.definition import (
    ERROR,
    Connection,
    Definition,
    Finding,
    Signature,
    Signatures,
    WorkflowNode,
)

SUGGESTED_MAX: Final = 10
_NO_VARIABLES: Final[Mapping[str, Type]] = {}


class Judged(NamedTuple):
    """What is known of an edge between two types."""

    said: Verdict
    opaque: str | None  # what cannot be carried, as it is called
    verdict: str  # as it is stored
    is_plain: bool  # it fits, loses nothing and can be carried: there is nothing to be told


@dataclass(slots=True)
class Check:
    """What the parts of a check share."""

    definition: Definition
    signatures: Signatures
    findings: list[Finding] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)
    # The place of each id, and what edges see there; of two of the same id the first.
    named: dict[str, WorkflowNode] = field(default_factory=dict)
    seen: dict[str, Signature | None] = field(default_factory=dict)
    # What edges see at each place, in order: looked up once, since UUIDs are slow keys.
    known: list[Signature | None] = field(default_factory=list)
    # The same without what a map makes of it: what one element, or one turn, has.
    inner: list[Signature | None] = field(default_factory=list)
    # (node, input) that something feeds, with the place of what does.
    fed: dict[tuple[str, str], str] = field(default_factory=dict)
    # Edges whose ends exist and that are no copies: the graph. Its kinds of edges, and by place
    # where they come from and lead to, once for each edge.
    sound: list[int] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)
    parents: dict[str, list[str]] = field(default_factory=dict)
    children: dict[str, list[str]] = field(default_factory=dict)
    judged: dict[tuple[int, int, str], Judged] = field(default_factory=dict)
    compared: dict[tuple[Type, Type, str], Verdict] = field(default_factory=dict)
    bindings: Bindings = field(init=False)

    def __post_init__(self) -> None:
        self.bindings = Bindings(self, _NO_VARIABLES)

    def add(self, severity: str, place: str, code: str, message: str, hint: str = "") -> None:
        """Note what was found."""
        self.findings.append(Finding(severity, place, code, message, hint))

    def error(self, place: str, code: str, message: str, hint: str = "") -> None:
        """Note what hinders storing."""
        self.add(ERROR, place, code, message, hint)

    def signature_of(self, name: str) -> Signature | None:
        """Give what edges see at a place that exists; None where nothing is known of it."""
        return self.seen[name]

    def value(self, place: str, of: Type, text: str) -> None:
        """Note what hinders a text from being a value of a type."""
        try:
            fault = check_value(of, parse_strict(text))
        except ValueTextError as error:
            self.error(place, "VALUE_INVALID", str(error))
            return
        if fault is not None:
            where = f"{fault.path}: " if fault.path else ""
            self.error(place, "VALUE_NOT_OF_TYPE", f"{where}{fault.message}")

    def feed(self, node: str, name: str, place: str) -> bool:
        """Note what feeds an input; False where something does already."""
        before = self.fed.setdefault((node, name), place)
        if before != place:
            message = f"the input {name} of {node} is fed by {before} already"
            self.error(place, "TWO_WRITERS", message, "an input has one source")
        return before == place

    def unknown(self, place: str, code: str, node: str, name: str, known: Iterable[str]) -> None:
        """Note that a node has no such input or output, and which it has."""
        kind = "input" if code == "UNKNOWN_INPUT" else "output"
        names = list(known)
        hint = f"it has {', '.join(names[:SUGGESTED_MAX])}" if names else f"it has no {kind}s"
        self.error(place, code, f"{node} has no {kind} {name}", hint)

    def join(self, index: int, edge: Connection) -> None:
        """Take an edge into the graph."""
        self.sound.append(index)
        self.kinds.add(edge.kind)
        if edge.source:
            self.children.setdefault(edge.source, []).append(edge.target)
            self.parents.setdefault(edge.target, []).append(edge.source)

    def judge_known(self, source: Type, target: Type, conversion: str) -> Judged:
        """Compare two types once, by which they are: to hash a large one costs what it holds.

        The types live as long as the signatures do.
        """
        key = (id(source), id(target), conversion)
        known = self.judged.get(key)
        if known is None:
            said = self.judge(source, target, conversion)
            opaque = None
            if said.kind is not VerdictKind.CONVERSION:
                opaque = contains_named(source) or contains_named(target)
            plain = said.fits and said.lossless and opaque is None
            known = self.judged[key] = Judged(said, opaque, said.kind.value, plain)
        return known

    def judge(self, source: Type, target: Type, conversion: str) -> Verdict:
        """Say what is known of an edge between two types."""
        key = (source, target, conversion)
        said = self.compared.get(key)
        if said is None:
            said = self.compared[key] = verdict(source, target, conversion)
        return said
