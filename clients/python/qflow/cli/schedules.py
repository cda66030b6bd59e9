"""Schedules."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from qflow.cli import backfills
from qflow.cli.common import (
    AsJson,
    ContextName,
    Home,
    ScheduleId,
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
from qflow.cli.inputs import Given, changed_inputs_json, inputs_of, known_input, stored_inputs_json
from qflow.cli.times import span, span_text
from qflow.exceptions import AuthoringError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qflow.client.client import Client
    from qflow.orchestrator.v1.schedule_pb2 import Schedule, ScheduleTiming

app = typer.Typer(no_args_is_help=True, help="Schedules: runs by cron or interval.")

Cron = Annotated[str, typer.Option(help="A cron expression of five fields.")]
Every = Annotated[str, typer.Option(help="An interval: 30s, 15m, 6h, 1d.")]
Overlap = Annotated[
    str, typer.Option(help="If a run is still open: skip, buffer_one, allow, cancel_running.")
]
CatchUp = Annotated[str, typer.Option(help="Missed times to start: none, last, all.")]
TimeInput = Annotated[
    str,
    typer.Option(
        help="The input that receives the time of each tick: date, or datetime with zone."
    ),
]

_OVERLAPS: Final = ("skip", "buffer_one", "allow", "cancel_running")
_CATCH_UPS: Final = ("none", "last", "all")
_NO_ZONE: Final = "--zone is of --cron: an interval is the same in every zone"

for command, does in (
    ("backfill", backfills.backfill),
    ("backfills", backfills.list_),
    ("cancel-backfill", backfills.cancel),
):
    app.command(command)(does)


@app.command("create")
def create(
    workflow: Annotated[str, typer.Argument(help="The workflow's name or id.")],
    given: Given = None,
    cron: Cron = "",
    every: Every = "",
    zone: Annotated[str, typer.Option(help="The time zone of --cron; default: UTC.")] = "",
    overlap: Overlap = "",
    catch_up: CatchUp = "",
    time_input: TimeInput = "",
    name: Annotated[str, typer.Option(help="The name; default: the workflow's.")] = "",
    alias: Annotated[str, typer.Option(help="Start the version of this alias.")] = "",
    paused: Annotated[bool, typer.Option("--paused", help="Create it paused.")] = False,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Create a schedule. It runs a workflow by cron or interval."""
    from qflow.orchestrator.v1 import schedule_pb2
    from qflow.orchestrator.v1 import schedule_service_pb2 as pb

    if not cron and not every:
        raise AuthoringError("say when: either --cron or --every")
    _check_times(cron, every, zone)
    timing = schedule_pb2.ScheduleTiming(time_input=time_input)
    _set_times(timing, cron=cron, every=every, zone=zone)

    async def creating(client: Client) -> Any:
        stored = await stored_workflow(client, workflow)
        if time_input:
            known_input(stored, time_input)
        request = pb.CreateScheduleRequest(
            workflow_id=stored.id,
            paused=paused,
            request_id=str(uuid.uuid4()),
            definition=schedule_pb2.ScheduleDefinition(
                name=name or stored.name,
                workflow_alias=alias,
                input_json=stored_inputs_json(stored, given or []),
                timing=timing,
                overlap=_policy("--overlap", "OVERLAP_POLICY", overlap, _OVERLAPS),
                catch_up=_policy("--catch-up", "CATCH_UP_POLICY", catch_up, _CATCH_UPS),
            ),
        )
        return (await call(client, "Schedule", "CreateSchedule", request)).schedule

    made = with_client(creating, context=context, home=home)
    print_json(as_plain(made)) if as_json else typer.echo(made.id)


