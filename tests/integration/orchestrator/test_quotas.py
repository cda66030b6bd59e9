"""Quotas of tenants and budgets of runs: asked before a run begins, counted as attempts end."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from qflow.orchestrator.v1 import explain_service_pb2, quota_pb2, quota_service_pb2
from qflow.orchestrator.v1.explain_service_pb2_grpc import ExplainServiceStub
from qflow.orchestrator.v1.quota_service_pb2_grpc import QuotaServiceStub

from tests import factories
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.control import (
    COMPLETED,
    FAILED,
    cancel,
    chain,
    ended,
    refusal,
    start,
)
from tests.integration.orchestrator.test_limits import never, succeed
from tests.integration.orchestrator.test_members import two, until
from tests.integration.orchestrator.test_runs import add_one

if TYPE_CHECKING:
    from qflow.orchestrator.v1.quota_service_pb2_grpc import QuotaServiceAsyncStub

Amounts = quota_pb2.ResourceAmounts
_HALF_A_SECOND_US = 500_000


def quotas(orchestra: Orchestra, token: str = "") -> QuotaServiceAsyncStub:
    return QuotaServiceStub(orchestra.channel(token or orchestra.owner.token))


async def set_quota(orchestra: Orchestra, etag: str = "", **said: Any) -> quota_pb2.TenantQuota:
    """What an administrator says of the owner's tenant."""
    admin = factories.user(orchestra.sql, role="admin")
    request = quota_service_pb2.SetTenantQuotaRequest(
        tenant_id=str(orchestra.owner.id), quota=quota_pb2.Quota(**said), etag=etag
    )
    return (await quotas(orchestra, admin.token).SetTenantQuota(request)).quota


async def used(orchestra: Orchestra) -> quota_pb2.QuotaUsage:
    request = quota_service_pb2.GetQuotaRequest()
    return (await quotas(orchestra).GetQuota(request)).quota.usage


async def refused(orchestra: Orchestra, workflow: str, **more: Any) -> dict[str, str]:
    code, reason, facts = await refusal(start(orchestra, workflow, **more))
    assert ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED") == (code, reason)
    return facts


def three(orchestra: Orchestra) -> str:
    """Three nodes in a row; what the first and the last give are the outputs."""
    node = factories.node(orchestra.sql, orchestra.owner)
    return str(
        factories.workflow(
            orchestra.sql,
            orchestra.owner,
            nodes={"a": node, "b": node, "c": node},
            edges=[("", "x", "a", "x"), ("a", "result", "b", "x"), ("b", "result", "c", "x")],
            outputs=[("first", "a"), ("last", "c")],
        )
    )


async def test_no_more_runs_are_open_than_the_quota_says(orchestra: Orchestra) -> None:
    workflow = chain(orchestra, "a")
    async with orchestra.running():
        await set_quota(orchestra, executions_running=2)
        runner = await orchestra.runner(never)
        async with runner.attached():
            runs = [(await start(orchestra, workflow)).id for _ in range(2)]
            facts = await refused(orchestra, workflow)
            assert ("executions_running", "2", "2") == (
                facts["quota"],
                facts["limit"],
                facts["used"],
            )
            assert 2 == (await used(orchestra)).executions_running
            await runner.until(lambda: len(runner.held) == 2)
            succeed(runner, runner.held.values())
            assert [COMPLETED] * 2 == [(await ended(orchestra, run)).status for run in runs]
            await start(orchestra, workflow)
            usage = await used(orchestra)
            assert (1, 3, 2) == (usage.executions_running, usage.executions, usage.nodes)


async def test_a_refusal_names_its_quota_in_details_that_programs_read(
    orchestra: Orchestra,
) -> None:
    workflow = chain(orchestra, "a")
    async with orchestra.running():
        await set_quota(orchestra, executions_per_day=1)
        await start(orchestra, workflow)
        with pytest.raises(grpc.aio.AioRpcError) as refused_call:
            await start(orchestra, workflow)
    status, failure = status_pb2.Status(), error_details_pb2.QuotaFailure()
    for key, value in refused_call.value.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status.ParseFromString(value)
    assert any(detail.Unpack(failure) for detail in status.details)
    assert f"tenant/{orchestra.owner.id}" == failure.violations[0].subject
    assert "executions_per_day" in failure.violations[0].description


