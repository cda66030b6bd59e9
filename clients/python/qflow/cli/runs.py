"""Runs: started, watched, shown, steered."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qflow.cli.common import (
    AsJson,
    ContextName,
    Home,
    as_plain,
    console,
    inputs_of,
    one_found,
    print_json,
    stored_workflow,
    with_client,
)
from qflow.exceptions import AuthoringError, QflowError

if TYPE_CHECKING:
    from qflow.cli.show import LiveRun
    from qflow.client.client import Client
    from qflow.client.runs import Run
    from qflow.orchestrator.v1 import execution_pb2

_FAILED = 1
_START_S = 15.0  # how long Ctrl-C waits for the answer to a start that was sent
RunId = Annotated[str, typer.Argument(help="The run's id.", metavar="RUN")]


def run(
    workflow: Annotated[
        str, typer.Argument(help="A stored workflow's name or id, or FILE.py[:NAME].")
    ],
    given: Annotated[
        list[str] | None, typer.Argument(help="Inputs: NAME=VALUE.", metavar="[NAME=VALUE]…")
    ] = None,
    text: Annotated[
        str, typer.Option("--input", "-i", help="Inputs as a JSON object, or @FILE.")
    ] = "",
    alias: Annotated[str, typer.Option(help="The version that this alias stands for.")] = "",
    key: Annotated[str, typer.Option(help="A business key: one open run has it.")] = "",
    watch: Annotated[bool, typer.Option("--watch", "-w", help="See it run, live.")] = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Do not wait for it.")] = False,
    local: Annotated[
        bool, typer.Option("--local", help="Run a file here, without a server.")
    ] = False,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> int:
    """Start a run and wait for what it answers with; a file is stored first.

    Ctrl-C asks once what is to become of the run; it goes on unless you say otherwise.
    """
    inputs = inputs_of(given or [], text)
    if local:
        authored = one_found(workflow, "workflow")
        _print_output(authored.run_local(**_typed(authored, inputs)), authored.hints.get("return"))
        return 0

    async def running(client: Client) -> int:
        client = client.options(business_key=key) if key else client
        starting: Coroutine[Any, Any, Run[Any]]
        if workflow.partition(":")[0].endswith(".py"):
            authored = one_found(workflow, "workflow")
            inputs_read = _typed(authored, inputs)
            await client.push(authored)
            starting = client.start(authored, **inputs_read)
        else:
            stored = await stored_workflow(client, workflow)
            starting = client.start_stored(stored.id, inputs, alias=alias)
        started, interrupted = await _begun(starting)
        if interrupted:
            return await _asked(started)
        if detach:
            print_json({"id": started.id}) if as_json else typer.echo(started.id)
            return 0
        return await _until_over(client, started, live=watch, as_json=as_json)

    return with_client(running, context=context, home=home)


def watch(
    run_id: RunId, context: ContextName = "", home: Home = "", as_json: AsJson = False
) -> int:
    """See a run that goes on, live, and what it answers with."""

    async def watching(client: Client) -> int:
        return await _until_over(client, client.attach(run_id), live=True, as_json=as_json)

    return with_client(watching, context=context, home=home)


def list_(
    filter: Annotated[str, typer.Argument(help="Such as 'status = failed'.")] = "",
    limit: Annotated[int, typer.Option(help="How many at most.", min=1)] = 20,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """List runs, the newest first."""

    async def listing(client: Client) -> tuple[list[Any], dict[str, str]]:
        there: list[Any] = []
        async for each in client.runs(filter):
            there.append(each)
            if len(there) >= limit:
                break
        names: dict[str, str] = {}
        if not as_json:
            names = {each.id: each.name async for each in client.workflows()}
        return there, names

    there, names = with_client(listing, context=context, home=home)
    if as_json:
        print_json([as_plain(each) for each in there])
        return
    from rich.markup import escape

    from qflow.cli import show

    made = show.table("run", "workflow", "state", "nodes", "took", "started", right=("took",))
    for each in there:
        counts = each.node_counts
        made.add_row(
            each.id,
            escape(names.get(each.workflow_id, each.workflow_id or "(one node)")),
            show.styled(show.run_status(each)),
            f"{counts.completed}/{counts.total}",
            show.took(each.start_time, each.end_time),
            each.create_time.ToDatetime().strftime("%Y-%m-%d %H:%M:%S"),
        )
    console().print(made)


def show(
    run_id: RunId, context: ContextName = "", home: Home = "", as_json: AsJson = False
) -> None:
    """Show a run: its nodes, when each ran, what it gave or why it failed."""

    async def looking(client: Client) -> tuple[Any, list[Any]]:
        one = client.attach(run_id)
        return await one.get(), [each async for each in one.nodes()]

    one, nodes = with_client(looking, context=context, home=home)
    if as_json:
        print_json({"execution": as_plain(one), "nodes": [as_plain(each) for each in nodes]})
        return
    from qflow.cli import show as look

    out = console()
    took = look.took(one.start_time, one.end_time)
    out.print(f"{one.id}  {look.styled(look.run_status(one))}  {took}")
    out.print(look.timeline(nodes, now_ms=None))
    if one.HasField("error"):
        look.failure(out, one)
    elif one.output_json:
        out.print(one.output_json, markup=False)


def logs(
    run_id: RunId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it is over.")] = False,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Print what the nodes of a run wrote, in order; as JSON one document per line."""

    async def reading(client: Client) -> None:
        async for line in client.attach(run_id).logs(follow=follow):
            if as_json:
                typer.echo(json.dumps(as_plain(line), ensure_ascii=False))
            else:
                typer.echo(f"{line.node_id:<16} {line.text.rstrip()}")

    with_client(reading, context=context, home=home)


