"""Runs: start, watch, show, control."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qflow.cli.commands import in_shell
from qflow.cli.common import (
    AsJson,
    ContextName,
    Home,
    RunId,
    as_plain,
    console,
    one_found,
    print_json,
    print_list,
    stored_workflow,
    with_client,
)
from qflow.cli.inputs import Given, InputText, inputs_of, start_options, stored_inputs, typed_inputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.text import Text

    from qflow.client.client import Client
    from qflow.client.runs import Run


def run(
    workflow: Annotated[
        str, typer.Argument(help="A stored workflow's name or id, or FILE.py[:NAME].")
    ],
    given: Given = None,
    text: InputText = "",
    alias: Annotated[str, typer.Option(help="Start the version of this alias.")] = "",
    key: Annotated[str, typer.Option(help="A business key, held by at most one open run.")] = "",
    on_conflict: Annotated[
        str,
        typer.Option(
            help="If a run with the key is open: fail, use_existing, cancel_existing.",
            metavar="WORD",
        ),
    ] = "",
    on_reuse: Annotated[
        str,
        typer.Option(
            help="If a run with the key has ended: allow, allow_if_failed, reject.", metavar="WORD"
        ),
    ] = "",
    budget: Annotated[
        list[str] | None,
        typer.Option(help="A budget, such as cpu_seconds=60.", metavar="NAME=AMOUNT"),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="A label; may be repeated.", metavar="KEY=VALUE")
    ] = None,
    priority: Annotated[
        int, typer.Option(help="Priority among your tenant's runs.", min=-100, max=100)
    ] = 0,
    timeout: Annotated[str, typer.Option(help="The timeout, such as 30m.")] = "",
    at: Annotated[str, typer.Option(help="The start time: 2026-01-31T12:00, or +30m.")] = "",
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Watch it live.")] = False,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Do not wait for the end.")
    ] = False,
    local: Annotated[
        bool, typer.Option("--local", help="Run a file here, without a server.")
    ] = False,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> int:
    """Start a run and wait for its result; a file is stored first.

    Ctrl-C asks once what is to become of the run; it goes on unless you say otherwise.
    """
    given = given or []
    options = start_options(
        key, on_conflict, on_reuse, budget or [], label or [], priority, timeout, at
    )
    inputs_of(given, text)  # report syntax errors before any call
    if local:
        authored = one_found(workflow, "workflow")
        output = authored.run_local(**_typed(authored, given, text))
        _print_output(output, authored.hints.get("return"))
        return 0

    authored, inputs = None, dict[str, Any]()
    if workflow.partition(":")[0].endswith(".py"):
        authored = one_found(workflow, "workflow")
    view = None
    if watch and not as_json and not detach:
        from qflow.cli.show import live

        view = live(authored)

    async def running(client: Client) -> int:
        from qflow.cli import watching

        client = client.options(**options)
        starting: Coroutine[Any, Any, Run[Any]]
        if authored is not None:
            await client.push(authored)
            starting = client.start(authored, **inputs)
        else:
            stored = await stored_workflow(client, workflow)
            read = stored_inputs(stored, given, text)
            starting = client.start_stored(stored.id, read, alias=alias)
        started, interrupted = await watching.begun(starting, view)
        if interrupted:
            return await watching.asked(started)
        if detach:
            print_json({"id": started.id}) if as_json else typer.echo(started.id)
            return 0
        return await watching.until_over(client, started, view, as_json=as_json)

    # The picture first; the imports for type checks and calls follow.
    with view or nullcontext():
        if authored is not None:
            inputs = _typed(authored, given, text)
        return with_client(running, context=context, home=home)


def watch(
    run_id: RunId, context: ContextName = "", home: Home = "", as_json: AsJson = False
) -> int:
    """Watch a run live, and print its result."""
    from qflow.cli import watching
    from qflow.cli.show import live

    async def seeing(client: Client) -> int:
        view = None if as_json else live()
        return await watching.until_over(client, client.attach(run_id), view, as_json=as_json)

    return with_client(seeing, context=context, home=home)


def list_(
    filter: Annotated[str, typer.Argument(help="A filter, such as 'status = failed'.")] = "",
    limit: Annotated[int, typer.Option(help="The maximum number.", min=1)] = 20,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """List runs, newest first."""

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

    def row(each: Any) -> Sequence[str | Text]:
        from qflow.cli import show

        completed, total = show.progress(each.node_counts)
        return (
            each.id,
            names.get(each.workflow_id, each.workflow_id or "(one node)"),
            show.in_colour(show.run_status(each)),
            f"{completed}/{total}",
            show.took(each.start_time, each.end_time),
            each.create_time.ToDatetime().strftime("%Y-%m-%d %H:%M:%S"),
        )

    titles = ("run", "workflow", "state", "nodes", "took", "started")
    print_list(there, titles, row, as_json=as_json, right=("took",))


def show(
    run_id: RunId, context: ContextName = "", home: Home = "", as_json: AsJson = False
) -> None:
    """Show a run: its nodes, their times, and its result or failure."""

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
    look.put_aside(out, nodes)
    if one.HasField("error"):
        look.failure(out, one)
    elif one.output_json:
        out.print(one.output_json, markup=False)


def logs(
    run_id: RunId,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Continue to the end of the run.")
    ] = False,
    nested: Annotated[bool, typer.Option("--nested", help="Include sub-workflows.")] = False,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Print the logs of a run's nodes. With JSON, one document per line."""

    async def reading(client: Client, run: str = run_id, within: str = "") -> None:
        async for line in client.attach(run).logs(follow=follow):
            if as_json:
                typer.echo(json.dumps(as_plain(line), ensure_ascii=False))
            else:
                typer.echo(f"{within + line.node_id:<16} {line.text.rstrip()}")
        if nested:
            async for node in client.attach(run).nodes():
                if node.child_execution_id:
                    await reading(client, node.child_execution_id, f"{within}{node.node_id}/")

    with_client(reading, context=context, home=home)