async def test_a_run_that_used_up_its_budget_ends_with_the_outputs_it_has(
    orchestra: Orchestra,
) -> None:
    workflow = three(orchestra)
    async with orchestra.running():
        runner = await orchestra.runner(add_one)
        async with runner.attached():
            run = await start(orchestra, workflow, budget=Amounts(nodes=2))
            over = await ended(orchestra, run.id)
        assert (FAILED, "budget_exceeded") == (over.status, over.error.error_type)
        assert {"first": 2} == json.loads(over.output_json)
        stub = ExplainServiceStub(orchestra.channel(orchestra.owner.token))
        request = explain_service_pb2.ExplainExecutionRequest(execution_id=run.id)
        [reason] = (await stub.ExplainExecution(request)).reasons
        assert "budget of 2 attempts at nodes" in reason.message
        assert "larger budget" in reason.action
    names = orchestra.rows("SELECT node_id, status FROM node_executions ORDER BY execution_order")
    assert [("a", "completed"), ("b", "completed")] == names
    budget = "SELECT nodes_used, cpu_us_used, over FROM execution_budgets"
    assert [(2, 200, True)] == orchestra.rows(budget)


async def test_a_run_within_its_budget_completes_and_its_last_attempt_may_use_it_up(
    orchestra: Orchestra,
) -> None:
    workflow = three(orchestra)
    async with orchestra.running():
        runner = await orchestra.runner(add_one)
        async with runner.attached():
            run = await start(orchestra, workflow, budget=Amounts(nodes=3))
            over = await ended(orchestra, run.id)
    assert COMPLETED == over.status
    assert {"first": 2, "last": 4} == json.loads(over.output_json)


async def test_what_was_consumed_of_a_budget_outlives_the_orchestrator(
    orchestra: Orchestra,
) -> None:
    """Each attempt is counted once, in the flush that ends it."""
    workflow = three(orchestra)
    async with orchestra.running():
        runner = await orchestra.runner(never)
        runner.cpu_us = _HALF_A_SECOND_US
        async with runner.attached():
            run = await start(orchestra, workflow, budget=Amounts(cpu_seconds=1))
            await runner.until(lambda: len(runner.held) == 1)
            succeed(runner, runner.held.values())
            await runner.until(lambda: len(runner.acks) == 1 and len(runner.held) == 1)
    async with orchestra.running():
        runner.channel = (await orchestra.runner(never)).channel
        async with runner.attached():
            succeed(runner, runner.held.values())
            over = await ended(orchestra, run.id)
    assert (FAILED, "budget_exceeded") == (over.status, over.error.error_type)
    assert [(2 * _HALF_A_SECOND_US,)] == orchestra.rows("SELECT cpu_us_used FROM execution_budgets")


async def test_the_quota_bounds_what_a_run_may_ask_for_and_gives_it_to_those_that_ask_nothing(
    orchestra: Orchestra,
) -> None:
    workflow = three(orchestra)
    async with orchestra.running():
        await set_quota(orchestra, per_execution=Amounts(nodes=1))
        runner = await orchestra.runner(add_one)
        async with runner.attached():
            asked = [await start(orchestra, workflow, budget=Amounts(nodes=3))]
            asked.append(await start(orchestra, workflow))
            found = [await ended(orchestra, each.id) for each in asked]
    assert ["budget_exceeded"] * 2 == [each.error.error_type for each in found]
    assert 2 == orchestra.rows("SELECT count(*)::int FROM node_executions")[0][0]


async def test_what_is_promised_to_a_run_is_not_promised_again_until_it_ends(
    orchestra: Orchestra,
) -> None:
    workflow = chain(orchestra, "a")
    async with orchestra.running():
        await set_quota(orchestra, per_day=Amounts(cpu_seconds=10))
        runner = await orchestra.runner(never)
        async with runner.attached():
            first = await start(orchestra, workflow, budget=Amounts(cpu_seconds=6))
            facts = await refused(orchestra, workflow, budget=Amounts(cpu_seconds=6))
            assert ("cpu_seconds_per_day", "10", "6") == (
                facts["quota"],
                facts["limit"],
                facts["used"],
            )
            second = await start(orchestra, workflow, budget=Amounts(cpu_seconds=4))
            await runner.until(lambda: len(runner.held) == 2)
            succeed(runner, runner.held.values())
            for run in (first, second):
                assert COMPLETED == (await ended(orchestra, run.id)).status
            await start(orchestra, workflow, budget=Amounts(cpu_seconds=6))


