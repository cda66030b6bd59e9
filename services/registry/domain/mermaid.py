"""A chart as a Mermaid flowchart."""

from __future__ import annotations

from typing import Final

from services.registry.domain.chart import WHOLE, Box, Chart, Link, seen

_WITH_PORTS: Final = frozenset({"node", "choice"})
# Characters with a meaning to Mermaid, or to the page that embeds it.
_ESCAPES: Final = str.maketrans({each: f"#{ord(each)};" for each in "#&<>\"'`\\|{}[]()*_~$%@;:/=-"})
_SHAPES: Final = {
    "input": ("([", "])"),
    "node": ("[", "]"),
    "choice": ("{", "}"),
    "output": ("([", "])"),
}
_STYLES: Final = {
    "widening": "stroke:#2563eb",
    "conversion": "stroke:#d97706,stroke-width:2px",
    "refuted": "stroke:#dc2626,stroke-width:2px,stroke-dasharray:6 4",
    "order": "stroke:#94a3b8",
    "branch": "stroke:#7c3aed",
    "failure": "stroke:#dc2626",
    "undo": "stroke:#0f766e",
}
# Lines that differ from the plain arrow; dashed ones are taken on failures.
_LINES: Final = {"failure": "-.->", "undo": "-.->"}
_SAID: Final = {"order": "then", "failure": "on failure", "undo": "undone by"}
_CLASSES: Final = (
    "classDef input fill:#ecfdf5,stroke:#059669,color:#064e3b",
    "classDef node fill:#ffffff,stroke:#475569,color:#0f172a",
    "classDef choice fill:#f5f3ff,stroke:#7c3aed,color:#2e1065",
    "classDef output fill:#eef2ff,stroke:#4f46e5,color:#312e81",
)


def mermaid(chart: Chart) -> str:
    """Return the text of a chart; names are quoted and escaped, and ids are generated."""
    lines = ["---", f"title: {_quoted(chart.title)}", "---", "flowchart LR"]
    for index, box in enumerate(chart.boxes):
        left, right = _SHAPES[box.kind]
        lines.append(f'  b{index}{left}"{_label(box)}"{right}:::{box.kind}')
    styled: dict[str, list[str]] = {}
    for index, link in enumerate(chart.links):
        lines.append(f"  b{link.source} {_line(link)}{_words(chart, link)} b{link.target}")
        styled.setdefault(_STYLES.get(link.look, ""), []).append(str(index))
    lines += [f"  {each}" for each in _CLASSES]
    lines += [f"  linkStyle {','.join(those)} {style}" for style, those in styled.items() if style]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Quote a title: it is parsed as YAML, and drawn as plain text."""
    shown = seen(text, 100).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{shown}"'


def _label(box: Box) -> str:
    values = [f"{seen(name)} = {seen(text)}" for name, text in box.values]
    parts = [seen(box.title), seen(box.subtitle), *values]
    return "<br/>".join(_escaped(each) for each in parts if each)


def _words(chart: Chart, link: Link) -> str:
    """Return a link's label: its ports where the boxes do not show them, and its text."""
    source, target = chart.boxes[link.source], chart.boxes[link.target]
    ends = []
    if source.kind in _WITH_PORTS and link.output != WHOLE:
        ends.append(seen(source.outputs[link.output]))
    if target.kind in _WITH_PORTS and link.input != WHOLE:
        ends.append(seen(target.inputs[link.input]))
    said = [" → ".join(ends), _SAID.get(link.kind, ""), seen(link.written)]
    words = "<br/>".join(_escaped(each) for each in said if each)
    return f'|"{words}"|' if words else ""


def _line(link: Link) -> str:
    return _LINES.get(link.kind, "-->")


def _escaped(text: str) -> str:
    return text.translate(_ESCAPES)