def explain(
    run_id: RunId, context: ContextName = "", home: Home = "", as_json: AsJson = False
) -> None:
    """Say why a run is not moving, or why it failed, and the shortest way out."""
    reasons = with_client(lambda c: c.attach(run_id).explain(), context=context, home=home)
    if as_json:
        print_json([as_plain(each) for each in reasons])
        return
    for each in reasons:
        typer.echo(each.message)
        if each.action:
            typer.echo(f"  → {each.action}")


def cancel(
    run_id: RunId, context: ContextName = "", home: Home = "", as_json: AsJson = False
) -> None:
    """Ask a run to stop; its processes are gone within seconds."""
    _steer(run_id, lambda one: one.cancel(), context=context, home=home, as_json=as_json)


def pause(
    run_id: RunId, context: ContextName = "", home: Home = "", as_json: AsJson = False
) -> None:
    """Let nothing new begin until the run is resumed."""
    _steer(run_id, lambda one: one.pause(), context=context, home=home, as_json=as_json)


def resume(
    run_id: RunId, context: ContextName = "", home: Home = "", as_json: AsJson = False
) -> None:
    """Go on after a pause."""
    _steer(run_id, lambda one: one.resume(), context=context, home=home, as_json=as_json)


def retry(
    run_id: RunId,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="See it run, live.")] = False,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> int:
    """Run a failed run again, as a new one that keeps what had completed."""

    async def again(client: Client) -> int:
        started, interrupted = await _begun(client.attach(run_id).retry())
        if interrupted:
            return await _asked(started)
        return await _until_over(client, started, live=watch, as_json=as_json)

    return with_client(again, context=context, home=home)