async def test_runs_without_a_budget_end_when_their_tenant_used_up_its_day(
    orchestra: Orchestra,
) -> None:
    workflow = three(orchestra)
    async with orchestra.running():
        await set_quota(orchestra, per_day=Amounts(cpu_seconds=1))
        runner = await orchestra.runner(never)
        runner.cpu_us = 2 * _HALF_A_SECOND_US
        async with runner.attached():
            run = await start(orchestra, workflow)
            await runner.until(lambda: len(runner.held) == 1)
            succeed(runner, runner.held.values())
            await runner.until(lambda: len(runner.acks) == 1 and len(runner.held) == 1)
            spent = "SELECT error_type FROM workflow_executions"
            await until(lambda: [("quota_exceeded",)] == orchestra.rows(spent))
            succeed(runner, runner.held.values())  # what runs ends
            over = await ended(orchestra, run.id)
            assert (FAILED, "quota_exceeded") == (over.status, over.error.error_type)
            assert {"first": 2} == json.loads(over.output_json)
            assert "cpu_seconds_per_day" == (await refused(orchestra, workflow))["quota"]
            assert 2.0 == (await used(orchestra)).cpu_seconds


async def test_two_orchestrators_give_the_last_place_to_one_run(orchestra: Orchestra) -> None:
    workflow = chain(orchestra, "a")
    async with orchestra.running(), two(orchestra) as other:
        await set_quota(orchestra, executions_running=3)

        async def known() -> bool:
            """The other has heard of it once it writes what a run holds."""
            run = await start(other, workflow)
            query = "SELECT count(*)::int FROM execution_budgets WHERE execution_id = %s"
            found = orchestra.rows(query, run.id)[0][0]
            await cancel(orchestra, run.id)
            return found == 1

        async with asyncio.timeout(30):
            while not await known():  # noqa: ASYNC110  # it tells nobody
                await asyncio.sleep(0.02)
        calls = [start(each, workflow) for each in (orchestra, other) * 5]
        answers = await asyncio.gather(*calls, return_exceptions=True)
    assert 3 == sum(not isinstance(each, BaseException) for each in answers)
    open_runs = "SELECT count(*)::int FROM workflow_executions WHERE status = 'pending'"
    assert [(3,)] == orchestra.rows(open_runs)


async def test_what_attempts_move_is_counted_for_their_run_and_for_the_day(
    orchestra: Orchestra,
) -> None:
    workflow = three(orchestra)
    async with orchestra.running():
        await set_quota(orchestra, per_day=Amounts(moved_bytes=10_000))
        runner = await orchestra.runner(add_one)
        runner.moved_bytes = 3_000
        async with runner.attached():
            run = await start(orchestra, workflow, budget=Amounts(moved_bytes=6_000))
            over = await ended(orchestra, run.id)
            assert (FAILED, "budget_exceeded") == (over.status, over.error.error_type)
            assert {"first": 2} == json.loads(over.output_json)
            assert "6000 bytes moved" in over.error.message
            assert 6_000 == (await used(orchestra)).moved_bytes
            facts = await refused(orchestra, workflow, budget=Amounts(moved_bytes=5_000))
            assert ("moved_bytes_per_day", "10000", "6000") == (
                facts["quota"],
                facts["limit"],
                facts["used"],
            )
            # So quick a run is over before anybody looks at the day; the next is refused.
            await ended(orchestra, (await start(orchestra, workflow)).id)
            assert "15000" == (await refused(orchestra, workflow))["used"]


async def test_gb_seconds_are_counted_by_the_clock_of_the_runner(orchestra: Orchestra) -> None:
    """Stamps may wait for hours until a clock that was ahead has been caught up with: ADR 96."""
    async with orchestra.running():
        await set_quota(orchestra, per_day=Amounts(gb_seconds=10))
        runner = await orchestra.runner(add_one)
        runner.user_us = 2 * 1024 * 1_000_000  # of one MiB: two GB seconds
        async with runner.attached():
            run = await start(orchestra, three(orchestra), budget=Amounts(gb_seconds=4))
            over = await ended(orchestra, run.id)
            assert (FAILED, "budget_exceeded") == (over.status, over.error.error_type)
            assert 4 == (await used(orchestra)).gb_seconds


