"""Many starts in one call, over a real database: each is answered as if it came alone."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any, cast

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2, status_pb2
from qflow.orchestrator.v1 import execution_pb2, quota_pb2
from qflow.orchestrator.v1 import execution_service_pb2 as pb
from qflow.orchestrator.v1.execution_service_pb2_grpc import ExecutionServiceStub

from services.kit.errors import Unavailable
from services.orchestrator.engine.engine import Engine
from services.orchestrator.usecases import start_many
from tests import factories
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.control import (
    CANCELLED,
    COMPLETED,
    PENDING,
    chain,
    ended,
    get,
    refusal,
    start,
)
from tests.integration.orchestrator.test_quotas import set_quota
from tests.integration.orchestrator.test_runs import add_one

USE = execution_pb2.BUSINESS_KEY_CONFLICT_POLICY_USE_EXISTING
CANCEL = execution_pb2.BUSINESS_KEY_CONFLICT_POLICY_CANCEL_EXISTING


def one(workflow_id: object, input_json: str = '{"x":1}', **more: Any) -> pb.StartExecutionRequest:
    return pb.StartExecutionRequest(workflow_id=str(workflow_id), input_json=input_json, **more)


def fresh() -> str:
    return str(uuid.uuid4())


async def batch(
    orchestra: Orchestra, *starts: pb.StartExecutionRequest, **more: Any
) -> list[pb.BatchStartItem]:
    request = pb.BatchStartExecutionsRequest(starts=starts)
    return [*(await orchestra.stub.BatchStartExecutions(request, **more)).items]


async def alone(orchestra: Orchestra, request: pb.StartExecutionRequest) -> status_pb2.Status:
    """The status that the single call is refused with, details and all."""
    status = status_pb2.Status()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await orchestra.stub.StartExecution(request)
    for key, value in refused.value.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status.ParseFromString(cast("bytes", value))
    return status


def reason(item: pb.BatchStartItem) -> str:
    info = error_details_pb2.ErrorInfo()
    item.status.details[0].Unpack(info)
    return str(info.reason)


async def test_a_thousand_begin_in_few_flushes_and_complete(orchestra: Orchestra) -> None:
    workflow = chain(orchestra, "a")
    async with orchestra.running():
        runner = await orchestra.runner(add_one, slots=64)
        async with runner.kept():
            items = await batch(
                orchestra, *(one(workflow, json.dumps({"x": x})) for x in range(1000))
            )
            assert {(0, 1, False)} == {
                (each.status.code, each.workflow_version, each.existing) for each in items
            }
            assert 1000 == len({each.execution_id for each in items})
            assert [each.execution_id for each in items] == sorted(
                each.execution_id for each in items
            )
            for x in (0, 500, 999):  # in the order in which they were asked for
                done = await ended(orchestra, items[x].execution_id)
                assert (COMPLETED, {"out": x + 1}) == (done.status, json.loads(done.output_json))
            while [(1000,)] != orchestra.rows(  # noqa: ASYNC110
                "SELECT count(*) FROM workflow_executions WHERE status = 'completed'"
            ):
                await asyncio.sleep(0.05)
    # Rows of one flush have one time.
    ((flushes,),) = orchestra.rows("SELECT count(DISTINCT created_at) FROM workflow_executions")
    assert cast("int", flushes) <= 8


async def test_each_is_answered_as_the_single_call_and_hinders_no_other(
    orchestra: Orchestra, diamond: str
) -> None:
    other = factories.user(orchestra.sql)
    node = factories.node(orchestra.sql, other)
    graph: dict[str, Any] = {
        "nodes": {"a": node},
        "edges": [("", "x", "a", "x")],
        "outputs": [("o", "a")],
    }
    foreign = factories.workflow(orchestra.sql, other, **graph)
    graph["nodes"] = {"a": factories.node(orchestra.sql, orchestra.owner)}
    draft = factories.workflow(orchestra.sql, orchestra.owner, active=False, **graph)
    used = fresh()
    wrong = [
        one(foreign),
        one(fresh()),
        one("no id"),
        one(draft),
        one(diamond, '{"x":'),
        one(diamond, '{"y":1}'),
        one(diamond, "{}"),
        one(diamond, '{"x":"a\0b"}'),
        one(diamond, priority=101),
        one(diamond, labels={"Upper": "1"}),
        one(diamond, labels={f"l{n}": "" for n in range(65)}),
        one(diamond, workflow_version=9),
        one(diamond, workflow_alias="prod"),
        one(diamond, workflow_alias="prod", workflow_version=1),
        one(diamond, business_key="taken"),
        one(diamond, business_key_conflict=USE),
        one(diamond, business_key_conflict=cast("Any", 99), business_key="k"),
        one(diamond, '{"x":2}', request_id=used),
        one(diamond, timeout=Duration(nanos=1)),
        one(diamond, request_id=fresh(), workflow_version=9),
    ]
    async with orchestra.running():
        await start(orchestra, diamond, business_key="taken")
        first = await start(orchestra, diamond, request_id=used)
        again = one(diamond, request_id=used)
        right = [one(diamond), again, one(diamond, priority=3, labels={"a": "b"})]
        items = await batch(orchestra, right[0], *wrong, *right[1:])
        expected = [await alone(orchestra, each) for each in wrong]
        assert expected == [each.status for each in items[1:-2]]
        assert all(not each.execution_id for each in items[1:-2])
        assert [0, 0, 0] == [items[at].status.code for at in (0, -2, -1)]
        assert (first.id, True) == (items[-2].execution_id, items[-2].existing)
        shown = await get(orchestra, items[-1].execution_id)
        assert (3, {"a": "b"}) == (shown.priority, dict(shown.labels))
    assert [(4,)] == orchestra.rows("SELECT count(*) FROM workflow_executions")


async def test_a_repeated_request_begins_no_run_twice_in_a_batch_or_after_it(
    orchestra: Orchestra, diamond: str
) -> None:
    ids = [fresh() for _ in range(300)]
    starts = [one(diamond, request_id=each) for each in ids]
    other_body = one(diamond, '{"x":2}', request_id=ids[0])
    async with orchestra.running():
        items = await batch(orchestra, *starts, starts[0], other_body)
        assert (items[0].execution_id, True) == (items[-2].execution_id, items[-2].existing)
        assert not items[0].existing
        assert "REQUEST_ID_REUSED" == reason(items[-1])
        again = await batch(orchestra, *starts)
        alone_again = await start(orchestra, diamond, request_id=ids[7])
    assert [each.execution_id for each in items[:300]] == [each.execution_id for each in again]
    assert all(each.existing for each in again)
    assert alone_again.id == items[7].execution_id
    assert [(300,)] == orchestra.rows("SELECT count(*) FROM workflow_executions")


async def test_those_with_a_key_have_their_order(orchestra: Orchestra, diamond: str) -> None:
    async with orchestra.running():
        items = await batch(
            orchestra,
            one(diamond, business_key="a"),
            one(diamond, business_key="a"),
            one(diamond, business_key="a", business_key_conflict=USE),
            *(one(diamond, business_key="b", business_key_conflict=CANCEL) for _ in range(5)),
        )
        assert [0, code_pb2.ALREADY_EXISTS, 0] == [each.status.code for each in items[:3]]
        assert (items[0].execution_id, True) == (items[2].execution_id, items[2].existing)
        of_b = [(await get(orchestra, each.execution_id)).status for each in items[3:]]
        assert [*[CANCELLED] * 4, PENDING] == of_b


async def test_a_fault_in_passing_is_an_answer_to_whom_it_met(
    orchestra: Orchestra, diamond: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What began is told, though what was refused cannot be looked at."""

    async def away(*_: Any) -> Any:
        raise Unavailable("DATABASE_UNAVAILABLE", "away", retry_after_s=1.0)

    used = fresh()
    async with orchestra.running():
        await start(orchestra, diamond, request_id=used)
        monkeypatch.setattr(start_many, "earlier_requests", away)
        items = await batch(orchestra, one(diamond), one(diamond, request_id=used))
        assert [0, code_pb2.UNAVAILABLE] == [each.status.code for each in items]
        assert items[0].execution_id


