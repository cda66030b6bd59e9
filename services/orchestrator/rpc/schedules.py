"""ScheduleService."""

from __future__ import annotations

from typing import Any

import grpc
from qflow.orchestrator.v1 import schedule_service_pb2 as pb
from qflow.orchestrator.v1 import schedule_service_pb2_grpc as pb_grpc

from services.kit.caller import current_caller
from services.kit.rpc import codec as kit
from services.kit.rpc.pages import Pages
from services.kit.rpc.request_key import answered, request_key
from services.orchestrator.rpc import schedule_codec as codec
from services.orchestrator.storage.schedule_ticks import Backfill, Tick
from services.orchestrator.storage.schedules import Schedule
from services.orchestrator.usecases import schedule_backfills, schedule_ticks, schedules
from services.orchestrator.usecases.schedules import Scheduling
from services.orchestrator.usecases.start import Starter

Context = grpc.aio.ServicerContext[Any, Any]


class ScheduleServicer(pb_grpc.ScheduleServiceServicer):
    """Decodes, calls one use case, encodes."""

    def __init__(self, starter: Starter) -> None:
        self._pool = starter.api_pool
        self._deps = Scheduling(starter.api_pool, starter)

    async def CreateSchedule(
        self, request: pb.CreateScheduleRequest, context: Context
    ) -> pb.CreateScheduleResponse:
        """See the contract."""
        answer = await schedules.create_schedule(
            self._deps,
            current_caller(),
            kit.uuid_from(request.workflow_id, field="workflow_id"),
            codec.definition_from(request.definition),
            paused=request.paused,
            key=request_key(request, "orchestrator.CreateSchedule", _created),
            validate_only=request.validate_only,
        )
        return answered(pb.CreateScheduleResponse, answer, _created)

    async def GetSchedule(
        self, request: pb.GetScheduleRequest, context: Context
    ) -> pb.GetScheduleResponse:
        """See the contract."""
        found = await schedules.get_schedule(self._pool, current_caller(), _id(request))
        return pb.GetScheduleResponse(schedule=codec.schedule_to_pb(found))

    async def ListSchedules(
        self, request: pb.ListSchedulesRequest, context: Context
    ) -> pb.ListSchedulesResponse:
        """See the contract."""
        workflow_id = kit.uuid_or_none(request.workflow_id, field="workflow_id")
        pages = Pages("orchestrator.ListSchedules", request, workflow_id, request.label)
        found = await schedules.list_schedules(
            self._pool,
            current_caller(),
            workflow_id=workflow_id,
            label=request.label,
            before=pages.after_moment(),
            limit=pages.limit,
        )
        shown, token = await pages.cut(
            found, encode=codec.schedule_to_pb, key=lambda each: (each.created_at, each.id)
        )
        return pb.ListSchedulesResponse(schedules=shown, next_page_token=token)

    async def UpdateSchedule(
        self, request: pb.UpdateScheduleRequest, context: Context
    ) -> pb.UpdateScheduleResponse:
        """See the contract."""
        mask = list(request.update_mask.paths)
        answer = await schedules.update_schedule(
            self._deps,
            current_caller(),
            _id(request),
            codec.changes_from(request.definition, mask),
            mask=mask,
            etag=request.etag,
            key=request_key(request, "orchestrator.UpdateSchedule", _updated),
            validate_only=request.validate_only,
        )
        return answered(pb.UpdateScheduleResponse, answer, _updated)

    async def PauseSchedule(
        self, request: pb.PauseScheduleRequest, context: Context
    ) -> pb.PauseScheduleResponse:
        """See the contract."""
        answer = await schedules.pause_schedule(
            self._pool,
            current_caller(),
            _id(request),
            reason=request.reason,
            etag=request.etag,
            key=request_key(request, "orchestrator.PauseSchedule", _paused),
        )
        return answered(pb.PauseScheduleResponse, answer, _paused)

    async def ResumeSchedule(
        self, request: pb.ResumeScheduleRequest, context: Context
    ) -> pb.ResumeScheduleResponse:
        """See the contract."""
        answer = await schedules.resume_schedule(
            self._pool,
            current_caller(),
            _id(request),
            etag=request.etag,
            key=request_key(request, "orchestrator.ResumeSchedule", _resumed),
        )
        return answered(pb.ResumeScheduleResponse, answer, _resumed)

    async def DeleteSchedule(
        self, request: pb.DeleteScheduleRequest, context: Context
    ) -> pb.DeleteScheduleResponse:
        """See the contract."""
        answer = await schedules.delete_schedule(
            self._pool,
            current_caller(),
            _id(request),
            etag=request.etag,
            key=request_key(request, "orchestrator.DeleteSchedule", _deleted),
        )
        return answered(pb.DeleteScheduleResponse, answer, _deleted)

    async def PreviewSchedule(
        self, request: pb.PreviewScheduleRequest, context: Context
    ) -> pb.PreviewScheduleResponse:
        """See the contract."""
        timing = None
        if request.HasField("timing"):
            timing = codec.timing_from(request.timing, field="timing")
        moments = await schedule_ticks.preview(
            self._pool,
            current_caller(),
            kit.uuid_or_none(request.schedule_id, field="schedule_id"),
            timing,
            after=codec.moment_or_none(request, "after_time"),
            count=request.count,
        )
        return pb.PreviewScheduleResponse(tick_times=kit.timestamps(moments))

    async def TriggerSchedule(
        self, request: pb.TriggerScheduleRequest, context: Context
    ) -> pb.TriggerScheduleResponse:
        """See the contract."""
        answer = await schedule_ticks.trigger(
            self._pool,
            current_caller(),
            _id(request),
            key=request_key(request, "orchestrator.TriggerSchedule", _triggered),
        )
        return answered(pb.TriggerScheduleResponse, answer, _triggered)

    async def ListScheduleTicks(
        self, request: pb.ListScheduleTicksRequest, context: Context
    ) -> pb.ListScheduleTicksResponse:
        """See the contract."""
        schedule_id = kit.uuid_or_none(request.schedule_id, field="schedule_id")
        execution_id = kit.uuid_or_none(request.execution_id, field="execution_id")
        states = codec.states_from(list(request.states))
        pages = Pages("orchestrator.ListScheduleTicks", request, schedule_id, execution_id, *states)
        found = await schedule_ticks.list_ticks(
            self._pool,
            current_caller(),
            schedule_id=schedule_id,
            execution_id=execution_id,
            states=states,
            before=pages.after_moment(),
            limit=pages.limit,
        )
        shown, token = await pages.cut(
            found, encode=codec.tick_to_pb, key=lambda each: (each.tick_at, each.schedule_id)
        )
        return pb.ListScheduleTicksResponse(ticks=shown, next_page_token=token)

    async def BackfillSchedule(
        self, request: pb.BackfillScheduleRequest, context: Context
    ) -> pb.BackfillScheduleResponse:
        """See the contract."""
        answer = await schedule_backfills.backfill(
            self._pool,
            current_caller(),
            _id(request),
            begin=codec.moment_from(request.start_time, field="start_time"),
            end=codec.moment_from(request.end_time, field="end_time"),
            max_running=request.max_running,
            key=request_key(request, "orchestrator.BackfillSchedule", _backfilled),
            validate_only=request.validate_only,
        )
        return answered(pb.BackfillScheduleResponse, answer, _backfilled)

    async def ListScheduleBackfills(
        self, request: pb.ListScheduleBackfillsRequest, context: Context
    ) -> pb.ListScheduleBackfillsResponse:
        """See the contract."""
        schedule_id = _id(request)
        pages = Pages("orchestrator.ListScheduleBackfills", request, schedule_id)
        found = await schedule_backfills.list_backfills(
            self._pool,
            current_caller(),
            schedule_id,
            before=pages.after_moment(),
            limit=pages.limit,
        )
        shown, token = await pages.cut(
            found, encode=codec.backfill_to_pb, key=lambda each: (each.created_at, each.id)
        )
        return pb.ListScheduleBackfillsResponse(backfills=shown, next_page_token=token)

    async def CancelScheduleBackfill(
        self, request: pb.CancelScheduleBackfillRequest, context: Context
    ) -> pb.CancelScheduleBackfillResponse:
        """See the contract."""
        backfill_id = kit.uuid_from(request.backfill_id, field="backfill_id")
        found = await schedule_backfills.cancel_backfill(self._pool, current_caller(), backfill_id)
        return pb.CancelScheduleBackfillResponse(backfill=codec.backfill_to_pb(found))


def _id(request: Any) -> Any:
    return kit.uuid_from(request.schedule_id, field="schedule_id")


def _created(schedule: Schedule) -> pb.CreateScheduleResponse:
    return pb.CreateScheduleResponse(schedule=codec.schedule_to_pb(schedule))


def _updated(schedule: Schedule) -> pb.UpdateScheduleResponse:
    return pb.UpdateScheduleResponse(schedule=codec.schedule_to_pb(schedule))


def _paused(schedule: Schedule) -> pb.PauseScheduleResponse:
    return pb.PauseScheduleResponse(schedule=codec.schedule_to_pb(schedule))


def _resumed(schedule: Schedule) -> pb.ResumeScheduleResponse:
    return pb.ResumeScheduleResponse(schedule=codec.schedule_to_pb(schedule))


def _deleted(_schedule: Schedule) -> pb.DeleteScheduleResponse:
    return pb.DeleteScheduleResponse()


def _triggered(tick: Tick) -> pb.TriggerScheduleResponse:
    return pb.TriggerScheduleResponse(tick=codec.tick_to_pb(tick))


def _backfilled(backfill: Backfill) -> pb.BackfillScheduleResponse:
    return pb.BackfillScheduleResponse(backfill=codec.backfill_to_pb(backfill))
