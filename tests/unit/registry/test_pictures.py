"""Charts of workflows: what is drawn, where it stands, and that names stay names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from qflow.types import from_json

from services.registry.domain.chart import Chart, chart_of, seen
from services.registry.domain.definition import (
    Connection,
    Definition,
    WorkflowInput,
    WorkflowNode,
    WorkflowOutput,
)
from services.registry.domain.layers import Line, Size, place
from services.registry.domain.mermaid import mermaid
from services.registry.domain.svg import svg

NODE = UUID(int=1)
INT = from_json({"t": "int"})
SVG = "{http://www.w3.org/2000/svg}"
EVIL = [
    '"]; click b0 "javascript:alert(1)"',
    "</text><script>alert(1)</script>",
    "a<br/>b",
    "`md` **b** #quot; &amp; ]]>",
    "\u202eevil\u2066",
    "end",
    "a\nb --> c",
    "]|{}()<>",
    "style x fill:#f00;",
    "%% comment",
]


def _edge(text: str, conversion: str = "", verdict: str = "exact") -> Connection:
    source, target = text.split(">")
    return Connection(
        source=source,
        source_output="x" if not source else "result",
        target=target,
        target_input=f"from_{source}",
        conversion=conversion,
        verdict=verdict,
    )


def _chart(places: Sequence[str], edges: Sequence[Connection], name: str = "w") -> Chart:
    definition = Definition(
        nodes=tuple(WorkflowNode(id=each, node_id=NODE) for each in places),
        connections=tuple(edges),
        inputs=(WorkflowInput(name="x", type=INT),),
        outputs=(WorkflowOutput(name="y", node=places[-1], output="result", type=INT),),
    )
    return chart_of(name, definition, [name] * len(places))


def _texts(image: str) -> list[str]:
    root = ET.fromstring(image)
    return [each.text or "" for each in root.iter(f"{SVG}text")]


def test_a_chart_has_every_place_connection_and_conversion() -> None:
    chart = _chart("ab", [_edge(">a"), _edge("a>b", "int_to_float", "conversion")], "the name")
    for word in ("a", "b", "x", "y", "int", "int_to_float", "the name", "from_a"):
        assert word in _texts(svg(chart)), word
    text = mermaid(chart)
    assert text.startswith('---\ntitle: "the name"\n---\nflowchart LR\n')
    assert '  b1 -->|"result → from#95;a<br/>int#95;to#95;float"| b2\n' in text
    assert "linkStyle 1 stroke:#d97706" in text


def test_verdicts_have_their_colours_and_a_legend() -> None:
    edges = [_edge(f"a>{each}", "", each) for each in ("exact", "widening", "refuted")]
    image = svg(_chart(["exact", "widening", "refuted", "a"], edges))
    for colour in ("#64748b", "#2563eb", "#dc2626"):
        assert f'stroke="{colour}"' in image
    assert {"same type", "fits as it stands", "does not fit"} <= {*_texts(image)}
    assert "converted" not in _texts(image)


@pytest.mark.parametrize("read", [True, False])
def test_what_undoes_a_place_hangs_on_it_by_a_line_of_its_own(*, read: bool) -> None:
    """Whether it reads anything of that place or not."""
    definition = Definition(
        nodes=(
            WorkflowNode(id="book", node_id=NODE),
            WorkflowNode(id="cancel", node_id=NODE, compensates="book"),
        ),
        connections=(_edge("book>cancel"),) if read else (),
    )
    chart = chart_of("w", definition, ["book", "cancel"])
    [link] = chart.links
    assert ("undo", 0, 1) == (link.look, link.source, link.target)
    assert "undone by" in _texts(svg(chart))
    [line] = [each for each in mermaid(chart).splitlines() if "-.->" in each]
    assert "undone by" in line
    refuted = replace(definition, connections=(_edge("book>cancel", "", "refuted"),))
    assert ["refuted"] == [each.look for each in chart_of("w", refuted, ["b", "c"]).links]


@pytest.mark.parametrize("name", EVIL)
def test_a_name_is_shown_and_is_nothing_else(name: str) -> None:
    """X22: no markup, no direction, no statement of the chart's language comes of a name."""
    chart = _chart(["a", "b"], [_edge("a>b")], name)
    image = svg(chart)
    root = ET.fromstring(image)
    kinds = {each.tag.removeprefix(SVG) for each in root.iter()}
    assert kinds <= {"svg", "title", "desc", "style", "rect", "path", "g", "text", "circle"}
    assert seen(name) in _texts(image)
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", image + mermaid(chart))
    plain = mermaid(_chart(["a", "b"], [_edge("a>b")], "name"))
    assert len(plain.splitlines()) == len(mermaid(chart).splitlines())
    body = mermaid(chart).split("---\n", 2)[2]
    unquoted = re.sub(r'"[^"\n]*"', "", body)
    assert unquoted == re.sub(r'"[^"\n]*"', "", plain.split("---\n", 2)[2])


@given(
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=40),
    st.lists(st.integers(20, 90), min_size=12, max_size=12),
)
def test_boxes_never_overlap_and_lines_lead_forwards(
    pairs: list[tuple[int, int]], heights: list[int]
) -> None:
    sizes = [Size(100.0, float(each)) for each in heights]
    lines = [Line(a, 5.0, b, 5.0) for a, b in pairs]
    layout = place(sizes, lines, gap=10.0)
    for a in range(12):
        for b in range(a):
            if layout.columns[a] == layout.columns[b]:
                low, high = sorted((a, b), key=layout.tops.__getitem__)
                assert layout.tops[low] + sizes[low].height + 9.99 <= layout.tops[high]
    acyclic = [(a, b) for a, b in pairs if a < b]
    layout = place(sizes, [Line(a, 5.0, b, 5.0) for a, b in acyclic], gap=10.0)
    assert all(layout.columns[a] < layout.columns[b] for a, b in acyclic)
    for (a, b), way in zip(acyclic, layout.ways, strict=True):
        assert len(way) == layout.columns[b] - layout.columns[a] - 1


def test_a_tree_is_drawn_without_a_crossing() -> None:
    """Two inner nodes whose leaves alternate: only a good order parts them."""
    lines = [Line(0, 5, 1, 5), Line(0, 5, 2, 5)]
    lines += [Line(1 + leaf % 2, 5, 3 + leaf, 5) for leaf in range(8)]
    layout = place([Size(10, 10)] * 11, lines, gap=5)
    first = [layout.tops[3 + leaf] for leaf in range(0, 8, 2)]
    second = [layout.tops[3 + leaf] for leaf in range(1, 8, 2)]
    assert max(first) < min(second) or max(second) < min(first)


def test_a_chain_runs_straight() -> None:
    chart = _chart("abcdef", [_edge(f"{a}>{b}") for a, b in zip("abcde", "bcdef", strict=True)])
    paths = re.findall(r'<path d="(M[^"]*)" fill="none"', svg(chart))
    assert len(paths) == 6
    assert not [each for each in paths if "C" in each]


def test_the_same_chart_is_drawn_the_same() -> None:
    chart = _chart("abc", [_edge("a>b"), _edge("a>c"), _edge("b>c")])
    assert (svg(chart), mermaid(chart)) == (svg(chart), mermaid(chart))


def test_texts_are_cut_and_wide_signs_have_room() -> None:
    assert f"{'x' * 31}…" == seen("x" * 100)
    narrow, wide = (svg(_chart([each], [], each * 20)) for each in ("a", "漢"))
    widths = [float(re.findall(r'width="(\d+)"', each)[0]) for each in (narrow, wide)]
    assert widths[0] < widths[1]