async def test_only_checked_is_nothing_begun(orchestra: Orchestra, diamond: str) -> None:
    async with orchestra.running():
        items = await batch(
            orchestra,
            one(diamond, validate_only=True, request_id=fresh()),
            one(diamond, "{}", validate_only=True),
            one(diamond),
        )
    assert [0, code_pb2.INVALID_ARGUMENT, 0] == [each.status.code for each in items]
    assert ["", ""] == [each.execution_id for each in items[:2]]
    assert [(1,)] == orchestra.rows("SELECT count(*) FROM workflow_executions")


async def test_a_stale_plan_is_looked_up_anew_for_all(orchestra: Orchestra, diamond: str) -> None:
    async with orchestra.running():
        await batch(orchestra, one(diamond))
        await orchestra.change("DELETE FROM workflow_executions")
        await orchestra.change("UPDATE workflows SET is_active = false")
        items = await batch(orchestra, *(one(diamond) for _ in range(50)))
        assert {"WORKFLOW_INACTIVE"} == {reason(each) for each in items}
        await orchestra.change("UPDATE workflows SET is_active = true")
        items = await batch(orchestra, *(one(diamond) for _ in range(50)))
        assert {0} == {each.status.code for each in items}


async def test_quotas_bound_a_batch_and_what_did_not_begin_is_given_back(
    orchestra: Orchestra,
) -> None:
    workflow = chain(orchestra, "a")
    budget = quota_pb2.ResourceAmounts(nodes=5)
    async with orchestra.running():
        await set_quota(orchestra, executions_running=3)
        used = fresh()
        first = await batch(
            orchestra,
            one(workflow, request_id=used, budget=budget),
            one(workflow, request_id=used, budget=budget),  # takes a place, and gives it back
            one(workflow),
            one(workflow),
        )
        assert [0, 0, 0] == [each.status.code for each in first[:3]]
        assert first[0].execution_id == first[1].execution_id
        assert "QUOTA_EXCEEDED" == reason(first[3])
        second = await batch(orchestra, one(workflow), one(workflow))
        assert [0, code_pb2.RESOURCE_EXHAUSTED] == [each.status.code for each in second]
        assert await alone(orchestra, one(workflow)) == second[1].status
    assert [(3,)] == orchestra.rows("SELECT count(*) FROM execution_budgets")


