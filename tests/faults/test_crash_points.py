"""Processes that die, or are told that they failed, at named points of what they do.

Each test arms one point in the processes of a running suite, has it reached, and then holds what
the database and the ledger say against what was promised. One whose point is not reached fails.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from qflow.orchestrator.v1 import (
    event_pb2,
    event_subscription_service_pb2,
    event_subscription_service_pb2_grpc,
    execution_service_pb2,
)
from qflow.registry.v1 import node_service_pb2, workflow_pb2

from services.standalone.process import ProcessMark, wait_until
from tests.faults.test_schedule_kills import receiving, until
from tests.support.client import CANCELLED, COMPLETED, Client, Step, connected
from tests.support.furnished import furnish
from tests.support.invariants import broken
from tests.support.ledger import NODES, Ledger
from tests.support.suite import Suite
from tests.support.suite_fixtures import QUICK, discard

_PATIENCE_S = 90.0
# A service that ended several times in a row is started again later each time.
_PASSING = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}
_FLAKY = '''
import os


def flaky(run: str, total: int, folder: str) -> int:
    """Fail the first time."""
    line = f"{run} flaky {os.urandom(4).hex()}\\n"
    descriptor = os.open(f"{folder}/ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(descriptor, line.encode())
    os.close(descriptor)
    failed = f"{folder}/failed-{run}"
    if not os.path.exists(failed):
        open(failed, "w").close()
        raise ValueError("the first time")
    return total + 1
'''


class Armory:
    """The file that says which point is armed."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._reached = file.with_name(f"{file.name}.reached")

    def arm(self, point: str) -> None:
        """Arm a point: `name[:nth[:mode]]`."""
        self._reached.unlink(missing_ok=True)
        self.file.write_text(point, "utf-8")

    def was_reached(self) -> bool:
        """Say whether the point that was armed last was reached."""
        return self._reached.exists()

    def disarm(self) -> None:
        """Arm nothing."""
        self.file.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def ledger() -> Iterator[Ledger]:
    folder = Path(tempfile.mkdtemp(prefix="qfl-", dir="/tmp"))
    yield Ledger(folder)
    discard(folder)


@pytest.fixture(scope="module")
def armory(ledger: Ledger) -> Armory:
    return Armory(ledger.folder / "crash-at")


@pytest.fixture(scope="module")
def hurt(ledger: Ledger, armory: Armory) -> Iterator[Suite]:
    """One suite that has to survive every test of this file, one after the other."""
    folder = Path(tempfile.mkdtemp(prefix="qff-", dir="/tmp"))
    more = {"QFLOW_CRASH_AT": f"@{armory.file}", "QFLOW_WEBHOOK_LOOPBACK": "1"}
    furnish(folder, QUICK)
    suite = Suite(folder, {**QUICK, **ledger.env, **more})
    try:
        yield suite.start()
    finally:
        suite.stop()
        discard(folder)


@pytest.fixture(autouse=True)
def checked(hurt: Suite, armory: Armory) -> Iterator[None]:
    """Hold the suite against the invariants after every test; the point must have been reached."""
    yield
    armory.disarm()
    assert armory.was_reached(), "the armed point was not reached"
    with hurt.sql() as connection:
        assert broken(connection) == {}


async def _replaced(suite: Suite, name: str, before: ProcessMark) -> None:
    """Wait until another process has taken a place; its supervisor takes its time by then."""

    def replaced() -> bool:
        now = suite.marks().get(name)
        return now is not None and now != before

    again = await asyncio.to_thread(wait_until, replaced, timeout_s=_PATIENCE_S)
    assert again, f"{name} was not started again"


async def _insist(call: Callable[[], Awaitable[Any]]) -> Any:
    """Repeat a call while the answer is that its server went away, as any client would."""
    async with asyncio.timeout(_PATIENCE_S):
        while True:
            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                if error.code() not in _PASSING:
                    raise
                await asyncio.sleep(0.1)


