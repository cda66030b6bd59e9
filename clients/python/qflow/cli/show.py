"""Output for terminals; in a pipe, plain lines without colour.

What services tell is imported when they have told something: the first picture needs none of it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from qflow.cli.common import console
from qflow.cli.tables import table
from qflow.picture import draw

if TYPE_CHECKING:
    from qflow.authoring.graph import Picture
    from qflow.orchestrator.v1 import execution_pb2
    from qflow.registry.v1 import workflow_pb2

_NODE_PREFIX: Final = len("NODE_EXECUTION_STATUS_")
_RUN_PREFIX: Final = len("EXECUTION_STATUS_")
_STYLES: Final = {
    "running": "yellow",
    "completed": "green",
    "failed": "red",
    "retrying": "magenta",
    "waiting": "cyan",
    "paused": "cyan",
    "cancelled": "red",
    "quarantined": "red",
}
_SHORT_CHARS: Final = 26  # the longest state and time, and the gaps between columns
_BAR_CHARS_MIN: Final = 4
_BAR_CHARS_MAX: Final = 30
_ROWS_MAX: Final = 200
_ASIDE_MAX: Final = 5
# An id of a place, or its mark.
_PLACE: Final = re.compile(r"\[[^]]*\]|[A-Za-z_][A-Za-z0-9_-]*")


def node_status(node: execution_pb2.NodeExecution) -> str:
    """Return a node's status as text: `completed`."""
    from qflow.orchestrator.v1 import execution_pb2

    return execution_pb2.NodeExecutionStatus.Name(node.status)[_NODE_PREFIX:].lower()


def run_status(run: execution_pb2.Execution) -> str:
    """Return a run's status as text."""
    from qflow.orchestrator.v1 import execution_pb2

    return execution_pb2.ExecutionStatus.Name(run.status)[_RUN_PREFIX:].lower()


def progress(counts: execution_pb2.NodeCounts) -> tuple[int, int]:
    """Return how many nodes completed, and of how many; those that were skipped are left out."""
    return counts.completed, counts.total - counts.skipped


def styled(status: str) -> str:
    """Return a status in its colour, as markup."""
    style = _STYLES.get(status, "dim")
    return f"[{style}]{status}[/]"


def in_colour(status: str) -> Text:
    """Return a status in its colour."""
    return Text(status, style=_STYLES.get(status, "dim"))


def took(start: Any, end: Any, *, now_ms: int | None = None) -> str:
    """Format a duration; with `now`, of something that is still running."""
    if not start.ToMilliseconds():
        return ""
    if end.ToMilliseconds():
        return duration(end.ToMilliseconds() - start.ToMilliseconds())
    return duration(max(0, now_ms - start.ToMilliseconds())) if now_ms is not None else ""


def duration(span_ms: int) -> str:
    """Format a duration for people."""
    if span_ms < 10_000:  # noqa: PLR2004  # with milliseconds below ten seconds
        return f"{span_ms:,} ms"
    seconds = span_ms // 1000
    if seconds < 120:  # noqa: PLR2004
        return f"{seconds} s"
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} h"


def graph_of(definition: workflow_pb2.WorkflowDefinition) -> Picture:
    """Return what to draw of a graph."""
    edges = [(edge.source_node, edge.target_node) for edge in definition.connections]
    labels = {node.id: _label(node) for node in definition.nodes}
    undoing = frozenset(node.id for node in definition.nodes if node.compensates)
    return [*labels], [edge for edge in edges if edge[0]], labels, undoing


def _label(node: workflow_pb2.WorkflowNode) -> str:
    from qflow.authoring.graph import label
    from qflow.registry.v1 import workflow_pb2

    return label(
        node.id,
        (node.WhichOneof("construct") or "").removeprefix("sub_"),
        each=node.HasField("for_each"),
        loop=node.HasField("repeat"),
        last=node.phase == workflow_pb2.NODE_PHASE_FINALLY,
        undoes=node.compensates,
    )


