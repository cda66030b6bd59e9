"""Conversion between schedules and their messages."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from qflow.orchestrator.v1 import schedule_pb2 as pb

from services.kit.rpc import codec
from services.orchestrator.domain.timing import Cron, Interval, Timing
from services.orchestrator.storage.schedule_ticks import Backfill, Tick
from services.orchestrator.storage.schedules import Definition, Schedule

# In the order of the enums' numbers, from 1.
_OVERLAPS: Final = ("skip", "buffer_one", "allow", "cancel_running")
_CATCH_UPS: Final = ("none", "last", "all")
_SKIPPED: Final = ("after_gap", "omit")
_STATES: Final = ("pending", "started", "skipped", "failed")
_WINDOW_MS: Final = 3_600_000


def definition_from(message: pb.ScheduleDefinition) -> Definition:
    """Decode a definition, with defaults for what is unset; a timing is required."""
    if not message.HasField("timing"):
        raise codec.invalid("definition.timing", "is required", "TIMING_MISSING")
    return _definition(message, timing_from(message.timing, field="definition.timing"))


def changes_from(message: pb.ScheduleDefinition, mask: list[str]) -> Definition:
    """Decode a definition of which only the fields in the mask matter."""
    if "timing" in mask:
        return definition_from(message)
    return _definition(message, Timing(times=Interval(every_ms=1000)))


def _definition(message: pb.ScheduleDefinition, timing: Timing) -> Definition:
    window_ms = _WINDOW_MS
    if message.HasField("catch_up_window"):
        window_ms = codec.milliseconds_from(
            message.catch_up_window, field="definition.catch_up_window"
        )
    return Definition(
        name=message.name,
        description=message.description,
        workflow_version=message.workflow_version,
        workflow_alias=message.workflow_alias,
        input_json=message.input_json or "{}",
        timing=timing,
        overlap=_OVERLAPS[max(message.overlap - 1, 0)],
        catch_up=_CATCH_UPS[message.catch_up - 1 if message.catch_up else 1],
        catch_up_window_ms=window_ms,
        labels=tuple(message.labels),
    )


def timing_from(message: pb.ScheduleTiming, *, field: str) -> Timing:
    """Decode a timing; the domain validates it."""
    times: Cron | Interval
    if message.HasField("cron"):
        times = Cron(
            expression=message.cron.expression,
            time_zone=message.cron.time_zone or "UTC",
            skipped_time=_SKIPPED[max(message.cron.skipped_time - 1, 0)],
        )
    else:
        every, offset = message.interval.every, message.interval.offset
        times = Interval(
            every_ms=_whole_ms(every, field=f"{field}.interval.every"),
            offset_ms=_whole_ms(offset, field=f"{field}.interval.offset"),
        )
    return Timing(
        times=times,
        starts_at=moment_or_none(message, "start_time", within=f"{field}."),
        ends_at=moment_or_none(message, "end_time", within=f"{field}."),
        jitter_ms=codec.milliseconds_from(message.jitter, field=f"{field}.jitter"),
        time_input=message.time_input,
    )


def _whole_ms(encoded: Duration, *, field: str) -> int:
    """Decode an interval in milliseconds; refuses fractions, whose loss would add up."""
    if encoded.nanos % 1_000_000:
        seconds = f"{encoded.seconds + encoded.nanos / 1e9:.9g}"
        raise codec.invalid(field, f"is {seconds} s; give whole milliseconds", "INTERVAL_TOO_FINE")
    return codec.milliseconds_from(encoded, field=field)


def moment_or_none(message: object, field: str, *, within: str = "") -> datetime | None:
    """Decode an optional timestamp; `within` is the prefix of its field in errors."""
    if not message.HasField(field):  # type: ignore[attr-defined]
        return None
    return moment_from(getattr(message, field), field=f"{within}{field}")


def moment_from(encoded: Timestamp, *, field: str) -> datetime:
    """Decode a timestamp, to the microsecond."""
    return codec.moment_from(encoded, field=field, reason="TIME_INVALID")


def states_from(numbers: list[int]) -> list[str]:
    """Decode states of ticks."""
    return sorted({_STATES[number - 1] for number in numbers})


def schedule_to_pb(schedule: Schedule) -> pb.Schedule:
    """Encode a schedule."""
    said = schedule.definition
    message = pb.Schedule(
        id=str(schedule.id) if schedule.id.int else "",
        workflow_id=str(schedule.workflow_id),
        definition=pb.ScheduleDefinition(
            name=said.name,
            description=said.description,
            workflow_version=said.workflow_version,
            workflow_alias=said.workflow_alias,
            input_json=said.input_json,
            timing=_timing_to_pb(said.timing),
            overlap=pb.OverlapPolicy.Value(f"OVERLAP_POLICY_{said.overlap.upper()}"),
            catch_up=pb.CatchUpPolicy.Value(f"CATCH_UP_POLICY_{said.catch_up.upper()}"),
            catch_up_window=codec.duration_ms(said.catch_up_window_ms),
            labels=said.labels,
        ),
        paused=schedule.paused_at is not None,
        pause_reason=schedule.pause_reason,
        next_time=codec.timestamp(schedule.due_at),
        last_time=codec.timestamp(schedule.last_at),
        skipped_count=schedule.skipped_count,
        etag=schedule.etag if schedule.id.int else "",
        created_by=str(schedule.created_by),
        create_time=codec.timestamp(schedule.created_at),
        update_time=codec.timestamp(schedule.updated_at),
    )
    if schedule.error_reason is not None:
        message.last_error.CopyFrom(
            pb.ScheduleError(
                reason=schedule.error_reason,
                message=schedule.error_message or "",
                time=codec.timestamp(schedule.error_at),
            )
        )
    return message


def tick_to_pb(tick: Tick) -> pb.ScheduleTick:
    """Encode a tick."""
    return pb.ScheduleTick(
        schedule_id=str(tick.schedule_id),
        tick_time=codec.timestamp(tick.tick_at),
        kind=pb.ScheduleTickKind.Value(f"SCHEDULE_TICK_KIND_{tick.kind.upper()}"),
        state=pb.ScheduleTickState.Value(f"SCHEDULE_TICK_STATE_{tick.state.upper()}"),
        execution_id=str(tick.execution_id or ""),
        reason=tick.reason,
        message=tick.message,
        tick_count=tick.tick_count,
        backfill_id=str(tick.backfill_id or ""),
        update_time=codec.timestamp(tick.updated_at),
    )


def backfill_to_pb(backfill: Backfill) -> pb.ScheduleBackfill:
    """Encode a backfill."""
    return pb.ScheduleBackfill(
        id=str(backfill.id) if backfill.id.int else "",
        schedule_id=str(backfill.schedule_id),
        start_time=codec.timestamp(backfill.from_at),
        end_time=codec.timestamp(backfill.to_at),
        max_running=backfill.max_running,
        state=pb.ScheduleBackfillState.Value(f"SCHEDULE_BACKFILL_STATE_{backfill.state.upper()}"),
        total_count=backfill.total_count,
        done_count=backfill.done_count,
        present_count=backfill.present_count,
        created_by=str(backfill.created_by),
        create_time=codec.timestamp(backfill.created_at),
        completion_time=codec.timestamp(backfill.completed_at),
    )


def _timing_to_pb(timing: Timing) -> pb.ScheduleTiming:
    message = pb.ScheduleTiming(
        start_time=codec.timestamp(timing.starts_at),
        end_time=codec.timestamp(timing.ends_at),
        jitter=codec.duration_ms(timing.jitter_ms or None),
        time_input=timing.time_input,
    )
    match timing.times:
        case Cron(expression=expression, time_zone=zone, skipped_time=skipped):
            message.cron.expression, message.cron.time_zone = expression, zone
            message.cron.skipped_time = pb.SkippedTimeRule.Value(
                f"SKIPPED_TIME_RULE_{skipped.upper()}"
            )
        case Interval(every_ms=every_ms, offset_ms=offset_ms):
            message.interval.every.FromMilliseconds(every_ms)
            message.interval.offset.FromMilliseconds(offset_ms)
    return message
