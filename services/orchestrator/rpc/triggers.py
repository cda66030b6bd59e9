"""TriggerService."""

from __future__ import annotations

from typing import Any

import grpc
from qflow.orchestrator.v1 import trigger_pb2
from qflow.orchestrator.v1 import trigger_service_pb2 as pb
from qflow.orchestrator.v1 import trigger_service_pb2_grpc as pb_grpc

from services.kit.caller import current_caller
from services.kit.idempotency import Replayed
from services.kit.rpc import codec
from services.kit.rpc.pages import Pages
from services.kit.rpc.request_key import answered, request_key
from services.orchestrator.rpc.schedule_codec import moment_from
from services.orchestrator.storage.triggers import Trigger
from services.orchestrator.usecases import trigger_calls, triggers
from services.orchestrator.usecases.start import Starter
from services.orchestrator.usecases.triggers import Given

Context = grpc.aio.ServicerContext[Any, Any]


class TriggerServicer(pb_grpc.TriggerServiceServicer):
    """Decodes, calls one use case, encodes."""

    def __init__(self, starter: Starter) -> None:
        self._starter = starter
        self._pool = starter.api_pool

    async def CreateTrigger(
        self, request: pb.CreateTriggerRequest, context: Context
    ) -> pb.CreateTriggerResponse:
        """See the contract."""
        answer = await triggers.create(
            self._starter,
            current_caller(),
            codec.uuid_from(request.workflow_id, field="workflow_id"),
            _given(request),
            key=request_key(request, "orchestrator.CreateTrigger", _created),
        )
        if isinstance(answer, Replayed):
            return pb.CreateTriggerResponse.FromString(answer.response)
        response = _created(answer[0])
        response.secret = answer[1]
        return response

    async def GetTrigger(
        self, request: pb.GetTriggerRequest, context: Context
    ) -> pb.GetTriggerResponse:
        """See the contract."""
        found = await triggers.get(self._pool, current_caller(), _id(request))
        return pb.GetTriggerResponse(trigger=_trigger(found))

    async def ListTriggers(
        self, request: pb.ListTriggersRequest, context: Context
    ) -> pb.ListTriggersResponse:
        """See the contract."""
        workflow_id = codec.uuid_or_none(request.workflow_id, field="workflow_id")
        pages = Pages("orchestrator.ListTriggers", request, workflow_id)
        found = await triggers.list_triggers(
            self._pool,
            current_caller(),
            workflow_id=workflow_id,
            before=pages.after_moment(),
            limit=pages.limit,
        )
        shown, token = await pages.cut(
            found, encode=_trigger, key=lambda each: (each.created_at, each.id)
        )
        return pb.ListTriggersResponse(triggers=shown, next_page_token=token)

    async def UpdateTrigger(
        self, request: pb.UpdateTriggerRequest, context: Context
    ) -> pb.UpdateTriggerResponse:
        """See the contract."""
        answer = await triggers.update(
            self._starter,
            current_caller(),
            _id(request),
            _given(request, paused=request.paused),
            mask=list(request.update_mask.paths),
            etag=request.etag,
            key=request_key(request, "orchestrator.UpdateTrigger", _updated),
        )
        return answered(pb.UpdateTriggerResponse, answer, _updated)

    async def RotateTriggerSecret(
        self, request: pb.RotateTriggerSecretRequest, context: Context
    ) -> pb.RotateTriggerSecretResponse:
        """See the contract."""
        answer = await triggers.rotate(
            self._pool,
            current_caller(),
            _id(request),
            etag=request.etag,
            key=request_key(request, "orchestrator.RotateTriggerSecret", _rotated),
        )
        if isinstance(answer, Replayed):
            return pb.RotateTriggerSecretResponse.FromString(answer.response)
        response = _rotated(answer[0])
        response.secret = answer[1]
        return response

    async def DeleteTrigger(
        self, request: pb.DeleteTriggerRequest, context: Context
    ) -> pb.DeleteTriggerResponse:
        """See the contract."""
        answer = await triggers.delete(
            self._pool,
            current_caller(),
            _id(request),
            etag=request.etag,
            key=request_key(request, "orchestrator.DeleteTrigger", _deleted),
        )
        return answered(pb.DeleteTriggerResponse, answer, _deleted)

    async def FireTrigger(
        self, request: pb.FireTriggerRequest, context: Context
    ) -> pb.FireTriggerResponse:
        """See the contract."""
        execution_id = await trigger_calls.fire(
            self._starter,
            _id(request),
            secret=request.secret,
            sent_at=moment_from(request.send_time, field="send_time"),
            payload=request.payload_json,
            idempotency_key=request.idempotency_key,
        )
        return pb.FireTriggerResponse(
            execution_id=str(execution_id or ""), filtered=execution_id is None
        )


def _id(request: Any) -> Any:
    return codec.uuid_from(request.trigger_id, field="trigger_id")


def _given(request: Any, *, paused: bool = False) -> Given:
    return Given(
        name=request.name,
        workflow_version=request.workflow_version,
        workflow_alias=request.workflow_alias,
        input_json=request.input_json or "{}",
        payload_input=request.payload_input,
        filter=request.filter,
        paused=paused,
    )


def _trigger(trigger: Trigger) -> trigger_pb2.WorkflowTrigger:
    return trigger_pb2.WorkflowTrigger(
        id=str(trigger.id),
        name=trigger.name,
        workflow_id=str(trigger.workflow_id),
        workflow_version=trigger.workflow_version,
        workflow_alias=trigger.workflow_alias,
        input_json=trigger.input_data,
        payload_input=trigger.payload_input,
        filter=trigger.filter,
        filtered_count=trigger.filtered_count,
        paused=trigger.paused_at is not None,
        fire_time=codec.timestamp(trigger.fired_at),
        fired_count=trigger.fired_count,
        error_reason=trigger.error_reason or "",
        error_message=trigger.error_message or "",
        etag=trigger.etag,
        created_by=str(trigger.created_by),
        create_time=codec.timestamp(trigger.created_at),
        update_time=codec.timestamp(trigger.updated_at),
    )


def _created(trigger: Trigger) -> pb.CreateTriggerResponse:
    return pb.CreateTriggerResponse(trigger=_trigger(trigger))


def _updated(trigger: Trigger) -> pb.UpdateTriggerResponse:
    return pb.UpdateTriggerResponse(trigger=_trigger(trigger))


def _rotated(trigger: Trigger) -> pb.RotateTriggerSecretResponse:
    return pb.RotateTriggerSecretResponse(trigger=_trigger(trigger))


def _deleted(_trigger: Trigger) -> pb.DeleteTriggerResponse:
    return pb.DeleteTriggerResponse()
