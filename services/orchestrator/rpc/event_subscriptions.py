"""EventSubscriptionService."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import grpc
from qflow.orchestrator.v1 import event_pb2
from qflow.orchestrator.v1 import event_subscription_service_pb2 as pb
from qflow.orchestrator.v1 import event_subscription_service_pb2_grpc as pb_grpc

from services.kit.caller import current_caller
from services.kit.idempotency import Replayed
from services.kit.rpc import codec
from services.kit.rpc.pages import Pages
from services.kit.rpc.request_key import answered, request_key
from services.orchestrator.storage.event_subscriptions import Delivery, Subscription
from services.orchestrator.usecases import event_subscriptions as usecases
from services.orchestrator.usecases.event_subscriptions import Given, Subscribing

Context = grpc.aio.ServicerContext[Any, Any]

# In the order of the enum's numbers, from 1.
_TYPES: Final = (
    *("execution.started", "execution.completed", "execution.failed", "execution.cancelled"),
    *("execution.waiting", "test"),
)
_NUMBERS: Final = {
    name: event_pb2.EventType.Value(f"EVENT_TYPE_{name.replace('.', '_').upper()}")
    for name in _TYPES
}
_STATES: Final = ("pending", "delivered", "dead")


class EventSubscriptionServicer(pb_grpc.EventSubscriptionServiceServicer):
    """Decodes, calls one use case, encodes."""

    def __init__(self, deps: Subscribing) -> None:
        self._deps = deps
        self._pool = deps.pool

    async def CreateEventSubscription(
        self, request: pb.CreateEventSubscriptionRequest, context: Context
    ) -> pb.CreateEventSubscriptionResponse:
        """See the contract."""
        given = _given(request)
        key = request_key(request, "orchestrator.CreateEventSubscription", _created)
        answer = await usecases.create(self._deps, current_caller(), given, key=key)
        if isinstance(answer, Replayed):
            return pb.CreateEventSubscriptionResponse.FromString(answer.response)
        response = _created(answer[0])
        response.secret = answer[1]
        return response

    async def GetEventSubscription(
        self, request: pb.GetEventSubscriptionRequest, context: Context
    ) -> pb.GetEventSubscriptionResponse:
        """See the contract."""
        found = await usecases.get(self._pool, current_caller(), _id(request))
        return pb.GetEventSubscriptionResponse(subscription=_subscription(found))

    async def ListEventSubscriptions(
        self, request: pb.ListEventSubscriptionsRequest, context: Context
    ) -> pb.ListEventSubscriptionsResponse:
        """See the contract."""
        pages = Pages("orchestrator.ListEventSubscriptions", request)
        found = await usecases.list_subscriptions(
            self._pool, current_caller(), before=pages.after_moment(), limit=pages.limit
        )
        shown, token = await pages.cut(
            found, encode=_subscription, key=lambda each: (each.created_at, each.id)
        )
        return pb.ListEventSubscriptionsResponse(subscriptions=shown, next_page_token=token)

    async def UpdateEventSubscription(
        self, request: pb.UpdateEventSubscriptionRequest, context: Context
    ) -> pb.UpdateEventSubscriptionResponse:
        """See the contract."""
        answer = await usecases.update(
            self._deps,
            current_caller(),
            _id(request),
            _given(request, paused=request.paused, pause_reason=request.pause_reason),
            mask=list(request.update_mask.paths),
            etag=request.etag,
            key=request_key(request, "orchestrator.UpdateEventSubscription", _updated),
        )
        return answered(pb.UpdateEventSubscriptionResponse, answer, _updated)

    async def DeleteEventSubscription(
        self, request: pb.DeleteEventSubscriptionRequest, context: Context
    ) -> pb.DeleteEventSubscriptionResponse:
        """See the contract."""
        answer = await usecases.delete(
            self._pool,
            current_caller(),
            _id(request),
            etag=request.etag,
            key=request_key(request, "orchestrator.DeleteEventSubscription", _deleted),
        )
        return answered(pb.DeleteEventSubscriptionResponse, answer, _deleted)

    async def RotateEventSecret(
        self, request: pb.RotateEventSecretRequest, context: Context
    ) -> pb.RotateEventSecretResponse:
        """See the contract."""
        answer = await usecases.rotate(
            self._deps,
            current_caller(),
            _id(request),
            etag=request.etag,
            key=request_key(request, "orchestrator.RotateEventSecret", _rotated),
        )
        if isinstance(answer, Replayed):
            return pb.RotateEventSecretResponse.FromString(answer.response)
        response = _rotated(answer[0])
        response.secret = answer[1]
        return response

    async def TestEventSubscription(
        self, request: pb.TestEventSubscriptionRequest, context: Context
    ) -> pb.TestEventSubscriptionResponse:
        """See the contract."""
        key = request_key(request, "orchestrator.TestEventSubscription", _tested)
        answer = await usecases.send_test(self._pool, current_caller(), _id(request), key=key)
        return answered(pb.TestEventSubscriptionResponse, answer, _tested)

    async def ListEventDeliveries(
        self, request: pb.ListEventDeliveriesRequest, context: Context
    ) -> pb.ListEventDeliveriesResponse:
        """See the contract."""
        subscription_id = _id(request)
        states = sorted({_STATES[number - 1] for number in request.states})
        pages = Pages("orchestrator.ListEventDeliveries", request, subscription_id, *states)
        found = await usecases.list_deliveries(
            self._pool,
            current_caller(),
            subscription_id,
            states=states,
            before=pages.after_moment(),
            limit=pages.limit,
        )
        shown, token = await pages.cut(
            found, encode=_delivery, key=lambda each: (each.created_at, each.id)
        )
        return pb.ListEventDeliveriesResponse(deliveries=shown, next_page_token=token)

    async def ResendEventDelivery(
        self, request: pb.ResendEventDeliveryRequest, context: Context
    ) -> pb.ResendEventDeliveryResponse:
        """See the contract."""
        delivery_id = codec.uuid_from(request.delivery_id, field="delivery_id")
        key = request_key(request, "orchestrator.ResendEventDelivery", _resent)
        answer = await usecases.resend(self._pool, current_caller(), delivery_id, key=key)
        return answered(pb.ResendEventDeliveryResponse, answer, _resent)


def _id(request: Any) -> Any:
    return codec.uuid_from(request.subscription_id, field="subscription_id")


def _given(request: Any, *, paused: bool = False, pause_reason: str = "") -> Given:
    return Given(
        name=request.name,
        url=request.url,
        event_types=_types(request.event_types),
        workflow_id=codec.uuid_or_none(request.workflow_id, field="workflow_id"),
        paused=paused,
        pause_reason=pause_reason,
    )


def _types(numbers: Sequence[int]) -> list[str]:
    return sorted({_TYPES[number - 1] for number in numbers})


def _subscription(subscription: Subscription) -> event_pb2.EventSubscription:
    return event_pb2.EventSubscription(
        id=str(subscription.id),
        name=subscription.name,
        url=subscription.url,
        event_types=[_NUMBERS[each] for each in subscription.event_types],
        workflow_id=str(subscription.workflow_id or ""),
        paused=subscription.paused_at is not None,
        pause_reason=subscription.pause_reason,
        etag=subscription.etag,
        created_by=str(subscription.created_by),
        create_time=codec.timestamp(subscription.created_at),
        update_time=codec.timestamp(subscription.updated_at),
    )


def _delivery(delivery: Delivery) -> event_pb2.EventDelivery:
    return event_pb2.EventDelivery(
        id=str(delivery.id),
        subscription_id=str(delivery.subscription_id),
        event_id=str(delivery.event_id),
        event_type=_NUMBERS[delivery.event_type],
        execution_id=str(delivery.execution_id or ""),
        body_json=delivery.body,
        state=event_pb2.EventDeliveryState.Value(f"EVENT_DELIVERY_STATE_{delivery.state.upper()}"),
        attempt_count=delivery.attempts,
        status_code=delivery.status_code or 0,
        error=delivery.error,
        due_time=codec.timestamp(delivery.due_at),
        create_time=codec.timestamp(delivery.created_at),
        update_time=codec.timestamp(delivery.updated_at),
    )


def _created(subscription: Subscription) -> pb.CreateEventSubscriptionResponse:
    return pb.CreateEventSubscriptionResponse(subscription=_subscription(subscription))


def _updated(subscription: Subscription) -> pb.UpdateEventSubscriptionResponse:
    return pb.UpdateEventSubscriptionResponse(subscription=_subscription(subscription))


def _rotated(subscription: Subscription) -> pb.RotateEventSecretResponse:
    return pb.RotateEventSecretResponse(subscription=_subscription(subscription))


def _deleted(_subscription: Subscription) -> pb.DeleteEventSubscriptionResponse:
    return pb.DeleteEventSubscriptionResponse()


def _tested(delivery: Delivery) -> pb.TestEventSubscriptionResponse:
    return pb.TestEventSubscriptionResponse(delivery=_delivery(delivery))


def _resent(delivery: Delivery) -> pb.ResendEventDeliveryResponse:
    return pb.ResendEventDeliveryResponse(delivery=_delivery(delivery))