async def _flaky(ledger: Ledger, client: Client) -> workflow_pb2.Workflow:
    """Create the chain first → flaky → last; flaky is tried twice."""
    step = await ledger.workflow(client)
    node_id = step.definition.nodes[0].node_id
    flaky = await client.create_node("flaky", _FLAKY)
    get = node_service_pb2.GetNodeRequest(node_id=node_id)
    steps = await client.nodes.GetNode(get, timeout=20, wait_for_ready=True)
    retry = workflow_pb2.RetryPolicy(max_retries=1, initial_delay=Duration(nanos=1_000_000))
    literals = {"folder": "/ledger"}
    return await client.create_workflow(
        "flaky",
        [
            Step("first", steps.node, literals | {"name": "first", "gated": False}),
            Step("flaky", flaky, literals, retry=retry),
            Step("last", steps.node, literals | {"name": "last", "gated": False}),
        ],
        [
            *(f".run > {name}.run" for name in ("first", "flaky", "last")),
            ".start > first.total",
            "first.result > flaky.total",
            "flaky.result > last.total",
        ],
        inputs={"run": "str", "start": "int"},
        outputs=["total = last.result"],
    )


_KILLS = [
    pytest.param("start_pinned", id="CP3 its plan is stored and the run is not"),
    pytest.param("flush_start_before", id="CP1 before the start is committed"),
    pytest.param("flush_start_after", id="CP2 after that and before the reply"),
    pytest.param("flush_assign_before:2", id="CP4 before an assignment is committed"),
    pytest.param("flush_complete_before", id="CP12 before a result is committed"),
    pytest.param("flush_complete_after", id="CP13 after that, before its successor is sent"),
    pytest.param("flush_retry_before", id="CP18 before a retry is scheduled"),
    pytest.param("flush_retry_after", id="CP18 after a retry is scheduled"),
    pytest.param("flush_finish_before", id="CP19 before the end is committed"),
    pytest.param("flush_finish_after", id="CP19 after the end is committed"),
]
_QUICK = {"flush_start_after", "flush_complete_after", "flush_retry_before"}
_FAILS = [
    pytest.param(f"{each.values[0]}{'' if ':' in str(each.values[0]) else ':1'}:fail", id=each.id)
    for each in _KILLS
    if "flush" in str(each.values[0])
]


def _slow(params: list[Any]) -> list[Any]:
    """Leave a few of them in the quick lane."""
    return [
        each
        if each.values[0] in _QUICK
        else pytest.param(*each.values, id=each.id, marks=pytest.mark.slow)
        for each in params
    ]


async def _run_through(hurt: Suite, ledger: Ledger, armory: Armory, point: str) -> None:
    """Have a point reached in the course of a run, which completes with each outcome once."""
    run = f"run-{uuid.uuid4().hex}"
    request_id = str(uuid.uuid4())
    async with connected(hurt) as client:
        workflow = await _flaky(ledger, client)
        inputs = {"run": run, "start": 10}
        armory.arm(point)
        execution_id = await _insist(lambda: client.start(workflow, inputs, request_id=request_id))
        execution = await client.finished(execution_id)
        again = await _insist(lambda: client.start(workflow, inputs, request_id=request_id))
    assert (execution.status, again) == (COMPLETED, execution_id), execution.error
    assert json.loads(execution.output_json) == {"total": 13}
    # I11: a runner keeps what it did, so that nothing is done twice.
    assert dict(ledger.begun(run)) == {"first": 1, "flaky": 2, "last": 1}
    with hurt.sql() as connection:
        counted = connection.execute(
            "SELECT count(DISTINCT w.id), count(*), sum(n.retry_count), sum(n.delivery_count),"
            " (SELECT count(*) FROM error_logs e WHERE e.workflow_execution_id = w.id)"
            "  FROM workflow_executions w JOIN node_executions n ON n.workflow_execution_id = w.id"
            " WHERE w.request_id = %s GROUP BY w.id",
            (UUID(request_id),),
        ).fetchall()
    assert counted == [(1, 3, 1, 0, 1)]  # I2, I12, I23


@pytest.mark.parametrize("point", _slow(_KILLS))
async def test_a_run_survives_the_death_of_the_orchestrator(
    point: str, hurt: Suite, ledger: Ledger, armory: Armory
) -> None:
    """F2; I1-I13."""
    before = hurt.marks()["orchestrator"]
    await _run_through(hurt, ledger, armory, point)
    await _replaced(hurt, "orchestrator", before)