async def test_what_was_not_handed_over_gives_back_its_part_of_the_quota(
    orchestra: Orchestra, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def none(*_: Any) -> Any:
        raise Unavailable("DRAINING", "the server is stopping", retry_after_s=0.1)

    workflow = chain(orchestra, "a")
    async with orchestra.running():
        await set_quota(orchestra, executions_running=3, executions_per_day=3)
        with monkeypatch.context() as patched:
            patched.setattr(Engine, "_draw", none)
            items = await batch(orchestra, *[one(workflow)] * 3)
            assert {code_pb2.UNAVAILABLE} == {each.status.code for each in items}
            await alone(orchestra, one(workflow))
        assert [(0,)] == orchestra.rows("SELECT count(*) FROM execution_budgets")
        items = await batch(orchestra, *[one(workflow)] * 3)
        assert [0, 0, 0] == [each.status.code for each in items]


async def test_what_the_journal_does_not_take_is_told_when_to_come_again(
    orchestra: Orchestra, diamond: str
) -> None:
    """F38."""
    padded = one(diamond, '{"x":1}' + " " * 900_000)
    async with orchestra.running():
        await batch(orchestra, one(diamond))
        with orchestra.database.connect() as slow:
            slow.autocommit = False
            slow.execute("SELECT 1 FROM engine_members FOR UPDATE")  # no flush gets through
            batches = [asyncio.create_task(batch(orchestra, *[padded] * 4)) for _ in range(5)]
            await asyncio.sleep(2)
            slow.rollback()
        items = [each for made in await asyncio.gather(*batches) for each in made]
        begun = [each for each in items if not each.status.code]
        refused = [each for each in items if each.status.code]
    assert {"JOURNAL_FULL"} == {reason(each) for each in refused}
    assert 8 <= len(begun) < 20
    count = "SELECT count(*) FROM workflow_executions"
    assert [(len(begun) + 1,)] == orchestra.rows(count)


async def test_who_may_not_start_may_not_start_many(orchestra: Orchestra, diamond: str) -> None:
    viewer = factories.user(orchestra.sql, role="viewer")
    async with orchestra.running():
        stub = ExecutionServiceStub(orchestra.channel(viewer.token))
        request = pb.BatchStartExecutionsRequest(starts=[one(diamond)])
        code, why, _ = await refusal(stub.BatchStartExecutions(request))
    assert ("PERMISSION_DENIED", "NOT_ALLOWED") == (code, why)
    assert [(0,)] == orchestra.rows("SELECT count(*) FROM workflow_executions")


@pytest.mark.parametrize("count", [0, 1001])
async def test_none_and_too_many_are_refused_as_a_whole(
    orchestra: Orchestra, diamond: str, count: int
) -> None:
    async with orchestra.running():
        code, _, _ = await refusal(batch(orchestra, *[one(diamond)] * count))
    assert "INVALID_ARGUMENT" == code
    assert [(0,)] == orchestra.rows("SELECT count(*) FROM workflow_executions")


async def test_a_thousand_refusals_fit_into_an_answer(orchestra: Orchestra, diamond: str) -> None:
    """Texts of four bytes a letter, a hundred faults each: 4 MiB is what a message may have."""
    names = {f"{'🜁' * 40}{n}": 1 for n in range(20)}
    wrong = one(diamond, json.dumps(names, ensure_ascii=False))
    async with orchestra.running():
        items = await batch(orchestra, *[wrong] * 990, *[one(fresh())] * 10)
    assert {code_pb2.INVALID_ARGUMENT, code_pb2.NOT_FOUND} == {each.status.code for each in items}
    assert {"INPUT_INVALID", "WORKFLOW_NOT_FOUND"} == {reason(each) for each in items}
