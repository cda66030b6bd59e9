"""Kill -9 of the orchestrator while schedules are due every second and events are on their way."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from qflow.orchestrator.v1 import (
    event_pb2,
    event_subscription_service_pb2,
    event_subscription_service_pb2_grpc,
    schedule_pb2,
    schedule_service_pb2,
    schedule_service_pb2_grpc,
)

from tests.support.client import Step, connected
from tests.support.invariants import broken
from tests.support.suite import Suite
from tests.support.suite_fixtures import SuiteFactory

pytestmark = pytest.mark.slow

_CODE = "def one() -> int:\n    return 1\n"
_KILLS = 3


@contextmanager
def receiving(held: threading.Event, took: threading.Event) -> Iterator[tuple[str, Counter[str]]]:
    """A receiver that counts events by id, and holds its answers while it is told to."""
    got: Counter[str] = Counter()

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            got[self.headers["webhook-id"]] += 1
            took.set()
            held.wait(60)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", got
    finally:
        held.set()
        server.shutdown()
        server.server_close()
        thread.join()


def rows(suite: Suite, query: str) -> list[tuple[Any, ...]]:
    with suite.sql() as sql:
        return sql.execute(query.encode()).fetchall()


async def until(suite: Suite, query: str) -> None:
    """Wait until a question is answered with true."""
    async with asyncio.timeout(60):
        while not rows(suite, query)[0][0]:  # noqa: ASYNC110  # rows tell nobody
            await asyncio.sleep(0.1)


async def test_no_tick_and_no_event_is_lost_or_doubled_by_kills(
    suite_factory: SuiteFactory,
) -> None:
    """F2, I33, I34, CP20: what was sent and not written comes again with the same id."""
    suite = suite_factory(env={"QFLOW_WEBHOOK_LOOPBACK": "1"})
    held, took = threading.Event(), threading.Event()
    with receiving(held, took) as (url, got):
        async with connected(suite) as client, suite.channel("orchestrator") as channel:
            node = await client.create_node("one", _CODE)
            workflow = await client.create_workflow("w", [Step("a", node)], [])
            events: Any = event_subscription_service_pb2_grpc.EventSubscriptionServiceStub(channel)
            await events.CreateEventSubscription(
                event_subscription_service_pb2.CreateEventSubscriptionRequest(
                    name="e", url=url, event_types=[event_pb2.EVENT_TYPE_EXECUTION_COMPLETED]
                ),
                timeout=20,
            )
            schedules: Any = schedule_service_pb2_grpc.ScheduleServiceStub(channel)
            timing = schedule_pb2.ScheduleTiming()
            timing.interval.every.seconds = 1
            definition = schedule_pb2.ScheduleDefinition(
                name="s",
                timing=timing,
                overlap=schedule_pb2.OVERLAP_POLICY_ALLOW,
                catch_up=schedule_pb2.CATCH_UP_POLICY_ALL,
            )
            made = await schedules.CreateSchedule(
                schedule_service_pb2.CreateScheduleRequest(
                    workflow_id=workflow.id, definition=definition
                ),
                timeout=20,
            )
            for _ in range(_KILLS):
                took.clear()
                assert await asyncio.to_thread(took.wait, 60)  # one is sent, and not answered
                suite.wait_restarted("orchestrator", suite.kill_service("orchestrator"))
            held.set()
            await schedules.PauseSchedule(
                schedule_service_pb2.PauseScheduleRequest(schedule_id=made.schedule.id),
                timeout=20,
                wait_for_ready=True,
            )
            await until(
                suite, "SELECT NOT EXISTS (SELECT FROM schedule_ticks WHERE state = 'pending')"
            )
            await until(
                suite,
                "SELECT NOT EXISTS (SELECT FROM workflow_executions WHERE completed_at IS NULL)",
            )
            await until(
                suite,
                "SELECT count(*) = (SELECT count(*) FROM workflow_executions)"
                " FROM event_deliveries WHERE state = 'delivered'",
            )
    [(ticks, started, runs, first, last)] = rows(
        suite,
        "SELECT count(*), count(*) FILTER (WHERE state = 'started'), count(DISTINCT execution_id),"
        " min(tick_at), max(tick_at) FROM schedule_ticks",
    )
    # Every second from the first to the last has its tick, and each tick its one run.
    assert ticks == started == runs == (last - first).total_seconds() + 1
    assert [(runs,)] == rows(suite, "SELECT count(*) FROM workflow_executions")
    # Every event came, and those that were under way at a kill came again by the same id.
    assert runs == len(got)
    assert _KILLS <= sum(count - 1 for count in got.values())
    with suite.sql() as sql:
        assert {} == broken(sql)