@pytest.mark.slow
@pytest.mark.parametrize("point", _FAILS)
async def test_a_run_survives_what_is_done_and_reported_as_failed(
    point: str, hurt: Suite, ledger: Ledger, armory: Armory
) -> None:
    """F10; I2, I10-I12: the process goes on, and asks the database what is true."""
    before = hurt.marks()["orchestrator"]
    await _run_through(hurt, ledger, armory, point)
    assert hurt.marks()["orchestrator"] == before


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("flush_start_after", id="CP2 committed, and not answered"),
        pytest.param("flush_start_before", id="CP1 not committed", marks=pytest.mark.slow),
        pytest.param("flush_start_after:1:fail", id="CP2 told as failed", marks=pytest.mark.slow),
    ],
)
async def test_a_batch_that_is_repeated_begins_no_run_twice(
    point: str, hurt: Suite, ledger: Ledger, armory: Armory
) -> None:
    """F2, G1, I2: whether the first try began all, some or none of them."""
    run = f"run-{uuid.uuid4().hex}"
    requests = [str(uuid.uuid4()) for _ in range(400)]
    async with connected(hurt) as client:
        workflow = await ledger.workflow(client)
        batch = execution_service_pb2.BatchStartExecutionsRequest(
            starts=[
                execution_service_pb2.StartExecutionRequest(
                    workflow_id=workflow.id,
                    input_json=json.dumps({"run": f"{run}-{number}", "start": 1}),
                    request_id=each,
                    start_time=Timestamp(seconds=int(time.time()) + 86_400),
                )
                for number, each in enumerate(requests)
            ]
        )
        armory.arm(point)

        async def begun() -> list[str]:
            """Repeat the same batch until each of its starts has a run."""
            while True:
                answer = await _insist(
                    lambda: client.executions.BatchStartExecutions(batch, timeout=20)
                )
                items = answer.items
                codes = {item.status.code for item in items}
                if codes == {0}:
                    return [item.execution_id for item in items]
                assert codes <= {0, grpc.StatusCode.UNAVAILABLE.value[0]}, codes
                await asyncio.sleep(0.1)

        first, second = await begun(), await begun()
        assert first == second
        for each in first:
            await client.executions.CancelExecution(
                execution_service_pb2.CancelExecutionRequest(execution_id=each), timeout=20
            )
    with hurt.sql() as connection:
        counted = connection.execute(
            "SELECT count(*), count(DISTINCT id) FROM workflow_executions"
            " WHERE request_id = ANY (%s)",
            ([UUID(each) for each in requests],),
        ).fetchall()
    assert counted == [(400, 400)]


@pytest.mark.slow
async def test_what_a_runner_took_and_did_not_begin_is_given_to_the_next(
    hurt: Suite, ledger: Ledger, armory: Armory
) -> None:
    """CP5; I10, I11: nothing was begun, so nothing is begun twice."""
    run = f"run-{uuid.uuid4().hex}"
    async with connected(hurt) as client:
        workflow = await ledger.workflow(client)
        ledger.open_gate(run)
        before = hurt.marks()["runner"]
        armory.arm("attempt_taken:2")
        execution = await client.finished(await client.start(workflow, {"run": run, "start": 10}))
    await _replaced(hurt, "runner", before)
    assert execution.status == COMPLETED, execution.error
    assert dict(ledger.begun(run)) == dict.fromkeys(NODES, 1)


