"""Commands that make new runs of earlier ones: retry, rerun, fork."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qflow.cli.common import AsJson, ContextName, Home, RunId, with_client
from qflow.cli.inputs import changed_inputs_json

if TYPE_CHECKING:
    from qflow.client.client import Client
    from qflow.client.runs import Run

Watch = Annotated[bool, typer.Option("--watch", "-w", help="Watch it live.")]


def retry(
    run_id: RunId,
    quarantined: Annotated[
        bool, typer.Option("--quarantined", help="Only quarantined elements of maps.")
    ] = False,
    watch: Watch = False,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> int:
    """Run everything again, as a new run. `rerun` keeps completed results."""

    def again(client: Client) -> Coroutine[Any, Any, Run[Any]]:
        parent = client.attach(run_id)
        return parent.retry_quarantined() if quarantined else parent.retry()

    return _begin(again, watch=watch, context=context, home=home, as_json=as_json)


def rerun(
    run_id: RunId,
    places: Annotated[
        list[str] | None,
        typer.Option("--from", help="Rerun from this node; default: the failed ones."),
    ] = None,
    newest: Annotated[
        bool, typer.Option("--newest", help="Use the current versions of these nodes.")
    ] = False,
    watch: Watch = False,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> int:
    """Rerun from some nodes, as a new run. It keeps the results before them."""

    def again(client: Client) -> Coroutine[Any, Any, Run[Any]]:
        return client.attach(run_id).rerun(places or [], newest=newest)

    return _begin(again, watch=watch, context=context, home=home, as_json=as_json)


def fork(
    run_id: RunId,
    given: Annotated[
        list[str] | None,
        typer.Argument(help="Changed inputs: NAME=VALUE.", metavar="[NAME=VALUE]…"),
    ] = None,
    places: Annotated[
        list[str] | None, typer.Option("--from", help="Rerun from this node, too.")
    ] = None,
    watch: Watch = False,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> int:
    """Fork a run, which may still be open. The new run keeps unchanged results."""

    async def again(client: Client) -> Run[Any]:
        parent = client.attach(run_id)
        changed = await _changed_inputs(client, parent, given) if given else None
        return await parent.fork(places or [], input_json=changed)

    return _begin(again, watch=watch, context=context, home=home, as_json=as_json)


async def _changed_inputs(client: Client, parent: Run[Any], given: list[str]) -> str:
    """Return all inputs of a run as JSON, with changes."""
    execution = await parent.get()
    stored = await client.workflow(execution.workflow_id, version=execution.workflow_version)
    return changed_inputs_json(stored, execution.input_json, given)


def _begin(
    again: Callable[[Client], Coroutine[Any, Any, Run[Any]]],
    *,
    watch: bool,
    context: str,
    home: str,
    as_json: bool,
) -> int:
    """Make a new run of another, and wait for it."""
    from qflow.cli import watching
    from qflow.cli.show import live

    async def beginning(client: Client) -> int:
        started, interrupted = await watching.begun(again(client))
        if interrupted:
            return await watching.asked(started)
        view = live() if watch and not as_json else None
        return await watching.until_over(client, started, view, as_json=as_json)

    return with_client(beginning, context=context, home=home)
