"""Metrics and errors as they are recorded: none is missed, none comes twice, all are one's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import grpc
import psycopg
import pytest
from qflow.telemetry.v1 import tail_service_pb2 as pb
from qflow.telemetry.v1 import telemetry_service_pb2
from qflow.telemetry.v1.tail_service_pb2_grpc import TailServiceStub

from services.kit.errors import FailedPrecondition
from services.telemetry.usecases.tails import checked_position
from tests import factories
from tests.integration.telemetry.conftest import Runs, Telemetry
from tests.support.database import Database


@asynccontextmanager
async def watching(
    telemetry: Telemetry, user: factories.User, request: Any
) -> AsyncIterator[Callable[[], Any]]:
    """A stream whose first message has come; the next is awaited with a limit."""
    stub: Any = TailServiceStub(telemetry.channel(user))
    watch = stub.WatchMetrics if "Metrics" in type(request).__name__ else stub.WatchErrors
    call = watch(request)

    async def read() -> Any:
        async with asyncio.timeout(30):
            return await call.read()

    yield read
    call.cancel()


def measured(db: psycopg.Connection, owner: factories.User, value: float, **more: Any) -> None:
    db.execute(
        "INSERT INTO performance_metrics (metric_name, metric_value, tenant_id, recorded_at,"
        " workflow_execution_id) VALUES (%s, %s, %s, %s, %s)",
        (
            more.get("name", "m"),
            value,
            owner.id,
            more.get("at", datetime.now(UTC)),
            more.get("run"),
        ),
    )


def failed(db: psycopg.Connection, owner: factories.User, severity: str, message: str) -> None:
    db.execute(
        "INSERT INTO error_logs (error_type, error_message, severity, tenant_id)"
        " VALUES ('user_error', %s, %s, %s)",
        (message, severity, owner.id),
    )


async def test_a_tail_tells_what_is_recorded_from_its_beginning_on(
    telemetry: Telemetry, owner: factories.User, sql: psycopg.Connection
) -> None:
    measured(sql, owner, 1)
    async with watching(telemetry, owner, pb.WatchMetricsRequest()) as read:
        first = await read()
        assert ([], True) == ([*first.metrics], bool(first.resume_token))
        measured(sql, factories.user(sql), 2)
        measured(sql, owner, 3, at=datetime.now(UTC) - timedelta(days=2))
        measured(sql, owner, 4)
        [metric] = (await read()).metrics
        assert ("m", 4.0) == (metric.metric_name, metric.metric_value)


async def test_a_row_of_a_transaction_that_ends_late_is_not_missed(
    telemetry: Telemetry, owner: factories.User, database: Database, sql: psycopg.Connection
) -> None:
    """What a later transaction committed before it waits for it: the order is one for all."""
    with psycopg.connect(database.url()) as late:
        async with watching(telemetry, owner, pb.WatchErrorsRequest()) as read:
            await read()
            failed(late, owner, "error", "first")
            failed(sql, owner, "error", "second")
            reading = asyncio.ensure_future(read())
            done, _ = await asyncio.wait({reading}, timeout=1.5)
            assert not done
            late.commit()
            told = [each.error_message for each in (await reading).errors]
            while len(told) < 2:
                told += [each.error_message for each in (await read()).errors]
            assert ["first", "second"] == told


async def test_a_stream_that_broke_off_is_gone_on_with(
    telemetry: Telemetry, owner: factories.User, sql: psycopg.Connection
) -> None:
    request = pb.WatchErrorsRequest(minimum_severity=telemetry_service_pb2.ERROR_SEVERITY_WARNING)
    async with watching(telemetry, owner, request) as read:
        request.resume_token = (await read()).resume_token
    told: list[str] = []
    for number in range(3):
        failed(sql, owner, "info", "too little")
        failed(sql, owner, "warning", f"{number} a")
        with sql.transaction():
            failed(sql, owner, "critical", f"{number} b")
            failed(sql, owner, "error", f"{number} c")
        async with watching(telemetry, owner, request) as read:
            # Other transactions of this server may hold them up: then what is there is said first.
            while len(told) < 3 * (number + 1):
                answer = await read()
                told += sorted(each.error_message for each in answer.errors)
                request.resume_token = answer.resume_token
    assert [f"{number} {letter}" for number in range(3) for letter in "abc"] == told


async def test_a_tail_can_be_of_one_run_and_one_name(
    telemetry: Telemetry, runs: Runs, sql: psycopg.Connection
) -> None:
    run = runs.finished()
    request = pb.WatchMetricsRequest(metric_name="a", execution_id=str(run))
    async with watching(telemetry, runs.owner, request) as read:
        await read()
        measured(sql, runs.owner, 1, name="a")
        measured(sql, runs.owner, 2, name="b", run=run)
        measured(sql, runs.owner, 3, name="a", run=run)
        assert [3.0] == [each.metric_value for each in (await read()).metrics]


async def test_many_records_come_in_messages_of_a_moderate_size(
    telemetry: Telemetry, owner: factories.User, sql: psycopg.Connection
) -> None:
    async with watching(telemetry, owner, pb.WatchErrorsRequest()) as read:
        token = (await read()).resume_token
    with sql.transaction():
        for number in range(60):
            failed(sql, owner, "error", f"{number:04} " + "x" * 60_000)
    told: set[str] = set()
    while len(told) < 60:  # each message by a stream of its own: none comes twice
        request = pb.WatchErrorsRequest(resume_token=token)
        async with watching(telemetry, owner, request) as read:
            answer = await read()
        assert answer.ByteSize() < 1_200_000
        names = {each.error_message[:4] for each in answer.errors}
        assert not names & told
        told |= names
        token = answer.resume_token


async def test_a_token_is_of_no_use_to_anybody_else_or_for_another_question(
    telemetry: Telemetry, runs: Runs, sql: psycopg.Connection
) -> None:
    """B62h."""
    async with watching(telemetry, runs.owner, pb.WatchMetricsRequest()) as read:
        token = (await read()).resume_token
    other = factories.user(sql)
    for who, request in (
        (other, pb.WatchMetricsRequest(resume_token=token)),
        (runs.owner, pb.WatchMetricsRequest(resume_token=token, metric_name="m")),
        (runs.owner, pb.WatchErrorsRequest(resume_token=token)),
        (runs.owner, pb.WatchErrorsRequest(resume_token="forged")),
    ):
        async with watching(telemetry, who, request) as read:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await read()
        assert grpc.StatusCode.INVALID_ARGUMENT == refused.value.code()


async def test_a_foreign_run_is_watched_no_more_than_a_missing_one(
    telemetry: Telemetry, runs: Runs, sql: psycopg.Connection
) -> None:
    """B62i, X14."""
    stranger = factories.user(sql, role="admin")
    for hidden in (runs.finished(), uuid4()):
        for kind in (pb.WatchMetricsRequest, pb.WatchErrorsRequest):
            async with watching(telemetry, stranger, kind(execution_id=str(hidden))) as read:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await read()
            assert grpc.StatusCode.NOT_FOUND == refused.value.code()


def test_a_token_that_is_too_old_is_told_so() -> None:
    now = datetime.now(UTC)
    position = (7, uuid4())
    assert position == checked_position(position, at=now - timedelta(hours=23), now=now)
    with pytest.raises(FailedPrecondition):
        checked_position(position, at=now - timedelta(hours=25), now=now)