@app.command("set")
def set_(
    schedule: ScheduleId,
    given: Annotated[
        list[str] | None,
        typer.Argument(help="Changed inputs: NAME=VALUE.", metavar="[NAME=VALUE]…"),
    ] = None,
    cron: Cron = "",
    every: Every = "",
    zone: Annotated[str, typer.Option(help="The time zone of its cron.")] = "",
    overlap: Overlap = "",
    catch_up: CatchUp = "",
    time_input: Annotated[
        str | None, typer.Option(help="The input that receives the time of each tick; '': none.")
    ] = None,
    name: Annotated[str, typer.Option(help="The name.")] = "",
    alias: Annotated[
        str | None, typer.Option(help="Start the version of this alias; '': the current version.")
    ] = None,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Change a schedule; what is not given stays."""
    from qflow.orchestrator.v1 import schedule_pb2
    from qflow.orchestrator.v1 import schedule_service_pb2 as pb

    said: dict[str, Any] = {}
    if name:
        said["name"] = name
    if overlap:
        said["overlap"] = _policy("--overlap", "OVERLAP_POLICY", overlap, _OVERLAPS)
    if catch_up:
        said["catch_up"] = _policy("--catch-up", "CATCH_UP_POLICY", catch_up, _CATCH_UPS)
    if alias is not None:
        said |= {"workflow_alias": alias, "workflow_version": 0}
    if not (said or given or cron or every or zone) and time_input is None:
        raise AuthoringError("say what to change: an input, or an option; what is not named stays")
    _check_times(cron, every, zone)
    inputs_of(given or [], "")  # report syntax errors before any call

    async def setting(client: Client) -> Any:
        asked = pb.GetScheduleRequest(schedule_id=schedule)
        before = (await call(client, "Schedule", "GetSchedule", asked)).schedule
        of = before.definition
        if cron or every or zone or time_input is not None:
            _set_times(of.timing, cron=cron, every=every, zone=zone)
            if time_input is not None:
                of.timing.time_input = time_input
            said["timing"] = of.timing
        if given or time_input:
            stored = await client.workflow(before.workflow_id, version=of.workflow_version)
            told = changed_inputs_json(stored, of.input_json, given or [], without=time_input)
            said["input_json"] = told
        request = pb.UpdateScheduleRequest(
            schedule_id=schedule,
            etag=before.etag,
            definition=schedule_pb2.ScheduleDefinition(**said),
            request_id=str(uuid.uuid4()),
        )
        request.update_mask.paths.extend(said)
        return (await call(client, "Schedule", "UpdateSchedule", request)).schedule

    made = with_client(setting, context=context, home=home)
    print_json(as_plain(made)) if as_json else _print([made])


@app.command("ls")
def list_(context: ContextName = "", home: Home = "", as_json: AsJson = False) -> None:
    """List the schedules and their next times."""
    from qflow.orchestrator.v1 import schedule_service_pb2 as pb

    request = pb.ListSchedulesRequest(page_size=200)
    there = with_client(
        lambda c: pages(c, "Schedule", "ListSchedules", request, "schedules"),
        context=context,
        home=home,
    )
    _print(there, as_json=as_json)


def state_of(schedule: Schedule) -> str:
    """Return the state of a schedule: paused, active, or over if there is no next time."""
    if schedule.paused:
        return "paused"
    return "on" if schedule.HasField("next_time") else "over"


@app.command("ticks")
def ticks(
    schedule: ScheduleId,
    limit: Annotated[int, typer.Option(help="The maximum number.", min=1, max=1000)] = 20,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Show past times of a schedule. The run of each, or why there is none."""
    from qflow.orchestrator.v1 import schedule_pb2
    from qflow.orchestrator.v1 import schedule_service_pb2 as pb

    request = pb.ListScheduleTicksRequest(schedule_id=schedule, page_size=limit)

    async def looking(client: Client) -> list[Any]:
        return list((await call(client, "Schedule", "ListScheduleTicks", request)).ticks)

    there = with_client(looking, context=context, home=home)

    def row(each: Any) -> Sequence[str]:
        state = schedule_pb2.ScheduleTickState.Name(each.state).rpartition("_")[2].lower()
        many = f" (stands for {each.tick_count} times)" if each.tick_count > 1 else ""
        why = f"{each.reason}: {each.message}" if each.reason else each.message
        return (moment_text(each.tick_time), state, each.execution_id, why + many)

    print_list(there, ("time", "state", "run", "why"), row, as_json=as_json)


@app.command("preview")
def preview(
    schedule: ScheduleId,
    count: Annotated[int, typer.Option(help="How many.", min=1, max=100)] = 5,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Show the next times of a schedule, in UTC."""
    from qflow.orchestrator.v1 import schedule_service_pb2 as pb

    request = pb.PreviewScheduleRequest(schedule_id=schedule, count=count)

    async def looking(client: Client) -> list[str]:
        answer = await call(client, "Schedule", "PreviewSchedule", request)
        return [moment_text(each) for each in answer.tick_times]

    moments = with_client(looking, context=context, home=home)
    print_json(moments) if as_json else typer.echo("\n".join(moments))


@app.command("trigger")
def trigger(
    schedule: ScheduleId, context: ContextName = "", home: Home = "", as_json: AsJson = False
) -> None:
    """Start a run now. Apart from the schedule's times; see `qflow ls`."""
    from qflow.orchestrator.v1 import schedule_service_pb2 as pb

    request = pb.TriggerScheduleRequest(schedule_id=schedule, request_id=str(uuid.uuid4()))
    do("Schedule", "TriggerSchedule", request, context=context, home=home, as_json=as_json)


@app.command("pause")
def pause(
    schedule: ScheduleId,
    reason: Annotated[str, typer.Option(help="A reason, shown to others.")] = "",
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Pause a schedule."""
    from qflow.orchestrator.v1 import schedule_service_pb2 as pb

    request = pb.PauseScheduleRequest(
        schedule_id=schedule, reason=reason, request_id=str(uuid.uuid4())
    )
    do("Schedule", "PauseSchedule", request, context=context, home=home, as_json=as_json)


@app.command("resume")
def resume(
    schedule: ScheduleId, context: ContextName = "", home: Home = "", as_json: AsJson = False
) -> None:
    """Resume a schedule."""
    from qflow.orchestrator.v1 import schedule_service_pb2 as pb

    request = pb.ResumeScheduleRequest(schedule_id=schedule, request_id=str(uuid.uuid4()))
    do("Schedule", "ResumeSchedule", request, context=context, home=home, as_json=as_json)


@app.command("rm")
def remove(
    schedule: ScheduleId, context: ContextName = "", home: Home = "", as_json: AsJson = False
) -> None:
    """Delete a schedule; its runs stay."""
    from qflow.orchestrator.v1 import schedule_service_pb2 as pb

    request = pb.DeleteScheduleRequest(schedule_id=schedule, request_id=str(uuid.uuid4()))
    do("Schedule", "DeleteSchedule", request, context=context, home=home, as_json=as_json)


def _check_times(cron: str, every: str, zone: str) -> None:
    if cron and every:
        raise AuthoringError("say when: either --cron or --every")
    if every and zone:
        raise AuthoringError(_NO_ZONE)


def _set_times(timing: ScheduleTiming, *, cron: str, every: str, zone: str) -> None:
    """Set the timing; what is not given stays: bounds, jitter and time zone."""
    if zone and not cron and timing.HasField("interval"):
        raise AuthoringError(_NO_ZONE)
    if every:
        timing.interval.every.FromTimedelta(span(every))
    if cron:
        timing.cron.expression = cron
    if zone:
        timing.cron.time_zone = zone


def _print(schedules: list[Any], *, as_json: bool = False) -> None:
    print_list(schedules, ("id", "name", "when", "next", "state", "why"), _row, as_json=as_json)


def _row(schedule: Schedule) -> Sequence[str]:
    of, due = schedule.definition, moment_text(schedule.next_time)
    why = schedule.pause_reason if schedule.paused else schedule.last_error.message
    return (schedule.id, of.name, _when(of.timing), due, state_of(schedule), why)


def _policy(option: str, enum: str, told: str, there: tuple[str, ...]) -> Any:
    if told and told not in there:
        raise AuthoringError(f"{option} is one of {', '.join(there)}, not {told!r}")
    return f"{enum}_{told.upper() or 'UNSPECIFIED'}"


def _when(timing: Any) -> str:
    if timing.HasField("cron"):
        zone = timing.cron.time_zone
        return f"{timing.cron.expression} {zone if zone != 'UTC' else ''}".rstrip()
    return f"every {span_text(timing.interval.every.ToTimedelta())}"