def explain(
    run_id: RunId, context: ContextName = "", home: Home = "", as_json: AsJson = False
) -> None:
    """Explain why a run is not moving or failed, and what to do."""
    reasons = with_client(lambda c: c.attach(run_id).explain(), context=context, home=home)
    if as_json:
        print_json([as_plain(each) for each in reasons])
        return
    if not reasons:
        typer.echo("nothing is in its way", err=True)
    for each in reasons:
        typer.echo(each.message)
        if each.HasField("time"):
            typer.echo(f"  time: {each.time.ToJsonString()}")
        if each.action:
            typer.echo(f"  → {in_shell(each.action)}")


def cancel(
    run_id: RunId, context: ContextName = "", home: Home = "", as_json: AsJson = False
) -> None:
    """Cancel a run; its processes end within seconds."""
    _steer(run_id, lambda one: one.cancel(), context=context, home=home, as_json=as_json)


def pause(
    run_id: RunId,
    node: Annotated[str, typer.Option(help="Only this node, which must not have begun.")] = "",
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Pause a run, or a node of it: nothing new begins."""
    _steer(run_id, lambda one: one.pause(node), context=context, home=home, as_json=as_json)


def resume(
    run_id: RunId,
    node: Annotated[str, typer.Option(help="Only this node, if it was paused itself.")] = "",
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Resume a run, or a node of it."""
    _steer(run_id, lambda one: one.resume(node), context=context, home=home, as_json=as_json)


def skip(
    run_id: RunId,
    node: Annotated[str, typer.Argument(help="The node's id in the graph.", metavar="NODE")],
    given: Annotated[
        list[str] | None,
        typer.Argument(help="All its outputs: NAME=VALUE.", metavar="[NAME=VALUE]…"),
    ] = None,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Skip a node, or complete it with given outputs. It must not be running."""
    outputs = inputs_of(given, "") if given else None
    _steer(run_id, lambda one: one.skip(node, outputs), context=context, home=home, as_json=as_json)


def signal(
    run_id: RunId,
    name: str,
    value: Annotated[str, typer.Argument(help="JSON, or else text.")] = "null",
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Send a signal."""
    sent = inputs_of([f"value={value}"], "")["value"]
    _steer(run_id, lambda one: one.signal(name, sent), context=context, home=home, as_json=as_json)


def approve(
    run_id: RunId,
    name: str,
    reject: Annotated[bool, typer.Option("--reject", help="Reject instead of approving.")] = False,
    comment: Annotated[str, typer.Option(help="A comment.")] = "",
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Answer an approval."""
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
    """Call a method of a run; with JSON output, print the run afterwards."""

    async def steering(client: Client) -> Any:
        one = client.attach(run_id)
        await does(one)
        return await one.get() if as_json else None

    execution = with_client(steering, context=context, home=home)
    if as_json:
        print_json(as_plain(execution))


def _typed(authored: Any, given: list[str], text: str) -> dict[str, Any]:
    """Decode JSON inputs by the types of a workflow written in Python."""
    types = {each.name: each.type for each in authored.graph.inputs}
    return typed_inputs(authored.name, types, authored.hints, given=given, text=text)


def _print_output(value: Any, hint: Any) -> None:
    from qflow.authoring.annotations import type_of
    from qflow.values import Codec, classes_in, dump

    codec = Codec(type_of(hint), classes_in(hint), is_local=True)
    typer.echo(dump(codec.to_plain(value, name="the result")))