def rerun(
    run_id: RunId,
    places: Annotated[
        list[str] | None,
        typer.Option("--from", help="Run again from this place on; the failed ones else."),
    ] = None,
    newest: Annotated[
        bool, typer.Option("--newest", help="With the current versions of these nodes.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="See it run, live.")] = False,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> int:
    """Run again from some places on, as a new run that keeps the results before them."""

    async def again(client: Client) -> int:
        started, interrupted = await _begun(
            client.attach(run_id).rerun(places or [], newest=newest)
        )
        if interrupted:
            return await _asked(started)
        return await _until_over(client, started, live=watch, as_json=as_json)

    return with_client(again, context=context, home=home)


def signal(
    run_id: RunId,
    name: str,
    value: Annotated[str, typer.Argument(help="JSON, or else text.")] = "null",
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Send a value to what waits for a signal of this name."""
    sent = inputs_of([f"value={value}"], "")["value"]
    _steer(run_id, lambda one: one.signal(name, sent), context=context, home=home, as_json=as_json)


def approve(
    run_id: RunId,
    name: str,
    reject: Annotated[bool, typer.Option("--reject", help="Say no instead.")] = False,
    comment: Annotated[str, typer.Option(help="What to say with it.")] = "",
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Answer what waits for a person's approval."""
    _steer(
        run_id,
        lambda one: one.answer(name, approved=not reject, comment=comment),
        context=context,
        home=home,
        as_json=as_json,
    )


def _steer(
    run_id: str,
    does: Callable[[Run[Any]], Coroutine[Any, Any, object]],
    *,
    context: str,
    home: str,
    as_json: bool,
) -> None:
    """Do something to a run; as JSON it is printed as it stands after that."""

    async def steering(client: Client) -> Any:
        one = client.attach(run_id)
        await does(one)
        return await one.get() if as_json else None

    execution = with_client(steering, context=context, home=home)
    if as_json:
        print_json(as_plain(execution))


def _typed(authored: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Read inputs that came as JSON by the types of what was written in Python."""
    from qflow import values

    types = {each.name: each.type for each in authored.graph.inputs}
    unknown = sorted(set(inputs) - set(types))
    if unknown:
        there = ", ".join(types) or "none"
        raise AuthoringError(f"{authored.name} has no input {unknown[0]!r} (there: {there})")
    return {
        name: values.from_plain(
            value,
            types[name],
            name=f"input {name}",
            classes=values.classes_in(authored.hints.get(name)),
        )
        for name, value in inputs.items()
    }


async def _begun(starting: Coroutine[Any, Any, Run[Any]]) -> tuple[Run[Any], bool]:
    """Start a run; Ctrl-C meanwhile waits for its id, so that no run begins unseen."""
    task = asyncio.ensure_future(starting)
    try:
        return await asyncio.shield(task), False
    except asyncio.CancelledError:
        if task.cancelled():
            raise
        typer.echo("\nThe start is under way; waiting for the run's id …", err=True)
        try:
            return await asyncio.wait_for(task, _START_S), True
        except TimeoutError:
            typer.echo("No answer: the run may have begun, `qflow ls` shows it.", err=True)
            raise asyncio.CancelledError from None


async def _until_over(client: Client, started: Run[Any], *, live: bool, as_json: bool) -> int:
    """Wait for the end, live or not, and print what came of it."""
    from qflow.cli import show as look
    from qflow.orchestrator.v1 import execution_pb2

    waiting = asyncio.ensure_future(
        _seen(client, started) if live and not as_json else started.wait()
    )
    try:
        await asyncio.shield(waiting)
    except asyncio.CancelledError:  # Ctrl-C
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting  # what is drawn live stands still before anything is asked
        return await _asked(started)
    one = await started.get()
    if as_json:
        print_json(as_plain(one))
    elif one.status == execution_pb2.EXECUTION_STATUS_COMPLETED:
        typer.echo(one.output_json)
    else:
        look.failure(console(errors=True), one)
    return 0 if one.status == execution_pb2.EXECUTION_STATUS_COMPLETED else _FAILED


async def _seen(client: Client, started: Run[Any]) -> None:
    from qflow.cli import show as look

    out = console(errors=True)
    drawing: asyncio.Task[None] | None = None
    try:
        with look.LiveRun(out) as view:
            async for change in started.watch():
                view.update(change.execution, change.nodes)
                if drawing is None and out.is_terminal and change.execution.workflow_id:
                    # Beside the watch: what changes is not to wait for how it looks.
                    drawing = asyncio.create_task(_drawn(client, view, change.execution))
    finally:
        if drawing is not None:
            drawing.cancel()  # what is over needs no more than what is there


async def _drawn(client: Client, view: LiveRun, execution: execution_pb2.Execution) -> None:
    """Show the graph of a run; one that may not be read is done without."""
    with suppress(QflowError):
        stored = await client.workflow(execution.workflow_id, version=execution.workflow_version)
        view.draw_graph(stored.definition)


async def _asked(started: Run[Any]) -> int:
    """Ask once what is to become of a run whose watcher leaves: it is never lost."""
    typer.echo(f"\nThe run goes on: qflow watch {started.id}", err=True)
    if sys.stdin.isatty():
        try:
            answer = input("Cancel it? [y/N] ")  # noqa: ASYNC250  # nothing else goes on here
        except (EOFError, KeyboardInterrupt):
            answer = ""
        if answer.strip().lower() in {"y", "yes"}:
            await started.cancel()
            typer.echo("It was asked to stop.", err=True)
    return 130


def _print_output(value: Any, hint: Any) -> None:
    from qflow.authoring.annotations import type_of
    from qflow.values import Codec, classes_in, dump

    codec = Codec(type_of(hint), classes_in(hint), is_local=True)
    typer.echo(dump(codec.to_plain(value, name="the result")))
