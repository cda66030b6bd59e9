"""Triggers: runs started by other programs with a secret."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qflow.cli.common import (
    AsJson,
    ContextName,
    Home,
    as_plain,
    call,
    do,
    moment_text,
    pages,
    print_json,
    print_list,
    stored_workflow,
    with_client,
)
from qflow.cli.inputs import Given, known_input, stored_inputs_json
from qflow.exceptions import AuthoringError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qflow.client.client import Client

app = typer.Typer(
    no_args_is_help=True, help="Triggers: runs started by other programs with a secret."
)

TriggerId = Annotated[str, typer.Argument(help="The trigger's id.", metavar="TRIGGER")]


@app.command("create")
def create(
    workflow: Annotated[str, typer.Argument(help="The workflow's name or id.")],
    given: Given = None,
    payload: Annotated[str, typer.Option(help="The input that receives the payload.")] = "",
    only: Annotated[
        str, typer.Option("--filter", help="CEL over `payload`; other calls start nothing.")
    ] = "",
    name: Annotated[str, typer.Option(help="The name; default: the workflow's.")] = "",
    alias: Annotated[str, typer.Option(help="Start the version of this alias.")] = "",
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Create a trigger. Prints its id and its secret, which is shown only once."""
    from qflow.orchestrator.v1 import trigger_service_pb2 as pb

    async def creating(client: Client) -> Any:
        stored = await stored_workflow(client, workflow)
        if payload and not alias:  # the alias may have other inputs
            known_input(stored, payload)
        request = pb.CreateTriggerRequest(
            workflow_id=stored.id,
            name=name or stored.name,
            workflow_alias=alias,
            input_json=stored_inputs_json(stored, given or []),
            payload_input=payload,
            filter=only,
            request_id=str(uuid.uuid4()),
        )
        return await call(client, "Trigger", "CreateTrigger", request)

    made = with_client(creating, context=context, home=home)
    print_json(as_plain(made)) if as_json else typer.echo(f"{made.trigger.id}\n{made.secret}")


@app.command("ls")
def list_(context: ContextName = "", home: Home = "", as_json: AsJson = False) -> None:
    """List the triggers, with their last call and the last error."""
    from qflow.orchestrator.v1 import trigger_service_pb2 as pb

    request = pb.ListTriggersRequest(page_size=200)
    there = with_client(
        lambda c: pages(c, "Trigger", "ListTriggers", request, "triggers"),
        context=context,
        home=home,
    )

    def row(each: Any) -> Sequence[str]:
        state = "paused" if each.paused else "on"
        why = f"{each.error_reason}: {each.error_message}" if each.error_reason else ""
        last = moment_text(each.fire_time)
        return (each.id, each.name, state, str(each.fired_count), last, why)

    titles = ("id", "name", "state", "fired", "last", "why not")
    print_list(there, titles, row, as_json=as_json, right=("fired",))


@app.command("fire")
def fire(
    trigger: TriggerId,
    payload: Annotated[str, typer.Argument(help="The payload, as JSON.", metavar="[JSON]")] = "",
    secret: Annotated[
        str, typer.Option(help="The secret.", envvar="QFLOW_TRIGGER_SECRET", show_envvar=True)
    ] = "",
    key: Annotated[str, typer.Option(help="An idempotency key.")] = "",
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Call a trigger as another program would; prints the run's id."""
    from qflow.orchestrator.v1 import trigger_service_pb2 as pb

    if not secret:
        raise AuthoringError("say with which secret: --secret, or QFLOW_TRIGGER_SECRET")
    request = pb.FireTriggerRequest(
        trigger_id=trigger, secret=secret, payload_json=payload, idempotency_key=key
    )
    request.send_time.GetCurrentTime()
    answer = do("Trigger", "FireTrigger", request, context=context, home=home, as_json=as_json)
    if not as_json:
        typer.echo(answer.execution_id or "filtered: nothing was started")


@app.command("pause")
def pause(
    trigger: TriggerId, context: ContextName = "", home: Home = "", as_json: AsJson = False
) -> None:
    """Pause a trigger."""
    _pause(trigger, paused=True, context=context, home=home, as_json=as_json)


@app.command("resume")
def resume(
    trigger: TriggerId, context: ContextName = "", home: Home = "", as_json: AsJson = False
) -> None:
    """Resume a trigger."""
    _pause(trigger, paused=False, context=context, home=home, as_json=as_json)


@app.command("secret")
def secret_(
    trigger: TriggerId, context: ContextName = "", home: Home = "", as_json: AsJson = False
) -> None:
    """Rotate the secret and print it. The previous one is invalid at once."""
    from qflow.orchestrator.v1 import trigger_service_pb2 as pb

    request = pb.RotateTriggerSecretRequest(trigger_id=trigger, request_id=str(uuid.uuid4()))
    answer = do(
        *("Trigger", "RotateTriggerSecret", request), context=context, home=home, as_json=as_json
    )
    if not as_json:
        typer.echo(answer.secret)


@app.command("rm")
def remove(
    trigger: TriggerId, context: ContextName = "", home: Home = "", as_json: AsJson = False
) -> None:
    """Delete a trigger; its runs stay."""
    from qflow.orchestrator.v1 import trigger_service_pb2 as pb

    request = pb.DeleteTriggerRequest(trigger_id=trigger, request_id=str(uuid.uuid4()))
    do("Trigger", "DeleteTrigger", request, context=context, home=home, as_json=as_json)


def _pause(trigger: str, *, paused: bool, context: str, home: str, as_json: bool) -> None:
    from qflow.orchestrator.v1 import trigger_service_pb2 as pb

    request = pb.UpdateTriggerRequest(
        trigger_id=trigger, paused=paused, request_id=str(uuid.uuid4())
    )
    request.update_mask.paths.append("paused")
    do("Trigger", "UpdateTrigger", request, context=context, home=home, as_json=as_json)
