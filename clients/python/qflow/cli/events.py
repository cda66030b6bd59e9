"""Event subscriptions: webhooks about runs."""

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
    do,
    moment_text,
    pages,
    print_json,
    print_list,
    stored_workflow,
    with_client,
)
from qflow.exceptions import AuthoringError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qflow.client.client import Client

app = typer.Typer(no_args_is_help=True, help="Event subscriptions: webhooks about runs.")

SubscriptionId = Annotated[
    str, typer.Argument(help="The subscription's id.", metavar="SUBSCRIPTION")
]

_SERVICE: Final = "EventSubscription"
_EVENTS: Final = ("started", "completed", "failed", "cancelled", "waiting")


@app.command("create")
def create(
    url: Annotated[str, typer.Argument(help="The URL to post to: https://…")],
    on: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(_EVENTS)}; may be repeated.")
    ] = None,
    workflow: Annotated[str, typer.Option(help="Only runs of this workflow; default: all.")] = "",
    name: Annotated[str, typer.Option(help="The name; default: the URL.")] = "",
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Subscribe a URL. Prints the id and the signing secret, which is shown only once."""
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

    def row(each: Any) -> Sequence[str]:
        kinds = [_short(event_pb2.EventType.Name(kind)) for kind in each.event_types]
        paused = f"paused: {each.pause_reason}" if each.pause_reason else "paused"
        return (each.id, each.name, ", ".join(kinds), each.url, paused if each.paused else "on")

    print_list(there, ("id", "name", "on", "where", "state"), row, as_json=as_json)


@app.command("deliveries")
def deliveries(
    subscription: SubscriptionId,
    limit: Annotated[int, typer.Option(help="The maximum number.", min=1, max=200)] = 20,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Show deliveries with the receiver's last answer, newest first."""
    from qflow.orchestrator.v1 import event_pb2
    from qflow.orchestrator.v1 import event_subscription_service_pb2 as pb

    request = pb.ListEventDeliveriesRequest(subscription_id=subscription, page_size=limit)

    async def looking(client: Client) -> list[Any]:
        return list((await call(client, _SERVICE, "ListEventDeliveries", request)).deliveries)

    there = with_client(looking, context=context, home=home)

    def row(each: Any) -> Sequence[str]:
        kind = _short(event_pb2.EventType.Name(each.event_type))
        state = _short(event_pb2.EventDeliveryState.Name(each.state))
        due = moment_text(each.due_time) if state == "pending" else ""
        return (
            *(each.id, kind, each.execution_id, state, str(each.attempt_count), due, each.error),
        )

    titles = ("id", "event", "run", "state", "tries", "next", "why")
    print_list(there, titles, row, as_json=as_json, right=("tries",))


@app.command("test")
def send_test(
    subscription: SubscriptionId,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Send a test event; `deliveries` shows the result."""
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
    """Restart a delivery with its first attempt."""
    from qflow.orchestrator.v1 import event_subscription_service_pb2 as pb

    request = pb.ResendEventDeliveryRequest(delivery_id=delivery, request_id=str(uuid.uuid4()))
    do(_SERVICE, "ResendEventDelivery", request, context=context, home=home, as_json=as_json)


@app.command("pause")
def pause(
    subscription: SubscriptionId,
    reason: Annotated[str, typer.Option(help="A reason, shown to others.")] = "",
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Pause a subscription; events of that time are not delivered."""
    said = {"paused": True, "pause_reason": reason}
    _update(subscription, said, context=context, home=home, as_json=as_json)


@app.command("resume")
def resume(
    subscription: SubscriptionId,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Resume after a pause."""
    _update(subscription, {"paused": False}, context=context, home=home, as_json=as_json)


@app.command("secret")
def secret(
    subscription: SubscriptionId,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Rotate the secret and print it. The previous one also signs for a day."""
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
    """Delete a subscription and its pending deliveries."""
    from qflow.orchestrator.v1 import event_subscription_service_pb2 as pb

    request = pb.DeleteEventSubscriptionRequest(
        subscription_id=subscription, request_id=str(uuid.uuid4())
    )
    do(_SERVICE, "DeleteEventSubscription", request, context=context, home=home, as_json=as_json)


def _update(
    subscription: str, said: dict[str, Any], *, context: str, home: str, as_json: bool
) -> None:
    from qflow.orchestrator.v1 import event_subscription_service_pb2 as pb

    request = pb.UpdateEventSubscriptionRequest(
        subscription_id=subscription, request_id=str(uuid.uuid4()), **said
    )
    request.update_mask.paths.extend(said)
    do(_SERVICE, "UpdateEventSubscription", request, context=context, home=home, as_json=as_json)


def _short(name: str) -> str:
    return name.rpartition("_")[2].lower()