async def test_what_a_tenant_keeps_is_told_with_its_quota(orchestra: Orchestra) -> None:
    async with orchestra.running():
        said: dict[str, Any] = {"stored_bytes": 1 << 40, "stored_files": 7, "environments": 3}
        found = await set_quota(orchestra, **said, environment_bytes=1 << 30)
        assert quota_pb2.Quota(
            **said,
            environment_bytes=1 << 30,
            per_day=Amounts(),
            per_execution=Amounts(),
        ) == (found.quota)
        orchestra.sql.execute(
            "INSERT INTO environments (key, tenant_id, python_version, platform, lock_digest, path,"
            " state, size_bytes) SELECT name, %s, '3.11', 'l', repeat('a', 64), %s || '/' || name,"
            " state, 5 FROM (VALUES ('a', 'ready'), ('b', 'evicted')) AS each(name, state)",
            (orchestra.owner.id, str(orchestra.owner.id)),
        )
        orchestra.sql.execute(
            "INSERT INTO file_usage (tenant_id, bytes, files) VALUES (%s, 40, 2)",
            (orchestra.owner.id,),
        )
        usage = await used(orchestra)
        assert (40, 2, 1, 5) == (
            usage.stored_bytes,
            usage.stored_files,
            usage.environments,
            usage.environment_bytes,
        )


async def test_sub_workflows_consume_the_budget_of_the_run_that_they_are_of(
    orchestra: Orchestra,
) -> None:
    node = factories.node(orchestra.sql, orchestra.owner)
    below = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"a": node, "b": node},
        edges=[("", "x", "a", "x"), ("a", "result", "b", "x")],
        outputs=[("result", "b")],
    )
    above = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={
            name: {"kind": "workflow", "node_id": str(below), "version": 1}
            for name in ("one", "two")
        },
        edges=[("", "x", "one", "x"), ("one", "result", "two", "x")],
        outputs=[("y", "two")],
    )
    async with orchestra.running():
        runner = await orchestra.runner(add_one)
        async with runner.attached():
            run = await start(orchestra, above, budget=Amounts(nodes=3))
            over = await ended(orchestra, run.id)
    assert (FAILED, "budget_exceeded") == (over.status, over.error.error_type)
    assert [(3,)] == orchestra.rows("SELECT nodes_used FROM execution_budgets")
    assert [(0,)] == orchestra.rows(
        "SELECT count(*)::int FROM workflow_executions WHERE completed_at IS NULL"
    )


async def test_a_repeated_start_is_answered_though_the_quota_is_used_up(
    orchestra: Orchestra,
) -> None:
    workflow, request_id = chain(orchestra, "a"), str(uuid4())
    async with orchestra.running():
        await set_quota(orchestra, executions_per_day=1)
        first = await start(orchestra, workflow, request_id=request_id)
        assert first.id == (await start(orchestra, workflow, request_id=request_id)).id
        await refused(orchestra, workflow)


async def test_a_start_that_is_refused_for_something_else_takes_nothing_of_the_quota(
    orchestra: Orchestra,
) -> None:
    workflow = chain(orchestra, "a")
    async with orchestra.running():
        await set_quota(orchestra, executions_per_day=2)
        await start(orchestra, workflow, business_key="k")
        code, _, _ = await refusal(start(orchestra, workflow, business_key="k"))
        assert "ALREADY_EXISTS" == code
        await start(orchestra, workflow, business_key="l")
        assert 2 == (await used(orchestra)).executions


async def test_where_nothing_is_limited_nothing_is_counted(orchestra: Orchestra) -> None:
    workflow = three(orchestra)
    async with orchestra.running():
        runner = await orchestra.runner(add_one)
        async with runner.attached():
            run = await start(orchestra, workflow)
            assert COMPLETED == (await ended(orchestra, run.id)).status
        assert quota_pb2.QuotaUsage() == await used(orchestra)
    assert [] == orchestra.rows("SELECT 1 FROM tenant_usage")
    assert [] == orchestra.rows("SELECT 1 FROM execution_budgets")


async def test_a_quota_is_changed_by_who_knows_how_it_stands(orchestra: Orchestra) -> None:
    async with orchestra.running():
        first = await set_quota(orchestra, executions_running=2, per_day=Amounts(gb_seconds=7))
        assert (2, 7) == (first.quota.executions_running, first.quota.per_day.gb_seconds)
        second = await set_quota(orchestra, etag=first.etag, executions_running=3)
        assert 0 == second.quota.per_day.gb_seconds
        code, reason, facts = await refusal(set_quota(orchestra, etag=first.etag))
        assert ("ABORTED", "ETAG_MISMATCH", second.etag) == (code, reason, facts["etag"])
        admin = factories.user(orchestra.sql, role="admin")
        request = quota_service_pb2.GetTenantQuotaRequest(tenant_id=str(uuid4()))
        code, reason, _ = await refusal(quotas(orchestra, admin.token).GetTenantQuota(request))
        assert ("NOT_FOUND", "TENANT_NOT_FOUND") == (code, reason)
        request.tenant_id = str(orchestra.owner.id)
        found = (await quotas(orchestra, admin.token).GetTenantQuota(request)).quota
        assert second == found