@pytest.mark.slow
async def test_a_sweep_that_dies_after_it_fenced_a_runner_loses_nothing(
    hurt: Suite, ledger: Ledger, armory: Armory
) -> None:
    """CP9, CP15, F3: user code runs when its runner dies; who fenced that one dies as well."""
    run = f"run-{uuid.uuid4().hex}"
    async with connected(hurt) as client:
        workflow = await ledger.workflow(client)
        execution_id = await client.start(workflow, {"run": run, "start": 10})
        ledger.wait_begun(run)
        before = hurt.marks()["orchestrator"]
        armory.arm("sweep_fenced")
        await _replaced(hurt, "runner", hurt.kill_service("runner"))
        await _replaced(hurt, "orchestrator", before)
        ledger.wait_begun(run, times=2)
        ledger.open_gate(run)
        execution = await client.finished(execution_id)
    assert execution.status == COMPLETED, execution.error
    assert dict(ledger.begun(run)) == dict.fromkeys(NODES, 1) | {"held": 2}


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("lease_renewed_before", id="CP14 before", marks=pytest.mark.slow),
        pytest.param("lease_renewed_after", id="CP14 after", marks=pytest.mark.slow),
        pytest.param(
            "lease_renewed_after:1:fail", id="CP28 its reply is lost", marks=pytest.mark.slow
        ),
    ],
)
async def test_a_renewal_that_fails_stops_nothing(
    point: str, hurt: Suite, ledger: Ledger, armory: Armory
) -> None:
    run = f"run-{uuid.uuid4().hex}"
    async with connected(hurt) as client:
        workflow = await ledger.workflow(client)
        execution_id = await client.start(workflow, {"run": run, "start": 10})
        ledger.wait_begun(run)
        before = hurt.marks()["orchestrator"]
        armory.arm(point)
        assert await asyncio.to_thread(wait_until, armory.was_reached, timeout_s=_PATIENCE_S)
        if point.endswith("fail"):
            assert hurt.marks()["orchestrator"] == before
        else:
            await _replaced(hurt, "orchestrator", before)
        ledger.open_gate(run)
        execution = await client.finished(execution_id)
    assert execution.status == COMPLETED, execution.error
    assert dict(ledger.begun(run)) == dict.fromkeys(NODES, 1)


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("flush_cancel_after", id="CP16 the flag is set, no signal is sent"),
        pytest.param("flush_stopped_before", id="CP17 it was killed", marks=pytest.mark.slow),
        pytest.param(
            "flush_cancel_after:1:fail", id="CP16 reported as failed", marks=pytest.mark.slow
        ),
    ],
)
async def test_what_was_asked_to_stop_ends_as_cancelled(
    point: str, hurt: Suite, ledger: Ledger, armory: Armory
) -> None:
    """I14, B53."""
    run = f"run-{uuid.uuid4().hex}"
    async with connected(hurt) as client:
        workflow = await ledger.workflow(client)
        execution_id = await client.start(workflow, {"run": run, "start": 10})
        ledger.wait_begun(run)
        armory.arm(point)
        request = execution_service_pb2.CancelExecutionRequest(execution_id=execution_id)
        await _insist(
            lambda: client.executions.CancelExecution(request, timeout=20, wait_for_ready=True)
        )
        execution = await client.finished(execution_id)
    assert execution.status == CANCELLED
    assert dict(ledger.begun(run)) == {"first": 1, "held": 1}


@pytest.mark.slow
@pytest.mark.parametrize("point", ["event_posted", "event_posted:1:fail"])
async def test_an_event_that_was_sent_and_not_marked_comes_again_by_its_id(
    point: str, hurt: Suite, ledger: Ledger, armory: Armory
) -> None:
    """CP20; I33."""
    held, took = threading.Event(), threading.Event()
    held.set()
    run = f"run-{uuid.uuid4().hex}"
    with receiving(held, took) as (url, got):
        async with connected(hurt) as client, hurt.channel("orchestrator") as channel:
            workflow = await ledger.workflow(client)
            ledger.open_gate(run)
            events: Any = event_subscription_service_pb2_grpc.EventSubscriptionServiceStub(channel)
            made = await events.CreateEventSubscription(
                event_subscription_service_pb2.CreateEventSubscriptionRequest(
                    name=run, url=url, event_types=[event_pb2.EVENT_TYPE_EXECUTION_COMPLETED]
                ),
                timeout=20,
            )
            armory.arm(point)
            execution = await client.run(workflow, {"run": run, "start": 10})
            assert execution.status == COMPLETED, execution.error
            await until(
                hurt,
                "SELECT count(*) > 0 AND bool_and(state = 'delivered') FROM event_deliveries"
                f" WHERE subscription_id = '{made.subscription.id}'",
            )
    assert [2] == list(got.values())
