"""A chart as the text of a Mermaid flowchart."""

from __future__ import annotations

from typing import Final

from services.registry.domain.chart import Box, Chart, Link, seen

# What means something to Mermaid, or to the page that it draws into.
_ESCAPES: Final = str.maketrans({each: f"#{ord(each)};" for each in "#&<>\"'`\\|{}[]()*_~$%@;:/=-"})
_SHAPES: Final = {"input": ("([", "])"), "node": ("[", "]"), "output": ("([", "])")}
_STYLES: Final = {
    "widening": "stroke:#2563eb",
    "conversion": "stroke:#d97706,stroke-width:2px",
    "refuted": "stroke:#dc2626,stroke-width:2px,stroke-dasharray:6 4",
}
_CLASSES: Final = (
    "classDef input fill:#ecfdf5,stroke:#059669,color:#064e3b",
    "classDef node fill:#ffffff,stroke:#475569,color:#0f172a",
    "classDef output fill:#eef2ff,stroke:#4f46e5,color:#312e81",
)


def mermaid(chart: Chart) -> str:
    """Write a chart; every name stands in quotes and escaped, under an id of our own."""
    lines = ["---", f"title: {_quoted(chart.title)}", "---", "flowchart LR"]
    for index, box in enumerate(chart.boxes):
        left, right = _SHAPES[box.kind]
        lines.append(f'  b{index}{left}"{_label(box)}"{right}:::{box.kind}')
    styled: dict[str, list[str]] = {}
    for index, link in enumerate(chart.links):
        lines.append(f"  b{link.source} -->{_words(chart, link)} b{link.target}")
        styled.setdefault(_STYLES.get(link.verdict, ""), []).append(str(index))
    lines += [f"  {each}" for each in _CLASSES]
    lines += [f"  linkStyle {','.join(those)} {style}" for style, those in styled.items() if style]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Write a title: it is YAML, and drawn as plain text."""
    shown = seen(text, 100).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{shown}"'


def _label(box: Box) -> str:
    values = [f"{seen(name)} = {seen(text)}" for name, text in box.values]
    parts = [seen(box.title), seen(box.subtitle), *values]
    return "<br/>".join(_escaped(each) for each in parts if each)


def _words(chart: Chart, link: Link) -> str:
    """Name the ends of a link where the boxes do not, and what stands on it."""
    source, target = chart.boxes[link.source], chart.boxes[link.target]
    ends = []
    if source.kind == "node":
        ends.append(seen(source.outputs[link.output]))
    if target.kind == "node":
        ends.append(seen(target.inputs[link.input]))
    words = _escaped(" → ".join(ends))
    if link.conversion:
        words += f"<br/>{_escaped(seen(link.conversion))}"
    return f'|"{words}"|' if words else ""


def _escaped(text: str) -> str:
    return text.translate(_ESCAPES)
