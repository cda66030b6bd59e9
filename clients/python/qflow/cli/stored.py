"""Nodes and workflows: store, list, show."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from qflow.cli import builds
from qflow.cli.common import (
    AsJson,
    ContextName,
    Home,
    as_plain,
    console,
    found,
    print_json,
    print_list,
    stored_workflow,
    with_client,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qflow.client.client import Client
    from qflow.errors import CallError

nodes = typer.Typer(no_args_is_help=True, help="Nodes: plain Python functions, stored as source.")
workflows = typer.Typer(no_args_is_help=True, help="Workflows: graphs of nodes.")

Place = Annotated[str, typer.Argument(help="FILE.py, or FILE.py:NAME.", metavar="FILE[:NAME]")]
Filter = Annotated[str, typer.Argument(help="A filter; see docs/lists.md.")]
Limit = Annotated[int, typer.Option(help="The maximum number.", min=1)]
Build = Annotated[
    bool, typer.Option("--build", "-b", help="Build its environment, too, and wait for that.")
]

_FAILED: Final = 1
_REFUSED: Final = 3
_AT: Final = re.compile(r"^line \d+, column \d+: | \(line \d+, column \d+\)$")


@nodes.command("push")
def push_nodes(
    place: Place,
    build: Build = False,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> int:
    """Store the nodes of a file; idempotent."""
    from qflow.errors import InvalidArgumentError

    out = console(errors=as_json)
    there = found(place, "node")
    file = Path(place.partition(":")[0]).read_text("utf-8")
    pushed = []

    async def pushing(client: Client) -> bool:
        ready = True
        for node in there:
            try:
                stored = await client.push_node(node)
            except InvalidArgumentError as error:
                if "line" not in error.facts:
                    raise
                _say_refused(error, node, file)
                raise typer.Exit(_REFUSED) from None
            pushed.append(as_plain(stored))
            if not as_json:
                _say_node(out, stored, node.source, file=file)
            if build:
                ready &= await builds.build(client, name=stored.name, node_id=stored.id)
        return ready

    ready = with_client(pushing, context=context, home=home)
    if as_json:
        print_json(pushed)
    return 0 if ready else _FAILED


@nodes.command("ls")
def list_nodes(
    filter: Filter = "",
    limit: Limit = 50,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """List nodes, newest first."""
    there = with_client(lambda c: _first(c.nodes(filter), limit), context=context, home=home)

    def row(each: Any) -> Sequence[str]:
        return (each.id, each.name, str(each.version), _signature(each))

    titles = ("id", "name", "version", "signature")
    print_list(there, titles, row, as_json=as_json, right=("version",))


@nodes.command("show")
def show_node(
    node_id: str, context: ContextName = "", home: Home = "", as_json: AsJson = False
) -> None:
    """Show a node with its source."""
    stored = with_client(lambda c: c.node(node_id), context=context, home=home)
    if as_json:
        print_json(as_plain(stored))
        return
    out = console()
    _say_node(out, stored, stored.code)
    out.print(f"\n{stored.code.rstrip()}", markup=False)


@workflows.command("push")
def push_workflows(
    place: Place,
    build: Build = False,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> int:
    """Store the workflows of a file with their nodes; idempotent."""
    there = found(place, "workflow")
    pushed = []

    async def pushing(client: Client) -> bool:
        ready = True
        for workflow in there:
            stored = await client.push(workflow)
            pushed.append(as_plain(stored))
            if not as_json:
                _say_workflow(stored)
            if build:
                ready &= await builds.build(client, name=stored.name, workflow_id=stored.id)
        return ready

    ready = with_client(pushing, context=context, home=home)
    if as_json:
        print_json(pushed)
    return 0 if ready else _FAILED


@workflows.command("ls")
def list_workflows(
    filter: Filter = "",
    limit: Limit = 50,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """List workflows, newest first."""
    there = with_client(lambda c: _first(c.workflows(filter), limit), context=context, home=home)

    def row(each: Any) -> Sequence[str]:
        takes = ", ".join(f"{i.name}: {i.type_expression}" for i in each.definition.inputs)
        state = "active" if each.active else "draft"
        return (each.id, each.name, str(each.version), state, takes)

    titles = ("id", "name", "version", "state", "inputs")
    print_list(there, titles, row, as_json=as_json, right=("version",))


@workflows.command("show")
def show_workflow(
    workflow: str, context: ContextName = "", home: Home = "", as_json: AsJson = False
) -> None:
    """Show a workflow by name or id, with its graph and the type check of each edge."""
    stored = with_client(lambda c: stored_workflow(c, workflow), context=context, home=home)
    if as_json:
        print_json(as_plain(stored))
        return
    _say_workflow(stored)


def graph(
    workflow: Annotated[
        str, typer.Argument(help="A stored workflow's name or id, or FILE.py[:NAME].")
    ],
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Draw the graph of a stored workflow, or of one in a file."""
    from qflow.cli.show import graph_of
    from qflow.picture import draw

    if workflow.partition(":")[0].endswith(".py"):
        from qflow.cli.common import one_found

        drawn = one_found(workflow, "workflow").graph.picture()
    else:
        stored = with_client(lambda c: stored_workflow(c, workflow), context=context, home=home)
        drawn = graph_of(stored.definition)
    if as_json:
        places, edges, *_ = drawn
        told = [{"source_node": start, "target_node": end} for start, end in dict.fromkeys(edges)]
        print_json({"nodes": places, "edges": told})
        return
    for line in draw(*drawn):
        typer.echo(line)


