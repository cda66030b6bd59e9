"""What the demo prints: tables in a terminal, plain lines in a pipe."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from qflow.isolation.v1 import isolation_pb2
from qflow.orchestrator.v1 import execution_pb2
from qflow.picture import draw
from qflow.registry.v1 import node_pb2, workflow_pb2
from qflow.runner.v1 import runner_service_pb2 as runners_pb
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

FINAL: Final = frozenset(
    {
        execution_pb2.EXECUTION_STATUS_COMPLETED,
        execution_pb2.EXECUTION_STATUS_FAILED,
        execution_pb2.EXECUTION_STATUS_CANCELLED,
    }
)
_STYLES: Final = {"running": "yellow", "completed": "green", "failed": "red", "retrying": "magenta"}
_PREFIX: Final = len("NODE_EXECUTION_STATUS_")
_BAR_WIDTH: Final = 40


class Progress:
    """The nodes of a run and where each stands; `nodes` keeps the last state of each."""

    def __init__(self, console: Console, places: Sequence[tuple[str, str]]) -> None:
        self.nodes: dict[str, execution_pb2.NodeExecution] = {}
        self._console = console
        self._places = places
        # Drawn anew by itself, too: the time of what runs goes on between two events.
        live = Live(console=console, get_renderable=self._table, refresh_per_second=5)
        self._live = live if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, changed: Iterable[execution_pb2.NodeExecution]) -> None:
        """Take the nodes that changed: draw them anew, or print a line for each."""
        for node in changed:
            before = self.nodes.get(node.node_id)
            self.nodes[node.node_id] = node
            known = before is not None and before.status == node.status
            if self._live is None and not known and _status(node) != "pending":
                line = f"  {node.node_id:<11}{_status(node):<11}{took(node)}"
                self._console.print(line.rstrip(), markup=False)
        if self._live is not None:
            self._live.refresh()

    def _table(self) -> Table:
        now_ms = round(time.time() * 1000)
        table = Table(box=None, pad_edge=False, padding=(0, 2))
        for title in ("  node", "function", "state", "took"):
            table.add_column(title, justify="right" if title == "took" else "left")
        for place, function in self._places:
            node = self.nodes.get(place)
            status = _status(node) if node is not None else "pending"
            style = _STYLES.get(status, "dim")
            so_far = took(node, now_ms=now_ms) if node is not None else ""
            table.add_row(f"  {place}", function, f"[{style}]{status}[/]", so_far)
        return table


def node(console: Console, stored: node_pb2.Node) -> None:
    """Print a node's signature as it was read, and what it needs."""
    takes = ", ".join(each.type_expression for each in stored.inputs)
    gives = ", ".join(f"{each.name}: {each.type_expression}" for each in stored.outputs)
    console.print(f"  {escape(f'{stored.main_function}({takes}) -> {gives}')}")
    for needed in stored.requirements:
        why = (
            "declared in the source"
            if needed.provenance == "pep723"
            else f"from `import {needed.import_name}`"
        )
        state = node_pb2.LockState.Name(stored.lock_state).removeprefix("LOCK_STATE_").lower()
        console.print(f"      needs {needed.specifier} ({why}; {state})", markup=False)


def edges(
    console: Console, workflow: workflow_pb2.Workflow, nodes: Mapping[str, node_pb2.Node]
) -> None:
    """Print what the type check said of each edge."""
    names = workflow_pb2.Verdict
    said = Counter[str]()
    for edge in workflow.definition.connections:
        verdict = names.Name(edge.verdict).removeprefix("VERDICT_").lower()
        said[verdict] += 1
        start = f"{edge.source_node or 'input'}.{edge.source_output}"
        end = f"{edge.target_node}.{edge.target_input}"
        what = f" {edge.conversion} ({_types(edge, nodes)})" if edge.conversion else ""
        console.print(f"  {start:<17} > {end:<21} {verdict}{what}", markup=False)
    console.print("  " + ", ".join(_verdicts(verdict, count) for verdict, count in said.items()))


