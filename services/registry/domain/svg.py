"""A chart as a self-contained SVG image, without scripts, fonts or external resources."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from typing import Final
from xml.sax.saxutils import escape

from services.registry.domain.chart import WHOLE, Box, Chart, Link, seen
from services.registry.domain.layers import Layout, Line, Size, place

NODES_MAX: Final = 500
LINKS_MAX: Final = 2_000

_MARGIN: Final = 28.0
_TITLE: Final = 40.0
_HEAD: Final = 46.0
_ROW: Final = 20.0
_FOOT: Final = 8.0
_PILL: Final = 40.0
_DIAMOND: Final = 1.5
_DIAMOND_HEIGHT: Final = 84.0
_GAP: Final = 26.0
_CHANNEL: Final = 64.0
_LEGEND: Final = 34.0
_VALUES_SHOWN_MAX: Final = 6
_LEVEL: Final = 0.05

_COLOURS: Final = {
    "exact": "#64748b",
    "widening": "#2563eb",
    "conversion": "#d97706",
    "refuted": "#dc2626",
    "": "#94a3b8",
    "order": "#94a3b8",
    "branch": "#7c3aed",
    "failure": "#dc2626",
    "undo": "#0f766e",
}
_DASHED: Final = frozenset({"refuted", "", "failure", "undo"})
_LEGENDS: Final = {
    "exact": "same type",
    "widening": "fits as it stands",
    "conversion": "converted",
    "refuted": "does not fit",
    "": "not checked",
    "order": "runs after",
    "branch": "branch",
    "failure": "on failure",
    "undo": "undone by",
}
_STYLE: Final = """
.t{font:600 16px system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;fill:#0f172a}
.h{font:600 13px system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;fill:#0f172a}
.s{font:11px system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;fill:#64748b}
.p{font:11px ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;fill:#334155}
.v{font:11px ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;fill:#94a3b8}
.c{font:600 10px ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace}
.e{text-anchor:end}.m{text-anchor:middle}
""".strip()


def svg(chart: Chart) -> str:
    """Return the SVG of a chart with at most 500 nodes and 2,000 links."""
    sizes = [_size(box) for box in chart.boxes]
    lines = [
        Line(
            link.source,
            _end_y(chart.boxes[link.source], link.output),
            link.target,
            _end_y(chart.boxes[link.target], link.input),
        )
        for link in chart.links
    ]
    layout = place(sizes, lines, gap=_GAP)
    lefts, right = _lefts(chart, sizes, layout)
    verdicts = list(dict.fromkeys(link.look for link in chart.links))
    width = max(right + _MARGIN, 2 * _MARGIN + _text_width(seen(chart.title, 60), 9.5), 240.0)
    height = _MARGIN + _TITLE + layout.height + _MARGIN + (_LEGEND if verdicts else 0.0)
    return "\n".join(_image(chart, sizes, lines, layout, lefts, verdicts, (width, height))) + "\n"


def _image(
    chart: Chart,
    sizes: Sequence[Size],
    lines: Sequence[Line],
    layout: Layout,
    lefts: Sequence[float],
    verdicts: Sequence[str],
    size: tuple[float, float],
) -> Iterator[str]:
    width, height = size
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}"'
        f' viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-labelledby="title desc">'
    )
    yield f'<title id="title">{_xml(seen(chart.title, 255))}</title>'
    yield f'<desc id="desc">{chart.places} nodes, {len(chart.links)} connections</desc>'
    yield f"<style>{_STYLE}</style>"
    yield f'<rect width="{width:.0f}" height="{height:.0f}" rx="10" fill="#f8fafc"/>'
    yield (
        f'<text class="t" x="{_MARGIN:.0f}" y="{_MARGIN + 12:.0f}">'
        f"{_xml(seen(chart.title, 60))}</text>"
    )
    tops = [each + _MARGIN + _TITLE for each in layout.tops]
    labels = []
    for link, line, way in zip(chart.links, lines, layout.ways, strict=True):
        start = (lefts[line.source] + sizes[line.source].width, tops[line.source] + line.source_y)
        end = (lefts[line.target], tops[line.target] + line.target_y)
        middle = _columns_between(lefts, sizes, layout, line)
        points = [start]
        for (left, right), y in zip(middle, way, strict=False):
            points += [(left, y + _MARGIN + _TITLE), (right, y + _MARGIN + _TITLE)]
        points.append(end)
        yield _path(points, link)
        if link.written:
            labels.append(_conversion(points[-2], end, link))
    yield from labels
    for box, room, left, top in zip(chart.boxes, sizes, lefts, tops, strict=True):
        yield from _box(box, room, left, top)
    if verdicts:
        yield from _legend(verdicts, height - _MARGIN + 4)
    yield "</svg>"


def _size(box: Box) -> Size:
    head = max(_text_width(seen(box.title), 8.0), _text_width(seen(box.subtitle), 6.2))
    if box.kind == "choice":
        # The title is in the middle, where a diamond is wide enough for half of its width.
        return Size(max(120.0, head * _DIAMOND + 48.0), _DIAMOND_HEIGHT)
    if box.kind != "node":
        return Size(max(72.0, head + 32.0), _PILL)
    ins = max((_text_width(each, 6.8) for each in _left_texts(box)), default=0.0)
    outs = max((_text_width(seen(each), 6.8) for each in box.outputs), default=0.0)
    rows = max(len(_left_texts(box)), len(box.outputs))
    foot = _FOOT if rows else 0.0
    return Size(max(120.0, head + 28.0, ins + outs + 48.0), _HEAD + rows * _ROW + foot)


def _left_texts(box: Box) -> list[str]:
    values = [f"{seen(name, 16)} = {seen(text, 18)}" for name, text in box.values]
    if len(values) > _VALUES_SHOWN_MAX:
        more = len(values) - _VALUES_SHOWN_MAX + 1
        values = [*values[: _VALUES_SHOWN_MAX - 1], f"and {more} more values"]
    return [*(seen(each) for each in box.inputs), *values]


def _end_y(box: Box, index: int) -> float:
    if box.kind == "choice":
        return _DIAMOND_HEIGHT / 2
    if box.kind != "node":
        return _PILL / 2
    return _HEAD / 2 if index == WHOLE else _HEAD + index * _ROW + _ROW / 2


def _text_width(text: str, narrow: float) -> float:
    """Estimate a text's width; East Asian wide characters count almost double."""
    wide = sum(unicodedata.east_asian_width(each) in {"W", "F"} for each in text)
    return narrow * (len(text) + 0.75 * wide)


def _lefts(chart: Chart, sizes: Sequence[Size], layout: Layout) -> tuple[list[float], float]:
    """Compute the x positions of boxes, leaving room for the labels of lines into each column."""
    count = max(layout.columns, default=-1) + 1
    widths = [0.0] * count
    for size, column in zip(sizes, layout.columns, strict=True):
        widths[column] = max(widths[column], size.width)
    written = [0.0] * count
    for link in chart.links:
        if link.written:
            column = layout.columns[link.target]
            label = _text_width(seen(link.written), 6.2) + 40.0
            written[column] = max(written[column], label)
    starts, at = [], _MARGIN
    for column in range(count):
        at += max(_CHANNEL, written[column]) if column else 0.0
        starts.append(at)
        at += widths[column]
    lefts = []
    for size, column, box in zip(sizes, layout.columns, chart.boxes, strict=True):
        room = widths[column] - size.width
        share = {"input": 1.0, "node": 0.5, "choice": 0.5, "output": 0.0}[box.kind]
        lefts.append(starts[column] + room * share)
    return lefts, at


def _columns_between(
    lefts: Sequence[float], sizes: Sequence[Size], layout: Layout, line: Line
) -> list[tuple[float, float]]:
    """Return the x range that a line crosses horizontally, for each column between its ends."""
    spans: dict[int, tuple[float, float]] = {}
    first, last = layout.columns[line.source], layout.columns[line.target]
    for left, size, column in zip(lefts, sizes, layout.columns, strict=True):
        if first < column < last:
            low, high = spans.get(column, (left, left + size.width))
            spans[column] = min(low, left), max(high, left + size.width)
    return [spans[column] for column in sorted(spans)]


def _path(points: Sequence[tuple[float, float]], link: Link) -> str:
    (x, y) = points[0]
    steps = [f"M{x:.1f} {y:.1f}"]
    for to_x, to_y in points[1:]:
        if abs(to_y - y) < _LEVEL and to_x >= x:
            steps.append(f"H{to_x:.1f}")
        else:
            bend = max(24.0, abs(to_x - x) / 2)
            steps.append(
                f"C{x + bend:.1f} {y:.1f} {to_x - bend:.1f} {to_y:.1f} {to_x:.1f} {to_y:.1f}"
            )
        x, y = to_x, to_y
    colour = _COLOURS[link.look]
    dash = ' stroke-dasharray="6 4"' if link.look in _DASHED else ""
    return (
        f'<path d="{"".join(steps)}" fill="none" stroke="{colour}" stroke-width="1.6"{dash}/>'
        f'<path d="M{x - 7:.1f} {y - 4:.1f}L{x:.1f} {y:.1f}L{x - 7:.1f} {y + 4:.1f}z"'
        f' fill="{colour}"/>'
    )


def _conversion(start: tuple[float, float], end: tuple[float, float], link: Link) -> str:
    """Draw the label on the last segment of its line."""
    text = seen(link.written)
    width = _text_width(text, 6.2) + 12
    x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
    if end[0] < start[0]:
        x, y = end[0] - width / 2 - 16, end[1]
    colour = _COLOURS[link.look]
    return (
        f'<rect x="{x - width / 2:.1f}" y="{y - 8.5:.1f}" width="{width:.1f}" height="17" rx="8.5"'
        f' fill="#fffbeb" stroke="{colour}"/>'
        f'<text class="c m" x="{x:.1f}" y="{y + 3.5:.1f}" fill="{colour}">{_xml(text)}</text>'
    )


def _box(box: Box, size: Size, left: float, top: float) -> Iterator[str]:
    yield f"<g><title>{_xml(_whole(box))}</title>"
    if box.kind == "choice":
        yield from _diamond(box, size, left, top)
    elif box.kind != "node":
        fill, stroke = ("#ecfdf5", "#059669") if box.kind == "input" else ("#eef2ff", "#4f46e5")
        yield (
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{size.width:.1f}" height="{_PILL:.0f}"'
            f' rx="{_PILL / 2:.0f}" fill="{fill}" stroke="{stroke}"/>'
        )
        middle, drop = left + size.width / 2, 0 if box.subtitle else 6
        yield _text("h m", middle, top + 18 + drop, seen(box.title))
        if box.subtitle:
            yield _text("s m", middle, top + 32, seen(box.subtitle))
    else:
        yield (
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{size.width:.1f}"'
            f' height="{size.height:.1f}" rx="8" fill="#ffffff" stroke="#cbd5e1"/>'
        )
        yield _text("h", left + 14, top + 19, seen(box.title))
        yield _text("s", left + 14, top + 35, seen(box.subtitle))
        if size.height > _HEAD:
            yield f'<path d="M{left:.1f} {top + _HEAD - 4:.1f}h{size.width:.1f}" stroke="#e2e8f0"/>'
        yield from _rows(box, size, left, top)
    yield "</g>"


def _diamond(box: Box, size: Size, left: float, top: float) -> Iterator[str]:
    middle, level = left + size.width / 2, top + size.height / 2
    points = (
        f"{left:.1f},{level:.1f} {middle:.1f},{top:.1f} {left + size.width:.1f},{level:.1f}"
        f" {middle:.1f},{top + size.height:.1f}"
    )
    yield f'<polygon points="{points}" fill="#f5f3ff" stroke="#7c3aed"/>'
    yield _text("h m", middle, level - 2, seen(box.title))
    yield _text("s m", middle, level + 14, seen(box.subtitle))


def _rows(box: Box, size: Size, left: float, top: float) -> Iterator[str]:
    for index, text in enumerate(_left_texts(box)):
        y = top + _HEAD + index * _ROW + _ROW / 2
        fed = index < len(box.inputs)
        yield _text("p" if fed else "v", left + 14, y + 4, text)
    for index, text in enumerate(box.outputs):
        y = top + _HEAD + index * _ROW + _ROW / 2
        yield _text("p e", left + size.width - 14, y + 4, seen(text))
        yield (
            f'<circle cx="{left + size.width:.1f}" cy="{y:.1f}" r="3.5" fill="#ffffff"'
            ' stroke="#64748b"/>'
        )


def _whole(box: Box) -> str:
    values = [f"{name} = {text}" for name, text in box.values]
    return seen("; ".join(filter(None, [box.title, box.subtitle, *values])), 400)


def _legend(verdicts: Sequence[str], y: float) -> Iterator[str]:
    x = _MARGIN
    for verdict in (each for each in _LEGENDS if each in verdicts):
        dash = ' stroke-dasharray="6 4"' if verdict in _DASHED else ""
        yield (
            f'<path d="M{x:.1f} {y:.1f}h22" stroke="{_COLOURS[verdict]}" stroke-width="2"{dash}/>'
        )
        yield _text("s", x + 28, y + 4, _LEGENDS[verdict])
        x += 44 + _text_width(_LEGENDS[verdict], 6.2)


def _text(kind: str, x: float, y: float, text: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{_xml(text)}</text>'


def _xml(text: str) -> str:
    return escape(text, {'"': "&quot;"})