def live(authored: Any = None) -> LiveRun:
    """Return the view of a run; a graph written in Python is shown before any call.

    Enter it to show it; what is entered again goes on.
    """
    view = LiveRun(console(errors=True))
    if authored is not None:
        view.draw_graph(*authored.graph.picture())
    return view


class LiveRun:
    """The live view of a run: a table and a timeline that are redrawn, or a line per change."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._run: execution_pb2.Execution | None = None
        self._nodes: dict[str, execution_pb2.NodeExecution] = {}
        self._picture: list[str] = []
        # Redrawn periodically, too, as time passes and windows change size. On the alternate
        # screen, since wrapped lines cannot be cleared after the window has become smaller.
        live = Live(console=out, get_renderable=self._whole, refresh_per_second=8, screen=True)
        self._live = live if out.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None and not self._live.is_started:
            self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.leave()

    def leave(self) -> None:
        """Restore the terminal and print the last view; idempotent."""
        if self._live is not None and self._live.is_started:
            self._live.stop()
            if self._run is not None:
                self._out.print(self._whole())

    @property
    def lacks_graph(self) -> bool:
        """Return whether a graph could be shown but is not known yet."""
        return self._live is not None and not self._picture

    def update(
        self, run: execution_pb2.Execution, changed: Iterable[execution_pb2.NodeExecution]
    ) -> None:
        """Update the view."""
        self._run = run
        for node in changed:
            before = self._nodes.get(node.node_id)
            self._nodes[node.node_id] = node
            status = node_status(node)
            known = before is not None and before.status == node.status
            if self._live is None and not known and status != "pending":
                line = f"{node.node_id:<24} {status:<11} {took(node.start_time, node.end_time)}"
                self._out.print(line.rstrip(), markup=False)
        if self._live is not None:
            self._live.refresh()

    def draw_graph(
        self,
        nodes: Sequence[str],
        edges: Iterable[tuple[str, str]],
        labels: Mapping[str, str] = MappingProxyType({}),
        undoing: Collection[str] = (),
    ) -> None:
        """Show the graph above the timeline, if there is room for both."""
        self._picture = draw(nodes, edges, labels, undoing)
        if self._live is not None and self._live.is_started:
            self._live.refresh()

    def _graph(self) -> list[Text]:
        """Return the graph with places in the colours of their states, if it is shown."""
        height, width = self._out.size.height, self._out.size.width
        if len(self._picture) > height // 3 or max(map(len, self._picture), default=0) > width:
            return []
        states = {
            node.definition_node_id or node.node_id: node_status(node)
            for node in self._nodes.values()
        }
        lines = [Text(line, style="dim") for line in self._picture]
        for line in lines:
            for word in _PLACE.finditer(line.plain):
                if word[0] in states:
                    line.stylize(f"not dim {_STYLES.get(states[word[0]], 'dim')}", *word.span())
        return [*lines, Text()]

    def _whole(self) -> RenderableType:
        graph = self._graph()
        if self._run is None:
            return Group(Text("starting …"), *graph)
        now_ms = round(time.time() * 1000)
        completed, total = progress(self._run.node_counts)
        skipped = self._run.node_counts.skipped
        head = Text.from_markup(
            f"{self._run.id}  {styled(run_status(self._run))}  "
            f"{completed} of {total} nodes{f', {skipped} skipped' if skipped else ''}  "
            f"{took(self._run.start_time, self._run.end_time, now_ms=now_ms)}"
        )
        room = max(3, min(_ROWS_MAX, self._out.size.height - 4 - len(graph)))
        nodes, width = list(self._nodes.values()), self._out.size.width
        return Group(head, *graph, timeline(nodes, now_ms=now_ms, rows_max=room, width=width))


def timeline(
    nodes: Sequence[execution_pb2.NodeExecution],
    *,
    now_ms: int | None,
    rows_max: int = _ROWS_MAX,
    width: int = 80,
) -> Table:
    """Return the nodes of a run with their times as bars."""
    made = table("node", "state", "took", "", right=("took",))
    begun = [node for node in nodes if node.HasField("start_time")]
    first = min((node.start_time.ToMilliseconds() for node in begun), default=0)
    last = max(
        (node.end_time.ToMilliseconds() or now_ms or first for node in begun), default=first + 1
    )
    shown = nodes if len(nodes) <= rows_max else _missed_most(nodes, rows_max)
    names = max((len(node.node_id) for node in shown), default=0)
    bar_chars = max(_BAR_CHARS_MIN, min(_BAR_CHARS_MAX, width - names - _SHORT_CHARS))
    for node in shown:
        status = node_status(node)
        made.add_row(
            escape(node.node_id),
            styled(status),
            _taken_over(node)
            or took(node.start_time, node.end_time, now_ms=now_ms if status == "running" else None),
            Text(
                _bar(node, (first, last), now_ms, chars=bar_chars),
                style=_STYLES.get(status, "dim"),
            ),
        )
    if len(shown) < len(nodes):
        made.add_row(f"… and {len(nodes) - len(shown)} more", "", "", "")
    return made


def _taken_over(node: execution_pb2.NodeExecution) -> str:
    """Return `cached` or `kept` for a node that did not run in this run, else nothing."""
    return "cached" if node.cache_hit else "kept" if node.copied_from else ""


def _missed_most(
    nodes: Sequence[execution_pb2.NodeExecution], rows_max: int
) -> list[execution_pb2.NodeExecution]:
    """Return the nodes that fit, in order: active ones first, then pending, then ended."""
    rank = {"pending": 1, "completed": 2}
    kept = sorted(range(len(nodes)), key=lambda at: rank.get(node_status(nodes[at]), 0))[:rows_max]
    return [nodes[at] for at in sorted(kept)]


def _bar(
    node: execution_pb2.NodeExecution, span: tuple[int, int], now_ms: int | None, *, chars: int
) -> str:
    if not node.HasField("start_time"):
        return ""
    first, last = span
    whole = max(1, last - first)
    start = (node.start_time.ToMilliseconds() - first) * chars // whole
    end_ms = node.end_time.ToMilliseconds() or now_ms or last
    end = (end_ms - first) * chars // whole
    return " " * min(start, chars - 1) + "━" * max(1, min(end, chars) - start)


def failure(out: Console, run: execution_pb2.Execution) -> None:
    """Print why a run did not complete, with the frames of user code."""
    where = f" at {run.error.node_id}" if run.error.node_id else ""
    out.print(
        f"{run_status(run)}{where}: {run.error.message or 'no more is known'}",
        style="red",
        markup=False,
    )
    if run.error.stack_trace:
        out.print(run.error.stack_trace.rstrip(), markup=False, style="dim")


def put_aside(out: Console, nodes: Sequence[execution_pb2.NodeExecution]) -> None:
    """Print why elements of maps were quarantined, for the first few."""
    aside = [node for node in nodes if node_status(node) == "quarantined"]
    for node in aside[:_ASIDE_MAX]:
        out.print(f"{node.node_id} put aside: {node.error.message}", markup=False, style="red")
    if len(aside) > _ASIDE_MAX:
        out.print(f"… and {len(aside) - _ASIDE_MAX} more", style="red")


def source_fault(
    out: Console, code: str, line: int, column: int, message: str, *, file: str = ""
) -> None:
    """Print a source line with a message below the position.

    What goes out of a file is a part of it: the line has the number that it has there, where one
    line alone reads so.
    """
    lines, whole = code.splitlines(), file.splitlines()
    if 0 < line <= len(lines):
        text = lines[line - 1]
        number = whole.index(text) + 1 if whole.count(text) == 1 else line
        out.print(f"{number:>5} | {text}", markup=False)
        out.print(f"      | {' ' * max(0, column - 1)}^ {message}", markup=False, style="yellow")
    else:
        out.print(f"      {message}", markup=False, style="yellow")
