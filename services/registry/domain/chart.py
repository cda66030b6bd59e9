"""A workflow as boxes and links, from which every picture of it is drawn."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from qflow.types import expression

from services.registry.domain.constructs import ALL, Choice, SubWorkflow
from services.registry.domain.definition import Connection, Definition, WorkflowNode

Kind = Literal["input", "node", "choice", "output"]

# Longer texts in a picture end with an ellipsis.
TEXT_CHARS_MAX: Final = 32
WHOLE: Final = -1
# The kind of a link from a node to its compensation.
UNDO: Final = "undo"
_TOLD_FIRST: Final = frozenset({"conversion", "refuted"})
# Unicode categories that change text direction or are invisible.
_CONTROLS: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_UNSEEN: Final = "\N{REPLACEMENT CHARACTER}"
# Joiners within one grapheme, which are harmless.
_JOINERS: Final = frozenset("\u200c\u200d")


@dataclass(frozen=True, slots=True)
class Box:
    """A node, or an input or output of the workflow, with the names of its ports."""

    kind: Kind
    title: str
    subtitle: str = ""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    # Inputs that no link feeds, with the literal from the definition.
    values: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Link:
    """A line from an output to an input, by the box's index and the port's index within it.

    If it carries no value it connects the boxes, and both port indexes are `WHOLE`.
    """

    source: int
    output: int
    target: int
    input: int
    verdict: str = ""
    conversion: str = ""
    kind: str = ""
    branch: str = ""

    @property
    def look(self) -> str:
        """The style key: the kind of an edge without a value, else its verdict."""
        return self.kind or self.verdict

    @property
    def written(self) -> str:
        """The label of the line."""
        return self.conversion or self.branch


@dataclass(frozen=True, slots=True)
class Chart:
    """A whole picture; `places` counts the boxes that are nodes."""

    title: str
    boxes: tuple[Box, ...]
    links: tuple[Link, ...]
    places: int


def chart_of(title: str, definition: Definition, names: Sequence[str]) -> Chart:
    """Build the chart of a definition; `names` has the node's name for each place."""
    fed: dict[str, list[str]] = {}
    used: dict[str, list[str]] = {}
    for edge in filter(lambda each: each.is_value, definition.connections):
        _once(fed.setdefault(edge.target, []), edge.target_input)
        _once(used.setdefault(edge.source, []), edge.source_output)
    for output in definition.outputs:
        _once(used.setdefault(output.node, []), output.output)
    boxes: list[Box] = []
    declared = {each.name: each for each in definition.inputs}
    starts: dict[str, int] = {}
    for name in dict.fromkeys([*declared, *used.get("", ())]):
        starts[name] = len(boxes)
        of = declared[name].type if name in declared else None
        boxes.append(Box("input", name, "" if of is None else expression(of), outputs=(name,)))
    at: dict[str, int] = {}
    for node, called in zip(definition.nodes, names, strict=True):
        at.setdefault(node.id, len(boxes))
        boxes.append(_box(node, called, fed.get(node.id, ()), used.get(node.id, ())))
    links = _links(definition, boxes, starts, at)
    for each in definition.outputs:
        of = each.type
        if each.node in at:
            out = boxes[at[each.node]].outputs.index(each.output)
            links.append(Link(at[each.node], out, len(boxes), 0, "exact"))
        subtitle = "" if of is None else expression(of)
        boxes.append(Box("output", each.name, subtitle, inputs=(each.name,)))
    return Chart(title, tuple(boxes), tuple(links), len(definition.nodes))


def _links(
    definition: Definition, boxes: Sequence[Box], starts: Mapping[str, int], at: Mapping[str, int]
) -> list[Link]:
    """Give the links of all edges, and those from what is undone to what undoes it unread."""
    compensated = {each.id: each.compensates for each in definition.nodes if each.compensates}
    links = []
    for edge in definition.connections:
        source = at.get(edge.source) if edge.source else starts[edge.source_output]
        target = at.get(edge.target)
        if source is not None and target is not None:
            ends = _ends(edge, boxes[source], boxes[target])
            kind = UNDO if _is_undone(edge, compensated.get(edge.target, "")) else edge.kind
            looks = (edge.verdict, edge.conversion, kind, edge.branch)
            links.append(Link(source, ends[0], target, ends[1], *looks))
    drawn = {(link.source, link.target) for link in links}
    for name, undone in compensated.items():
        if undone in at and (at[undone], at[name]) not in drawn:
            links.append(Link(at[undone], WHOLE, at[name], WHOLE, kind=UNDO))
    return links


def _is_undone(edge: Connection, compensated: str) -> bool:
    """Whether an edge says no more than that its target undoes its source; faults are shown."""
    return bool(compensated) and edge.source == compensated and edge.verdict not in _TOLD_FIRST


def _ends(edge: Connection, source: Box, target: Box) -> tuple[int, int]:
    if not edge.is_value:
        return WHOLE, WHOLE
    return source.outputs.index(edge.source_output), target.inputs.index(edge.target_input)


def _once(names: list[str], name: str) -> None:
    if name not in names:
        names.append(name)


def _box(node: WorkflowNode, called: str, fed: Iterable[str], used: Iterable[str]) -> Box:
    kind: Kind = "choice" if isinstance(node.construct, Choice) else "node"
    subtitle = " · ".join([called, *_marks(node)])
    return Box(kind, node.id, subtitle, tuple(fed), tuple(used), node.literals)


def _marks(node: WorkflowNode) -> Iterator[str]:
    """Yield short notes on how a place runs."""
    if isinstance(node.construct, SubWorkflow):
        yield "workflow"
    if node.version:
        yield f"version {node.version}"
    if node.mapped is not None:
        yield f"for each of {node.mapped.input}"
    if node.loop is not None:
        yield f"up to {node.loop.max_turns} turns"
    if node.condition:
        yield "if"
    if node.join is not None and node.join.policy != ALL:
        yield f"{node.join.policy} {node.join.count or ''}".rstrip()
    if node.phase:
        yield node.phase
    if node.compensates:
        yield f"undoes {node.compensates}"


def seen(text: str, chars_max: int = TEXT_CHARS_MAX) -> str:
    """Return a text as shown in a picture: one line, cut, without invisible or bidi characters."""
    head = " ".join(text[: 8 * chars_max].split())
    shown = "".join(
        _UNSEEN if unicodedata.category(each) in _CONTROLS and each not in _JOINERS else each
        for each in head[: chars_max + 1]
    )
    return shown if len(shown) <= chars_max else f"{shown[: chars_max - 1].rstrip()}…"
