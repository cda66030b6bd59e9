"""The state of a check: the definition, its indexes, and the findings so far."""

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
    """The verdict on an edge between two types."""

    said: Verdict
    opaque: str | None  # the name of a type that cannot be carried
    verdict: str  # the verdict as stored
    is_plain: bool  # it fits, is lossless and can be carried: nothing to report


@dataclass(slots=True)
class Check:
    """State shared by the parts of a check."""

    definition: Definition
    signatures: Signatures
    findings: list[Finding] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)
    # The place with each id, and its signature as edges see it; the first of duplicates.
    named: dict[str, WorkflowNode] = field(default_factory=dict)
    seen: dict[str, Signature | None] = field(default_factory=dict)
    # Signatures as edges see them, by index of the place: looked up once, since hashing UUIDs is
    # slow.
    known: list[Signature | None] = field(default_factory=list)
    # The same before mapping: the signature of one element, or of one iteration of a loop.
    inner: list[Signature | None] = field(default_factory=list)
    # (node, input) that is fed, with the path of what feeds it.
    fed: dict[tuple[str, str], str] = field(default_factory=dict)
    # Indexes of the edges whose ends exist, without duplicates: the graph. Also its kinds of edges,
    # and the parents and children of each place, one entry per edge.
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
        """Add a finding."""
        self.findings.append(Finding(severity, place, code, message, hint))

    def error(self, place: str, code: str, message: str, hint: str = "") -> None:
        """Add an error, which prevents storing."""
        self.add(ERROR, place, code, message, hint)

    def signature_of(self, name: str) -> Signature | None:
        """Return the signature of an existing place as edges see it; None if it is not known."""
        return self.seen[name]

    def value(self, place: str, of: Type, text: str) -> None:
        """Report an error if a JSON text is not a value of the type."""
        try:
            fault = check_value(of, parse_strict(text))
        except ValueTextError as error:
            self.error(place, "VALUE_INVALID", str(error))
            return
        if fault is not None:
            where = f"{fault.path}: " if fault.path else ""
            self.error(place, "VALUE_NOT_OF_TYPE", f"{where}{fault.message}")

    def feed(self, node: str, name: str, place: str) -> bool:
        """Record what feeds an input; reports an error and returns False if it is fed already."""
        before = self.fed.setdefault((node, name), place)
        if before != place:
            message = f"the input {name} of {node} is fed by {before} already"
            self.error(place, "TWO_WRITERS", message, "an input has one source")
        return before == place

    def unknown(self, place: str, code: str, node: str, name: str, known: Iterable[str]) -> None:
        """Report that a node has no such input or output, listing those that it has."""
        kind = "input" if code == "UNKNOWN_INPUT" else "output"
        names = list(known)
        hint = f"it has {', '.join(names[:SUGGESTED_MAX])}" if names else f"it has no {kind}s"
        self.error(place, code, f"{node} has no {kind} {name}", hint)

    def join(self, index: int, edge: Connection) -> None:
        """Add an edge to the graph."""
        self.sound.append(index)
        self.kinds.add(edge.kind)
        if edge.source:
            self.children.setdefault(edge.source, []).append(edge.target)
            self.parents.setdefault(edge.target, []).append(edge.source)

    def judge_known(self, source: Type, target: Type, conversion: str) -> Judged:
        """Return the verdict on two types, cached by identity, since hashing large types is slow.

        Identities stay valid, since the types live as long as the signatures.
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
        """Return the verdict on an edge between two types."""
        key = (source, target, conversion)
        said = self.compared.get(key)
        if said is None:
            said = self.compared[key] = verdict(source, target, conversion)
        return said
