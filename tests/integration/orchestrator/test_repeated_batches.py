"""A batch that is asked for again is about the same runs, whatever its filter finds by then."""

from __future__ import annotations

import uuid
from collections import Counter
from typing import Any

from qflow.orchestrator.v1.rerun_service_pb2 import (
    BatchCancelExecutionsRequest,
    BatchRerunExecutionsRequest,
    BatchRetryExecutionsRequest,
)

from tests.fakes.runner import Fail
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.control import (
    PENDING,
    chain,
    ended,
    get,
    refusal,
    reruns,
    start,
)


def fail(*_: Any) -> object:
    raise Fail


async def failed(orchestra: Orchestra, workflow_id: str) -> str:
    run = await start(orchestra, workflow_id, labels={"batch": "one"})
    await ended(orchestra, run.id)
    return run.id


async def test_a_repeated_batch_leaves_out_what_the_first_one_made(orchestra: Orchestra) -> None:
    """The new runs fail like their parents, and are within the filter."""
    workflow_id = chain(orchestra, "a")
    async with orchestra.running():
        stub = reruns(orchestra)
        calls: tuple[tuple[Any, Any], ...] = (
            (stub.BatchRetryExecutions, BatchRetryExecutionsRequest),
            (stub.BatchRerunExecutions, BatchRerunExecutionsRequest),
        )
        async with (await orchestra.runner(fail)).attached():
            named = await failed(orchestra, workflow_id)
            for call, message in calls:
                chosen: dict[str, Any] = {
                    "filter": "labels.batch = one",
                    "request_id": str(uuid.uuid4()),
                }
                dry = await call(message(**chosen, validate_only=True))
                first = await call(message(**chosen))
                assert {each.execution_id for each in dry.items} == {
                    each.execution_id for each in first.items
                }
                for item in first.items:
                    await ended(orchestra, item.new_execution_id)
                assert first == await call(message(**chosen))
                other = chosen | {"filter": "", "execution_ids": [named]}
                refused = await refusal(call(message(**other)))
                assert ("ALREADY_EXISTS", "REQUEST_ID_REUSED") == refused[:2]
    # One was there, its retry made two of it, and their reruns four.
    assert [(4,)] == orchestra.rows("SELECT count(*) FROM workflow_executions")


async def test_what_is_asked_once_for_a_batch_is_said_of_each_workflow(
    orchestra: Orchestra,
) -> None:
    """One that may not be started hinders no run of another, nor does that let it through."""
    good, gone = chain(orchestra, "a"), chain(orchestra, "a")
    async with orchestra.running():
        async with (await orchestra.runner(fail)).attached():
            runs = [await failed(orchestra, each) for each in (good, gone) * 20]
            await orchestra.change("UPDATE workflows SET is_active = false WHERE id = %s", gone)
            request = BatchRetryExecutionsRequest(execution_ids=runs)
            told = (await reruns(orchestra).BatchRetryExecutions(request)).items
            for item in told[::2]:
                await ended(orchestra, item.new_execution_id)
    assert [0, 9] * 20 == [each.status.code for each in told]
    assert {"the workflow of the execution is not active; call ActivateWorkflow first"} == {
        each.status.message for each in told[1::2]
    }


async def test_a_filter_of_nothing_but_space_takes_no_run(orchestra: Orchestra) -> None:
    """B-list: it lets everything through, and a slip of a script would have cancelled all."""
    async with orchestra.running():
        run = await start(orchestra, chain(orchestra, "a"))
        stub = reruns(orchestra)
        calls: tuple[tuple[Any, Any], ...] = (
            (stub.BatchCancelExecutions, BatchCancelExecutionsRequest),
            (stub.BatchRetryExecutions, BatchRetryExecutionsRequest),
            (stub.BatchRerunExecutions, BatchRerunExecutionsRequest),
        )
        for call, message in calls:
            for blank in (" ", "\t \n"):
                refused = await refusal(call(message(filter=blank)))
                assert ("INVALID_ARGUMENT", "FILTER_EMPTY") == refused[:2]
        assert PENDING == (await get(orchestra, run.id)).status


async def test_a_repeated_batch_completes_what_the_first_one_chose(orchestra: Orchestra) -> None:
    """One could not be made at first; another failed since, and is not of the set."""
    good, bad = chain(orchestra, "a"), chain(orchestra, "a")
    activate = "UPDATE workflows SET is_active = %s WHERE id = %s"
    async with orchestra.running():
        async with (await orchestra.runner(fail)).attached():
            chosen = {await failed(orchestra, good), await failed(orchestra, bad)}
            request = BatchRetryExecutionsRequest(
                filter="labels.batch = one", request_id=str(uuid.uuid4())
            )
            orchestra.sql.execute(activate, (False, bad))
            first = await reruns(orchestra).BatchRetryExecutions(request)
            orchestra.sql.execute(activate, (True, bad))
            await failed(orchestra, good)
            second = await reruns(orchestra).BatchRetryExecutions(request)
    assert [chosen] * 2 == [{each.execution_id for each in of.items} for of in (first, second)]
    made = [{each.new_execution_id for each in of.items} for of in (first, second)]
    assert (made[0] - {""}) < made[1]
    assert "" not in made[1]


async def test_a_batch_that_was_cut_off_is_completed(orchestra: Orchestra) -> None:
    """Wherever the first call was when its caller let go: each run is retried once."""
    workflow_id = chain(orchestra, "a")
    async with orchestra.running():
        async with (await orchestra.runner(fail)).attached():
            chosen = [await failed(orchestra, workflow_id) for _ in range(5)]
            request = BatchRetryExecutionsRequest(
                filter="labels.batch = one", request_id=str(uuid.uuid4())
            )
            call: Any = reruns(orchestra).BatchRetryExecutions(request)
            await call.wait_for_connection()
            while not orchestra.rows("SELECT FROM idempotency_keys"):
                await get(orchestra, chosen[0])
            call.cancel()
            again = await reruns(orchestra).BatchRetryExecutions(request)
            for item in again.items:
                await ended(orchestra, item.new_execution_id)
    assert set(chosen) == {each.execution_id for each in again.items}
    parents = orchestra.rows(
        "SELECT parent_execution_id::text FROM workflow_executions WHERE relation = 'retry'"
    )
    assert Counter(chosen) == Counter(parent for (parent,) in parents)
