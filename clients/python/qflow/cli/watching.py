"""Starting and watching runs, and leaving them with Ctrl-C."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any, Final

import typer

from qflow.cli.common import as_plain, console, print_json
from qflow.cli.show import LiveRun, failure, graph_of
from qflow.exceptions import QflowError
from qflow.orchestrator.v1 import execution_pb2

if TYPE_CHECKING:
    from qflow.client.client import Client
    from qflow.client.runs import Run

_FAILED: Final = 1
_INTERRUPTED: Final = 130
_START_S: Final = 15.0  # how long Ctrl-C waits for the response of a start


async def begun(
    starting: Coroutine[Any, Any, Run[Any]], view: LiveRun | None = None
) -> tuple[Run[Any], bool]:
    """Start a run; Ctrl-C waits for its id, so that no run is started unnoticed."""
    task = asyncio.ensure_future(starting)
    try:
        return await asyncio.shield(task), False
    except asyncio.CancelledError:
        if task.cancelled():
            raise
        if view is not None:
            view.leave()
        typer.echo("\nThe start is under way; waiting for the run's id …", err=True)
        try:
            return await asyncio.wait_for(task, _START_S), True
        except TimeoutError:
            typer.echo("No answer: the run may have begun, `qflow ls` shows it.", err=True)
            raise asyncio.CancelledError from None


async def until_over(
    client: Client, started: Run[Any], view: LiveRun | None, *, as_json: bool
) -> int:
    """Wait for the end, with the live view if there is one, and print the result."""
    waiting = asyncio.ensure_future(
        started.wait() if view is None else _seen(client, started, view)
    )
    try:
        with view or nullcontext():
            await asyncio.shield(waiting)
    except asyncio.CancelledError:  # Ctrl-C
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting
        return await asked(started)
    one = await started.get()
    if as_json:
        print_json(as_plain(one))
    elif one.status == execution_pb2.EXECUTION_STATUS_COMPLETED:
        typer.echo(one.output_json)
    else:
        failure(console(errors=True), one)
        typer.echo(f"What to do about it: qflow explain {one.id}", err=True)
    return 0 if one.status == execution_pb2.EXECUTION_STATUS_COMPLETED else _FAILED


async def _seen(client: Client, started: Run[Any], view: LiveRun) -> None:
    drawing: asyncio.Task[None] | None = None
    try:
        async for change in started.watch():
            view.update(change.execution, change.nodes)
            if drawing is None and view.lacks_graph and change.execution.workflow_id:
                # In a separate task, so that drawing does not delay the watch.
                drawing = asyncio.create_task(_drawn(client, view, change.execution))
    finally:
        if drawing is not None:
            drawing.cancel()  # an ended run needs no graph any more


async def _drawn(client: Client, view: LiveRun, execution: execution_pb2.Execution) -> None:
    """Show the graph of a run, if it can be read."""
    with suppress(QflowError):
        stored = await client.workflow(execution.workflow_id, version=execution.workflow_version)
        view.draw_graph(*graph_of(stored.definition))


async def asked(started: Run[Any]) -> int:
    """Ask once whether to cancel a run on Ctrl-C; otherwise it goes on."""
    typer.echo(f"\nThe run goes on: qflow watch {started.id}", err=True)
    if sys.stdin.isatty():
        try:
            answer = input("Cancel it? [y/N] ")  # noqa: ASYNC250  # nothing else is running
        except (EOFError, KeyboardInterrupt):
            answer = ""
        if answer.strip().lower() in {"y", "yes"}:
            await started.cancel()
            typer.echo("It was asked to stop.", err=True)
    return _INTERRUPTED
