"""What a run asked for, the runs that are made of it have, too: its budget and all else."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from google.protobuf.duration_pb2 import Duration
from qflow.orchestrator.v1 import quota_pb2, rerun_service_pb2

from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.control import (
    COMPLETED,
    FAILED,
    chain,
    ended,
    get,
    refusal,
    reruns,
    start,
)
from tests.integration.orchestrator.test_quotas import set_quota, three
from tests.integration.orchestrator.test_runs import add_one

Amounts = quota_pb2.ResourceAmounts
_MADE = {
    "retry": ("RetryExecution", rerun_service_pb2.RetryExecutionRequest),
    "rerun": ("RerunExecution", rerun_service_pb2.RerunExecutionRequest),
    "fork": ("ForkExecution", rerun_service_pb2.ForkExecutionRequest),
}


async def make(orchestra: Orchestra, relation: str, execution_id: str, **more: Any) -> Any:
    name, request = _MADE[relation]
    if relation != "retry" and not more.get("validate_only"):
        more.setdefault("from_nodes", [rerun_service_pb2.RerunNode(node="a")])
    call = getattr(reruns(orchestra), name)
    return (await call(request(execution_id=execution_id, **more))).execution


@pytest.mark.parametrize("relation", _MADE)
async def test_a_run_that_is_made_of_another_has_what_that_asked_for(
    orchestra: Orchestra, relation: str
) -> None:
    budget = Amounts(nodes=5, cpu_seconds=7, gb_seconds=9, moved_bytes=1000)
    asked: dict[str, Any] = {
        "labels": {"team": "a"},
        "priority": 3,
        "timeout": Duration(seconds=90),
        "business_key": "order 7",
        "ignore_cache": True,
        "budget": budget,
    }
    async with orchestra.running(), (await orchestra.runner(add_one)).attached():
        first = await start(orchestra, chain(orchestra, "a"), request_id=str(uuid4()), **asked)
        assert budget == first.budget
        await ended(orchestra, first.id)
        made = await make(orchestra, relation, first.id)
        await ended(orchestra, made.id)
        stored = await get(orchestra, made.id)
    for seen in (made, stored):
        allowed = seen.deadline_time.ToDatetime() - seen.create_time.ToDatetime()
        assert (budget, 3, True, 90) == (
            seen.budget,
            seen.priority,
            seen.ignore_cache,
            round(allowed.total_seconds()),
        )
        assert ({"team": "a"}, "", relation) == (dict(seen.labels), seen.request_id, seen.relation)
        assert ("" if relation == "fork" else "order 7") == seen.business_key
    rows = "SELECT nodes, cpu_us, gb_us, moved_bytes FROM execution_budgets WHERE execution_id = %s"
    assert [(5, 7_000_000, 9_000_000, 1000)] == orchestra.rows(rows, made.id)


async def test_a_rerun_goes_on_with_the_whole_budget_and_a_retry_may_have_another(
    orchestra: Orchestra,
) -> None:
    async with orchestra.running(), (await orchestra.runner(add_one)).attached():
        first = await start(orchestra, three(orchestra), budget=Amounts(nodes=2))
        assert FAILED == (await ended(orchestra, first.id)).status
        again = await ended(orchestra, (await make(orchestra, "retry", first.id)).id)
        assert (FAILED, "budget_exceeded") == (again.status, again.error.error_type)
        on = await make(orchestra, "rerun", first.id, from_nodes=[])
        assert (COMPLETED, 2) == ((await ended(orchestra, on.id)).status, on.budget.nodes)
        key = str(uuid4())
        more = await make(orchestra, "retry", first.id, budget=Amounts(nodes=4), request_id=key)
        assert (COMPLETED, 4) == ((await ended(orchestra, more.id)).status, more.budget.nodes)
        same = await make(orchestra, "retry", first.id, budget=Amounts(nodes=4), request_id=key)
        assert more.id == same.id
        code, reason, _ = await refusal(
            make(orchestra, "retry", first.id, budget=Amounts(nodes=5), request_id=key)
        )
        assert ("ALREADY_EXISTS", "REQUEST_ID_REUSED") == (code, reason)
        free = await make(orchestra, "retry", more.id, budget=Amounts())
        assert (COMPLETED, False) == (
            (await ended(orchestra, free.id)).status,
            free.HasField("budget"),
        )


async def test_a_rerun_for_which_the_tenant_has_too_little_left_is_refused(
    orchestra: Orchestra,
) -> None:
    async with orchestra.running(), (await orchestra.runner(add_one)).attached():
        await set_quota(orchestra, per_day=Amounts(nodes=4))
        first = await start(orchestra, chain(orchestra, "a"), budget=Amounts(nodes=4))
        await ended(orchestra, first.id)
        code, reason, facts = await refusal(make(orchestra, "retry", first.id))
        assert ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED") == (code, reason)
        assert "nodes_per_day" == facts["quota"]
        less = await make(orchestra, "retry", first.id, budget=Amounts(nodes=3))
        assert COMPLETED == (await ended(orchestra, less.id)).status


async def test_a_budget_is_told_of_after_a_restart(orchestra: Orchestra) -> None:
    async with orchestra.running():
        first = await start(orchestra, chain(orchestra, "a"), budget=Amounts(nodes=4))
    async with orchestra.running(), (await orchestra.runner(add_one)).attached():
        over = await ended(orchestra, first.id)
    assert (COMPLETED, 4) == (over.status, over.budget.nodes)