def graph(console: Console, workflow: workflow_pb2.Workflow) -> None:
    """Print a picture of the nodes and what leads from one to another."""
    definition = workflow.definition
    edges = [(edge.source_node, edge.target_node) for edge in definition.connections]
    for line in draw([node.id for node in definition.nodes], [edge for edge in edges if edge[0]]):
        console.print(f"  {line}", markup=False)


def sandboxes(console: Console, used: Sequence[runners_pb.Container]) -> None:
    """Print where the nodes ran."""
    for (tier, version), count in sorted(
        Counter((each.tier, each.python_version) for each in used).items()
    ):
        name = isolation_pb2.Tier.Name(tier).removeprefix("TIER_")
        boxes = "sandbox" if count == 1 else "sandboxes"
        console.print(f"  ran in {count} {boxes} of tier {name}, Python {version}")


def result(console: Console, output: Mapping[str, Any]) -> None:
    """Print what the run answered with."""
    console.print("\nResult", style="bold")
    for line in str(output["report"]).splitlines():
        console.print(f"  {line}", markup=False)
    monthly = {int(month): float(amount) for month, amount in output["monthly_mm"].items()}
    most = max(monthly.values(), default=0.0) or 1.0
    console.print("  Rain by month, mm:")
    for month, amount in sorted(monthly.items()):
        bar = "█" * round(_BAR_WIDTH * amount / most)
        console.print(f"    {month:>2} {amount:>6.1f} {bar}")


def failure(console: Console, execution: execution_pb2.Execution) -> None:
    """Print why the run did not complete."""
    status = execution_pb2.ExecutionStatus.Name(execution.status).rpartition("_")[2].lower()
    where = f" at {execution.error.node_id}" if execution.error.node_id else ""
    console.print(f"The run {execution.id} {status}{where}:", style="red")
    console.print(f"  {execution.error.error_type}: {execution.error.message}", markup=False)
    if execution.error.stack_trace:
        console.print(execution.error.stack_trace, markup=False)


def calls(
    console: Console,
    endpoints: Mapping[str, str],
    token_file: Path,
    execution_id: str,
    *,
    authorities: str | None = None,
) -> None:
    """Print how to ask for the same by hand; with TLS `authorities` is the file to believe."""
    reached = "-plaintext" if authorities is None else f"-cacert {shlex.quote(authorities)}"
    console.print("\nAsk for it by hand, while the suite runs", style="bold")
    header = f'-H "authorization: Bearer $(cat {shlex.quote(str(token_file))})"'
    for service, method in (
        ("orchestrator", "qflow.orchestrator.v1.ExecutionService/GetExecution"),
        ("orchestrator", "qflow.orchestrator.v1.ExecutionService/ListNodeExecutions"),
    ):
        console.print(f"  grpcurl {reached} {header} \\", markup=False)
        console.print(f"""    -d '{{"execution_id": "{execution_id}"}}' \\""", markup=False)
        console.print(f"    {endpoints[service]} {method}", markup=False)


def _status(node: execution_pb2.NodeExecution) -> str:
    return execution_pb2.NodeExecutionStatus.Name(node.status)[_PREFIX:].lower()


def took(node: execution_pb2.NodeExecution, *, now_ms: int | None = None) -> str:
    """Say how long a node took or, with the time that it is, for how long it has been running."""
    if not node.HasField("start_time"):
        return ""
    start_ms = node.start_time.ToMilliseconds()
    if node.HasField("end_time"):
        return f"{node.end_time.ToMilliseconds() - start_ms:,} ms"
    if now_ms is None or _status(node) != "running":
        return ""
    return f"{max(0, now_ms - start_ms) / 1000:.1f} s"


def _verdicts(verdict: str, count: int) -> str:
    """Count edges by what was said of them: `exact` is no noun, `conversion` is one."""
    plural = "s" if count != 1 and verdict in {"conversion", "widening"} else ""
    return f"{count} {verdict}{plural}"


def _types(edge: workflow_pb2.Connection, nodes: Mapping[str, node_pb2.Node]) -> str:
    outputs = {each.name: each.type_expression for each in nodes[edge.source_node].outputs}
    inputs = {each.name: each.type_expression for each in nodes[edge.target_node].inputs}
    return f"{outputs[edge.source_output]} -> {inputs[edge.target_input]}"
