"""Events: what becomes of runs, told to addresses of yours."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from qflow.cli.common import (
    AsJson,
    ContextName,
    Home,
    as_plain,
    call,
    console,
    do,
    moment_text,
    pages,
    print_json,
    stored_workflow,
    with_client,
)
from qflow.exceptions import AuthoringError

if TYPE_CHECKING:
    from qflow.client.client import Client

app = typer.Typer(
    no_args_is_help=True, help="Events: what becomes of runs, told to addresses of yours."
)

SubscriptionId = Annotated[
    str, typer.Argument(help="The subscription's id.", metavar="SUBSCRIPTION")
]

_SERVICE: Final = "EventSubscription"
_EVENTS: Final = ("started", "completed", "failed", "cancelled", "waiting")


@app.command("create")
def create(
    url: Annotated[str, typer.Argument(help="Where to post: https://…")],
    on: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(_EVENTS)}; may be said again.")
    ] = None,
    workflow: Annotated[str, typer.Option(help="Of the runs of this workflow; of all else.")] = "",
    name: Annotated[str, typer.Option(help="What to call it; its address else.")] = "",
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Subscribe an address. Prints the id, and the secret that signs, which is shown this once."""
    from qflow.orchestrator.v1 import event_pb2
    from qflow.orchestrator.v1 import event_subscription_service_pb2 as pb

    wanted = on or ["completed", "failed", "cancelled"]
    if unknown := [each for each in wanted if each not in _EVENTS]:
        raise AuthoringError(f"--on is one of {', '.join(_EVENTS)}, not {unknown[0]!r}")

    async def creating(client: Client) -> Any:
        request = pb.CreateEventSubscriptionRequest(
            name=name or url[:255],
            url=url,
            event_types=[
                event_pb2.EventType.Value(f"EVENT_TYPE_EXECUTION_{each.upper()}") for each in wanted
            ],
            workflow_id=(await stored_workflow(client, workflow)).id if workflow else "",
            request_id=str(uuid.uuid4()),
        )
        return await call(client, _SERVICE, "CreateEventSubscription", request)

    made = with_client(creating, context=context, home=home)
    if as_json:
        print_json(as_plain(made))
    else:
        typer.echo(f"{made.subscription.id}\n{made.secret}")


@app.command("ls")
def list_(context: ContextName = "", home: Home = "", as_json: AsJson = False) -> None:
    """List the subscriptions."""
    from qflow.orchestrator.v1 import event_pb2
    from qflow.orchestrator.v1 import event_subscription_service_pb2 as pb

    request = pb.ListEventSubscriptionsRequest(page_size=200)
    there = with_client(
        lambda c: pages(c, _SERVICE, "ListEventSubscriptions", request, "subscriptions"),
        context=context,
        home=home,
    )
    if as_json:
        print_json([as_plain(each) for each in there])
        return
    from qflow.cli import show

    made = show.table("id", "name", "on", "where", "state")
    for each in there:
        kinds = [_short(event_pb2.EventType.Name(kind)) for kind in each.event_types]
        paused = f"paused: {each.pause_reason}" if each.pause_reason else "paused"
        made.add_row(
            each.id, each.name, ", ".join(kinds), each.url, paused if each.paused else "on"
        )
    console().print(made, markup=False)


@app.command("deliveries")
def deliveries(
    subscription: SubscriptionId,
    limit: Annotated[int, typer.Option(help="How many at most.", min=1, max=200)] = 20,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Show what was told, the newest first, with the last answer of the receiver."""
    from qflow.orchestrator.v1 import event_pb2
    from qflow.orchestrator.v1 import event_subscription_service_pb2 as pb

    request = pb.ListEventDeliveriesRequest(subscription_id=subscription, page_size=limit)

    async def looking(client: Client) -> list[Any]:
        return list((await call(client, _SERVICE, "ListEventDeliveries", request)).deliveries)

    there = with_client(looking, context=context, home=home)
    if as_json:
        print_json([as_plain(each) for each in there])
        return
    from qflow.cli import show

    made = show.table("id", "event", "run", "state", "tries", "next", "why", right=("tries",))
    for each in there:
        state = _short(event_pb2.EventDeliveryState.Name(each.state))
        made.add_row(
            *(each.id, _short(event_pb2.EventType.Name(each.event_type)), each.execution_id),
            *(state, str(each.attempt_count)),
            moment_text(each.due_time) if state == "pending" else "",
            each.error,
        )
    console().print(made, markup=False)


@app.command("test")
def send_test(
    subscription: SubscriptionId,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Send an event that says nothing; `deliveries` shows what came of it."""
    from qflow.orchestrator.v1 import event_subscription_service_pb2 as pb

    request = pb.TestEventSubscriptionRequest(
        subscription_id=subscription, request_id=str(uuid.uuid4())
    )
    answer = do(
        *(_SERVICE, "TestEventSubscription", request), context=context, home=home, as_json=as_json
    )
    if not as_json:
        typer.echo(answer.delivery.id)


@app.command("resend")
def resend(
    delivery: Annotated[str, typer.Argument(help="The delivery's id.", metavar="DELIVERY")],
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Try a delivery anew, from the first of its tries on."""
    from qflow.orchestrator.v1 import event_subscription_service_pb2 as pb

    request = pb.ResendEventDeliveryRequest(delivery_id=delivery, request_id=str(uuid.uuid4()))
    do(_SERVICE, "ResendEventDelivery", request, context=context, home=home, as_json=as_json)


@app.command("pause")
def pause(
    subscription: SubscriptionId,
    reason: Annotated[str, typer.Option(help="Why, for others.")] = "",
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Tell nothing until it is resumed; what happens meanwhile is not told."""
    from qflow.orchestrator.v1 import event_subscription_service_pb2 as pb

    request = pb.UpdateEventSubscriptionRequest(
        subscription_id=subscription,
        paused=True,
        pause_reason=reason,
        request_id=str(uuid.uuid4()),
    )
    request.update_mask.paths.extend(("paused", "pause_reason"))
    do(_SERVICE, "UpdateEventSubscription", request, context=context, home=home, as_json=as_json)


@app.command("resume")
def resume(
    subscription: SubscriptionId,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Go on after a pause."""
    from qflow.orchestrator.v1 import event_subscription_service_pb2 as pb

    request = pb.UpdateEventSubscriptionRequest(
        subscription_id=subscription, paused=False, request_id=str(uuid.uuid4())
    )
    request.update_mask.paths.append("paused")
    do(_SERVICE, "UpdateEventSubscription", request, context=context, home=home, as_json=as_json)


@app.command("secret")
def secret(
    subscription: SubscriptionId,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Sign by a new secret, and print that; the one before signs as well for a day."""
    from qflow.orchestrator.v1 import event_subscription_service_pb2 as pb

    request = pb.RotateEventSecretRequest(
        subscription_id=subscription, request_id=str(uuid.uuid4())
    )
    answer = do(
        *(_SERVICE, "RotateEventSecret", request), context=context, home=home, as_json=as_json
    )
    if not as_json:
        typer.echo(answer.secret)


@app.command("rm")
def remove(
    subscription: SubscriptionId,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Delete a subscription, with what was to be told by it."""
    from qflow.orchestrator.v1 import event_subscription_service_pb2 as pb

    request = pb.DeleteEventSubscriptionRequest(
        subscription_id=subscription, request_id=str(uuid.uuid4())
    )
    do(_SERVICE, "DeleteEventSubscription", request, context=context, home=home, as_json=as_json)


def _short(name: str) -> str:
    return name.rpartition("_")[2].lower()
