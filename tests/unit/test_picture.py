"""The picture of a graph: whoever follows its lines finds its edges, and no others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st
from qflow.picture import COLUMNS_MAX, draw

from examples.weather import workflow as weather

Edges = set[tuple[str, str]]


def test_the_graph_of_the_demo_looks_as_it_should() -> None:
    ends = [[end.partition(".")[0] for end in edge.split(" > ")] for edge in weather.EDGES]
    edges = [(start, end) for start, end in ends if start]
    assert draw(list(weather.PLACES), edges) == [
        "read ─┬─────────────┐",
        "      ├─► wet_days ─┤",
        "      │             └─► wet_share ─┐",
        "      ├─► monthly ─────────────────┤",
        "      ├─► hottest ─────────────────┤",
        "      ├─► trend ───────────────────┤",
        "      └─► spans ───────────────────┤",
        "                                   └─► report",
    ]


def test_lines_that_meet_without_joining_pass_behind_each_other() -> None:
    edges = [("a", "c"), ("a", "d"), ("b", "d"), ("b", "e")]
    assert draw("abcde", edges) == [
        "a ─┐",
        "   ├───► c",
        "b ─│─┐",
        "   └─├─► d",
        "     └─► e",
    ]


def test_nodes_without_edges_stand_alone() -> None:
    assert draw(["one", "two"], []) == ["one", "two"]
    assert draw([], []) == []


def test_what_is_too_wide_is_put_into_words() -> None:
    chain = [f"a_rather_long_name_{at}" for at in range(6)]
    drawn = draw(chain, pairwise(chain))
    assert "a_rather_long_name_0 > a_rather_long_name_1" == drawn[0]
    assert "a_rather_long_name_5" == drawn[-1]


def test_how_a_node_runs_stands_beside_it_where_there_is_room() -> None:
    labels = {"b": "b [each]"}
    assert ["a ─┐", "   └─► b [each] ─┐", "                 └─► c"] == draw(
        "abc", [("a", "b"), ("b", "c")], labels
    )
    chain = [f"node_{at}" for at in range(7)]
    wide = {node: f"{node} [each, finally]" for node in chain}
    assert draw(chain, pairwise(chain)) == draw(chain, pairwise(chain), wide)
    longer = [f"a_rather_long_name_{at}" for at in range(6)]
    told = draw(longer, pairwise(longer), {longer[1]: f"{longer[1]} [loop]"})
    assert "a_rather_long_name_1 [loop] > a_rather_long_name_2" == told[1]


def test_what_leads_to_a_node_that_undoes_another_is_no_next_step() -> None:
    edges = [("book", "cancel"), ("book", "ship")]
    labels = {"cancel": "cancel [undoes book]"}
    assert ["book ─┐", "      ├─▷ cancel [undoes book]", "      └─► ship"] == draw(
        ["book", "cancel", "ship"], edges, labels, {"cancel"}
    )


def test_a_draft_is_drawn_with_what_its_edges_name() -> None:
    assert ["a ─┐", "   └─► b"] == draw(["a"], [("a", "b")])
    assert ["b ─┐", "   └─► a"] == draw(["a"], [("b", "a")])


def test_a_circle_is_put_into_words() -> None:
    assert ["a > b", "b > a, c", "c"] == draw(["a", "b"], [("a", "b"), ("b", "a"), ("b", "c")])
    assert ["a > a"] == draw(["a"], [("a", "a")])


@st.composite
def graphs(draw_from: st.DrawFn) -> tuple[list[str], Edges]:
    nodes = [f"n{at}" for at in range(draw_from(st.integers(1, 9)))]
    pairs = [(start, end) for at, start in enumerate(nodes) for end in nodes[at + 1 :]]
    edges = draw_from(st.sets(st.sampled_from(pairs), max_size=14)) if pairs else set()
    return draw_from(st.permutations(nodes)), edges


# A line that goes on behind a rail which was drawn before it.
@example((["b", "a", "c", "d"], {("a", "c"), ("a", "d"), ("b", "c"), ("c", "d")}))
@given(graphs())
def test_its_lines_lead_where_the_edges_do(graph: tuple[list[str], Edges]) -> None:
    nodes, edges = graph
    lines = draw(nodes, sorted(edges))
    assert max(map(len, lines)) <= COLUMNS_MAX
    if not any(" > " in line for line in lines):
        assert {(start, end) for start in nodes for end in reached(lines, start)} == edges


def reached(lines: Sequence[str], start: str) -> Iterator[str]:
    """Follow the lines from a node by eye: to the right and down, behind what is in the way."""

    def at(row: int, x: int) -> str:
        return lines[row][x] if x < len(lines[row]) else " "

    row = next(row for row, line in enumerate(lines) if start in line.split())
    left = lines[row].index(start) + len(start) + 1
    ways = [(row, left, "right")] if at(row, left) != " " else []
    while ways:
        row, x, way = ways.pop()
        sign = at(row, x)
        if sign == "►":
            yield lines[row][x + 1 :].split()[0]
            continue
        if way == "right":
            if sign in "─│├└┬":
                ways.append((row, x + 1, "right"))
            if sign in "┐┬┤":
                ways.append((row + 1, x, "down"))
        else:
            if sign in "├└":
                ways.append((row, x + 1, "right"))
            if sign in "│├┤":
                ways.append((row + 1, x, "down"))