async def _first(items: Any, limit: int) -> list[Any]:
    kept: list[Any] = []
    async for each in items:
        kept.append(each)
        if len(kept) >= limit:
            break
    return kept


def _signature(node: Any) -> str:
    takes = ", ".join(
        f"{each.name}: {each.type_expression}{'' if each.required else ' = …'}"
        for each in node.inputs
    )
    gives = ", ".join(
        each.type_expression if each.name == "result" else f"{each.name}: {each.type_expression}"
        for each in node.outputs
    )
    return f"({takes}) -> {gives or 'None'}"


def _say_refused(error: CallError, node: Any, file: str) -> None:
    """Print diagnostics of a source below its lines."""
    from qflow.cli import show

    at = int(error.facts["line"]), int(error.facts.get("column", "1"))
    said = error.violations[0].description if error.violations else error.message
    text = _AT.sub("", said)
    show.source_fault(console(errors=True), node.source, *at, text, file=file)
    typer.echo(f"qflow: {node.name} was not stored", err=True)


def _say_node(out: Any, stored: Any, code: str, *, file: str = "") -> None:
    from qflow.cli import show
    from qflow.registry.v1 import node_pb2

    out.print(f"{stored.name} version {stored.version}  {stored.id}", markup=False)
    out.print(f"  {_signature(stored)}", markup=False)
    for needed in stored.requirements:
        state = node_pb2.LockState.Name(stored.lock_state).removeprefix("LOCK_STATE_").lower()
        out.print(f"  needs {needed.specifier} ({state})", markup=False)
    for each in stored.diagnostics:
        hint = f"; {each.hint}" if each.hint else ""
        said = f"{each.message}{hint}"
        show.source_fault(out, code, each.line, each.column, said, file=file)


def _say_workflow(stored: Any) -> None:
    from qflow.cli import show
    from qflow.picture import draw
    from qflow.registry.v1 import workflow_pb2

    out = console()
    state = "active" if stored.active else "draft"
    out.print(f"{stored.name} version {stored.version}, {state}  {stored.id}", markup=False)
    for line in draw(*show.graph_of(stored.definition)):
        out.print(f"  {line}", markup=False)
    for edge in stored.definition.connections:
        if edge.conversion:
            loses = ", may lose or fail" if edge.lossy else ""
            start = f"{edge.source_node or 'input'}.{edge.source_output}"
            out.print(
                f"  {start} > {edge.target_node}.{edge.target_input}: {edge.conversion}{loses}",
                markup=False,
            )
    for each in stored.findings:
        name = workflow_pb2.FindingSeverity.Name(each.severity).rpartition("_")[2].lower()
        out.print(f"  {name}: {each.place}: {each.message}", markup=False, style="yellow")
