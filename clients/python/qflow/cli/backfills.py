"""Backfills of schedules."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qflow.cli.common import (
    AsJson,
    ContextName,
    Home,
    ScheduleId,
    do,
    moment_text,
    pages,
    print_list,
    with_client,
)
from qflow.cli.times import moment

if TYPE_CHECKING:
    from collections.abc import Sequence


def backfill(
    schedule: ScheduleId,
    first: Annotated[str, typer.Argument(help="The begin: 2026-01-31T12:00, or with +01:00.")],
    last: Annotated[str, typer.Argument(help="The end, exclusive.")],
    max_running: Annotated[int, typer.Option(help="How many at once.", min=1, max=100)] = 1,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Start the runs of a past period. Prints the backfill's id."""
    from qflow.orchestrator.v1 import schedule_service_pb2 as pb

    now = datetime.now(UTC)
    request = pb.BackfillScheduleRequest(
        schedule_id=schedule, max_running=max_running, request_id=str(uuid.uuid4())
    )
    request.start_time.FromDatetime(moment(first, now=now))
    request.end_time.FromDatetime(moment(last, now=now))

    answer = do(
        "Schedule", "BackfillSchedule", request, context=context, home=home, as_json=as_json
    )
    if not as_json:
        typer.echo(answer.backfill.id)


def list_(
    schedule: ScheduleId, context: ContextName = "", home: Home = "", as_json: AsJson = False
) -> None:
    """List the backfills of a schedule. With their progress, newest first."""
    from qflow.orchestrator.v1 import schedule_pb2
    from qflow.orchestrator.v1 import schedule_service_pb2 as pb

    request = pb.ListScheduleBackfillsRequest(schedule_id=schedule, page_size=200)
    there = with_client(
        lambda c: pages(c, "Schedule", "ListScheduleBackfills", request, "backfills"),
        context=context,
        home=home,
    )

    def row(each: Any) -> Sequence[str]:
        state = schedule_pb2.ScheduleBackfillState.Name(each.state).rpartition("_")[2].lower()
        done = f"{each.done_count}/{each.total_count}"
        return (each.id, moment_text(each.start_time), moment_text(each.end_time), state, done)

    print_list(there, ("id", "from", "until", "state", "done"), row, as_json=as_json)


def cancel(
    backfill: Annotated[str, typer.Argument(help="The backfill's id.", metavar="BACKFILL")],
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Cancel a backfill. It starts no more runs; those already started go on."""
    from qflow.orchestrator.v1 import schedule_service_pb2 as pb

    request = pb.CancelScheduleBackfillRequest(backfill_id=backfill)
    do("Schedule", "CancelScheduleBackfill", request, context=context, home=home, as_json=as_json)
