"""What is drawn of a run while it goes, in windows of any size."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from qflow.cli.show import LiveRun, progress, timeline
from qflow.orchestrator.v1 import execution_pb2
from rich.console import Console

RUNNING = execution_pb2.NODE_EXECUTION_STATUS_RUNNING
PENDING = execution_pb2.NODE_EXECUTION_STATUS_PENDING
COMPLETED = execution_pb2.NODE_EXECUTION_STATUS_COMPLETED


def line(*places: str) -> list[tuple[str, str]]:
    """Give the edges of places in a line."""
    return list(pairwise(places))


def drawn(nodes: dict[str, int], *, width: int, height: int) -> str:
    """Draw a run once, as a terminal of this size shows it last."""
    screen = io.StringIO()
    out = Console(
        file=screen, force_terminal=True, width=width, height=height, color_system="standard"
    )
    with LiveRun(out) as view:
        view.draw_graph(list(nodes), line(*nodes))
        view.update(
            execution_pb2.Execution(id="r", status=execution_pb2.EXECUTION_STATUS_RUNNING),
            [
                execution_pb2.NodeExecution(node_id=each, status=status)  # type: ignore[arg-type]
                for each, status in nodes.items()
            ],
        )
    return screen.getvalue().rpartition("\x1b[?1049l")[2]  # back on the screen that stays


def test_the_graph_stands_above_the_timeline_in_the_colours_of_its_states() -> None:
    screen = drawn({"read": COMPLETED, "write": RUNNING}, width=80, height=30)
    graph = next(line for line in screen.splitlines() if "►" in line or "└" in line)
    assert "\x1b[33mwrite" in graph
    assert "\x1b[32mread" in screen
    assert screen.index("►") < screen.index("state")


@pytest.mark.parametrize(("width", "height"), [(80, 5), (10, 30), (1, 1)])
def test_a_window_without_room_for_the_graph_shows_the_timeline_alone(
    width: int, height: int
) -> None:
    places = [f"place_{number}" for number in range(4)]
    screen = drawn(dict.fromkeys(places, RUNNING), width=width, height=height)
    assert "►" not in screen


def test_the_graph_is_there_before_anything_is_known_of_the_run() -> None:
    screen = io.StringIO()
    with LiveRun(Console(file=screen, force_terminal=True, width=80, height=30)) as view:
        view.draw_graph(["read", "write"], line("read", "write"))
    assert "starting" in screen.getvalue()
    assert "write" in screen.getvalue()
    assert "starting" not in screen.getvalue().rpartition("\x1b[?1049l")[2]


@pytest.mark.parametrize("width", [50, 60, 81])
def test_no_line_of_the_timeline_is_folded(width: int) -> None:
    screen = io.StringIO()
    with LiveRun(Console(file=screen, force_terminal=True, width=width, height=30)) as view:
        nodes = [
            execution_pb2.NodeExecution(node_id=each, status=COMPLETED)
            for each in ("read", "write_it_down")
        ]
        for each in nodes:
            each.start_time.FromMilliseconds(1_000)
            each.end_time.FromMilliseconds(10_999)
        view.update(execution_pb2.Execution(id="r"), nodes)
    last = screen.getvalue().rpartition("\x1b[?1049l")[2]
    lines = [re.sub("\x1b\\[[0-9;]*m", "", line).strip() for line in last.splitlines()]
    begin = next(at for at, line in enumerate(lines) if line.startswith("node"))
    assert ["node", "read", "write_it_down"] == [line.split()[0] for line in lines[begin:] if line]


def test_what_was_skipped_is_not_missing_from_a_run() -> None:
    run = execution_pb2.Execution(id="r")
    run.node_counts.CopyFrom(execution_pb2.NodeCounts(total=5, completed=3, skipped=2))
    screen = io.StringIO()
    with LiveRun(Console(file=screen, force_terminal=True, width=80, height=30)) as view:
        view.update(run, [])
    assert "3 of 3 nodes, 2 skipped" in screen.getvalue()
    assert (3, 3) == progress(run.node_counts)


def test_what_did_not_run_says_where_its_result_is_from() -> None:
    screen = io.StringIO()
    ran, kept = (execution_pb2.NodeExecution(node_id=each, status=COMPLETED) for each in "ab")
    cached = execution_pb2.NodeExecution(node_id="c", status=COMPLETED, cache_hit=True)
    kept.copied_from = cached.copied_from = "another"
    ran.start_time.FromMilliseconds(1_000)
    ran.end_time.FromMilliseconds(1_007)
    Console(file=screen, width=80).print(timeline([ran, kept, cached], now_ms=None))
    rows = [line.split()[:3] for line in screen.getvalue().splitlines()[1:4]]
    assert [["a", "completed", "7"], ["b", "completed", "kept"], ["c", "completed", "cached"]] == (
        rows
    )


def test_where_not_all_fit_those_that_move_are_first_and_the_room_is_used() -> None:
    nodes: dict[str, int] = {
        "a": COMPLETED,
        "b": COMPLETED,
        "c": RUNNING,
        "d": PENDING,
        "e": COMPLETED,
    }
    screen = drawn(nodes, width=80, height=7)
    shown = [
        line.split()[0] for line in screen.splitlines() if line[:2] in {f"{n} " for n in nodes}
    ]
    assert ["a", "c", "d"] == shown
    assert "… and 2 more" in screen


FIRST = """
import io, sys
import qflow
from qflow.cli import app
from qflow.cli.show import live
from rich.console import Console

@qflow.node
def double(n: int) -> int:
    return 2 * n

@qflow.workflow
def twice(n: int) -> int:
    return double(double(n))

with live(twice):
    there = sorted({"asyncio", "google.protobuf", "grpc", "pydantic"} & set(sys.modules))
print(there)
"""


def test_the_first_picture_waits_for_nothing_that_asks_or_judges(tmp_path: Path) -> None:
    (tmp_path / "first.py").write_text(FIRST)
    said = subprocess.run(
        [sys.executable, tmp_path / "first.py"],
        env={**os.environ, "FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "80", "LINES": "30"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "double_2" in said.stderr
    assert "[]\n" == said.stdout
