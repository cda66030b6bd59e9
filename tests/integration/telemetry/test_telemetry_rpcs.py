"""What callers may read: their own, page by page, and nothing of anybody else's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import psycopg
import pytest
from qflow.telemetry.v1 import telemetry_service_pb2 as pb

from services.kit.pg import Pool
from services.telemetry.usecases.measure import measure_finished
from tests import factories
from tests.integration.telemetry.conftest import Runs, Telemetry


async def all_pages(call: Any, request: Any, field: str) -> list[Any]:
    """Follow a list to its end."""
    found = []
    for _ in range(100):
        answer = await call(request)
        found += getattr(answer, field)
        if not answer.next_page_token:
            return found
        request.page_token = answer.next_page_token
    raise AssertionError("the list does not end")


async def test_metrics_are_listed_newest_first_and_page_by_page(
    telemetry: Telemetry, maint: Pool, runs: Runs
) -> None:
    wanted = runs.finished()
    for _ in range(3):
        runs.finished()
    await measure_finished(maint)
    stub = telemetry.stub(runs.owner)
    every = await all_pages(stub.ListMetrics, pb.ListMetricsRequest(page_size=4), "metrics")
    assert 20 == len({metric.id for metric in every})
    assert every == sorted(every, key=lambda m: (m.record_time.ToDatetime(), m.id), reverse=True)
    request = pb.ListMetricsRequest(
        execution_id=str(wanted).upper(), metric_name="execution_duration_ms"
    )
    [duration] = await all_pages(stub.ListMetrics, request, "metrics")
    assert (str(wanted), "ms", 100.0) == (
        duration.execution_id,
        duration.metric_unit,
        duration.metric_value,
    )


async def test_another_tenants_run_has_no_metrics_and_no_errors(
    telemetry: Telemetry, maint: Pool, runs: Runs, sql: psycopg.Connection
) -> None:
    """X14, X15."""
    execution = runs.finished()
    await measure_finished(maint)
    sql.execute(
        "INSERT INTO error_logs (error_type, error_message, workflow_execution_id, tenant_id)"
        " VALUES ('user_error', 'canary', %s, %s)",
        (execution, runs.owner.id),
    )
    own = telemetry.stub(runs.owner)
    foreign = telemetry.stub(factories.user(sql, role="admin"))
    for wanted in ("", str(execution)):
        assert 5 == len((await own.ListMetrics(pb.ListMetricsRequest(execution_id=wanted))).metrics)
        errors = (await own.ListErrors(pb.ListErrorsRequest(execution_id=wanted))).errors
        assert ["canary"] == [error.error_message for error in errors]
        answer = await foreign.ListMetrics(pb.ListMetricsRequest(execution_id=wanted))
        assert pb.ListMetricsResponse() == answer
        assert pb.ListErrorsResponse() == await foreign.ListErrors(
            pb.ListErrorsRequest(execution_id=wanted)
        )


async def test_errors_are_listed_newest_first_and_page_by_page(
    telemetry: Telemetry, runs: Runs, sql: psycopg.Connection
) -> None:
    execution = runs.finished(status="failed")
    for number in range(5):
        sql.execute(
            "INSERT INTO error_logs (error_type, error_message, stack_trace, severity,"
            " workflow_execution_id, tenant_id, created_at)"
            " VALUES ('user_error', %s, 'trace', 'error', %s, %s, now() - %s * interval '1 s')",
            (f"e{number}", execution, runs.owner.id, number // 2),
        )
    stub = telemetry.stub(runs.owner)
    every = await all_pages(stub.ListErrors, pb.ListErrorsRequest(page_size=2), "errors")
    assert ["e0", "e1", "e2", "e3", "e4"] == sorted(error.error_message for error in every)
    times = [error.create_time.ToDatetime() for error in every]
    assert times == sorted(times, reverse=True)
    assert {("user_error", "trace", pb.ERROR_SEVERITY_ERROR)} == {
        (error.error_type, error.stack_trace, error.severity) for error in every
    }


async def test_errors_are_searched_by_what_they_are_and_what_they_say(
    telemetry: Telemetry, runs: Runs, sql: psycopg.Connection
) -> None:
    """B78, B79: whatever stands in a filter is a value, never a part of the statement."""
    run = runs.finished(status="failed")
    sql.execute(
        "INSERT INTO error_logs (error_type, error_message, severity, workflow_execution_id,"
        " node_execution_id, tenant_id, error_detail)"
        " SELECT 'user_error', '100% of %_it', 'error', workflow_execution_id, id, %(owner)s,"
        ' \'{"exception": "KeyError", "causes": []}\' FROM node_executions'
        " WHERE node_id = 'n1'".replace("100% of %_it", "100%% of %%_it"),
        {"owner": runs.owner.id},
    )
    for severity in ("info", "warning", "critical"):
        sql.execute(
            "INSERT INTO error_logs (error_type, error_message, severity, tenant_id)"
            " VALUES ('timeout', %s, %s, %s)",
            (f"it is {severity}", severity, runs.owner.id),
        )
    stub = telemetry.stub(runs.owner)

    async def found(text: str, **more: Any) -> set[str]:
        request = pb.ListErrorsRequest(filter=text, page_size=2, **more)
        errors = await all_pages(stub.ListErrors, request, "errors")
        return {each.error_message.removeprefix("it is ") for each in errors}

    every = {"100% of %_it", "info", "warning", "critical"}
    assert every == await found("")
    assert {"critical"} == await found("severity = critical")
    assert {"critical", "100% of %_it"} == await found('severity >= "error"')
    assert {"info", "warning"} == await found("severity < error")
    assert {"100% of %_it"} == await found("%_")
    assert {"100% of %_it"} == await found("exception_type:keyerr AND node = n1")
    assert {"info", "critical"} == await found("(info OR critical) error_type = timeout")
    assert {"100% of %_it"} == await found(f"workflow = {runs.workflow_id}")
    assert every - {"100% of %_it"} == await found(f"workflow != {runs.workflow_id}")
    assert {"100% of %_it"} == await found("severity = error", execution_id=str(run))
    assert set() == await found("severity = info", execution_id=str(run))
    assert set() == await found('"\'; DROP TABLE error_logs; --"')
    for wrong in ("severity = bad", "secret = 1", "severity : info", "create_time > x", "(" * 20):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await found(wrong)
        assert grpc.StatusCode.INVALID_ARGUMENT == refused.value.code(), wrong


async def test_pages_of_errors_are_cut_by_their_bytes_and_lose_none(
    telemetry: Telemetry, runs: Runs, sql: psycopg.Connection
) -> None:
    """B62g."""
    execution = runs.finished(status="failed")
    sql.execute(
        "INSERT INTO error_logs (error_type, error_message, stack_trace, severity,"
        " workflow_execution_id, tenant_id)"
        " SELECT 'user_error', n, %s, 'error', %s, %s FROM generate_series(1, 150) n",
        ("t" * 65_000, execution, runs.owner.id),
    )
    stub = telemetry.stub(runs.owner)
    every = await all_pages(stub.ListErrors, pb.ListErrorsRequest(page_size=100), "errors")
    assert {str(number) for number in range(1, 151)} == {error.error_message for error in every}
    assert len(every) == 150


async def test_health_is_for_administrators(
    telemetry: Telemetry, sql: psycopg.Connection, owner: factories.User
) -> None:
    admin = telemetry.stub(factories.user(sql, role="admin"))
    async with asyncio.timeout(30):
        while not (
            samples := (await admin.ListHealthSamples(pb.ListHealthSamplesRequest())).samples
        ):
            pass
    assert samples[0].node_name
    assert 0 < samples[0].memory_usage_percent <= 100
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await telemetry.stub(owner).ListHealthSamples(pb.ListHealthSamplesRequest())
    assert grpc.StatusCode.PERMISSION_DENIED == caught.value.code()


@pytest.mark.parametrize(
    "request_",
    [
        pb.ListMetricsRequest(page_size=-1),
        pb.ListMetricsRequest(page_token="forged"),
        pb.ListMetricsRequest(execution_id="nonsense"),
        pb.ListMetricsRequest(metric_name="a\0"),
    ],
    ids=["B62g", "B62h", "B18", "B21"],
)
async def test_a_wrong_question_is_refused(
    telemetry: Telemetry, owner: factories.User, request_: pb.ListMetricsRequest
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await telemetry.stub(owner).ListMetrics(request_)
    assert grpc.StatusCode.INVALID_ARGUMENT == caught.value.code()


async def test_a_page_token_is_of_no_use_to_anybody_else_or_with_another_filter(
    telemetry: Telemetry,
    maint: Pool,
    runs: Runs,
    runs_of: Callable[[factories.User], Runs],
    sql: psycopg.Connection,
) -> None:
    """B62h."""
    runs.finished()
    await measure_finished(maint)
    stub = telemetry.stub(runs.owner)
    token = (await stub.ListMetrics(pb.ListMetricsRequest(page_size=1))).next_page_token
    assert token
    other = telemetry.stub(factories.user(sql))
    for who, request in (
        (other, pb.ListMetricsRequest(page_token=token)),
        (stub, pb.ListMetricsRequest(page_token=token, metric_name="execution_cpu_seconds")),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await who.ListMetrics(request)
        assert grpc.StatusCode.INVALID_ARGUMENT == caught.value.code()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ListErrors(pb.ListErrorsRequest(page_token=token))
    assert grpc.StatusCode.INVALID_ARGUMENT == caught.value.code()
