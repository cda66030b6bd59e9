"""More than the engine can take: what is refused, what is kept, how it comes back."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from qflow.orchestrator.v1 import execution_service_pb2 as pb

from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.control import COMPLETED, ended, start, told
from tests.integration.orchestrator.test_reruns import hold_invariants
from tests.integration.orchestrator.test_runs import add_one

_PADDED = '{"x":1}' + " " * 500_000  # an input is kept exactly as it was sent
_STARTS = 60  # 30 MB, where the journal takes 8
_READERS = 1_000


def _retry_after_s(error: grpc.aio.AioRpcError) -> float:
    """Give what the refusal says of when to come again."""
    status = status_pb2.Status()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status.ParseFromString(value)
    info = error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(info):
            return float(info.retry_delay.ToMilliseconds()) / 1000
    return 0.0


@pytest.mark.timeout(120)
async def test_starts_beyond_what_the_journal_takes_are_told_when_to_come_again(
    orchestra: Orchestra, diamond: str
) -> None:
    """F38: what was accepted ends, nothing is half there, and the next start works at once."""
    async with orchestra.running():
        runner = await orchestra.runner(add_one)
        async with runner.kept():
            await ended(orchestra, (await start(orchestra, diamond)).id)
            with orchestra.database.connect() as slow:
                slow.autocommit = False
                slow.execute("SELECT 1 FROM engine_members FOR UPDATE")  # no flush gets through
                starts = [
                    asyncio.ensure_future(start(orchestra, diamond, _PADDED))
                    for _ in range(_STARTS)
                ]
                while not any(each.done() for each in starts):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                slow.rollback()
            answers: list[Any] = await asyncio.gather(*starts, return_exceptions=True)
            refused = [each for each in answers if isinstance(each, grpc.aio.AioRpcError)]
            accepted = [each for each in answers if not isinstance(each, BaseException)]
            assert {("RESOURCE_EXHAUSTED", "JOURNAL_FULL")} == {told(each)[:2] for each in refused}
            assert all(_retry_after_s(each) > 0 for each in refused)
            for each in accepted:
                assert COMPLETED == (await ended(orchestra, each.id)).status
            assert (
                COMPLETED == (await ended(orchestra, (await start(orchestra, diamond)).id)).status
            )
            hold_invariants(orchestra)
    assert len(accepted) >= 8
    assert [(len(accepted) + 2,)] == orchestra.rows("SELECT count(*) FROM workflow_executions")


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_a_thousand_readers_at_once_get_through_after_the_database_cut_all(
    orchestra: Orchestra, diamond: str
) -> None:
    """F39: no call waits for a connection longer than five seconds."""
    async with orchestra.running():
        async with (await orchestra.runner(add_one)).kept():
            execution = await start(orchestra, diamond)
            await ended(orchestra, execution.id)
            request = pb.GetExecutionRequest(execution_id=execution.id)

            async def read() -> float:
                """Read until that succeeds; gives how long the longest call took."""
                longest_s = 0.0
                while True:
                    begun = time.monotonic()
                    try:
                        await orchestra.stub.GetExecution(request)
                    except grpc.aio.AioRpcError as error:
                        if error.code() is not grpc.StatusCode.UNAVAILABLE:
                            raise
                        await asyncio.sleep(0.1)
                    else:
                        return max(longest_s, time.monotonic() - begun)
                    longest_s = max(longest_s, time.monotonic() - begun)

            async def longest() -> float:
                return max(await asyncio.gather(*(read() for _ in range(_READERS))))

            # A thousand callers in one process take their time; what is more is the connections'.
            undisturbed_s = await longest()
            orchestra.rows(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name LIKE 'qflow-%%' AND datname = current_database()"
            )
            cut_s = await longest()
            assert (
                COMPLETED == (await ended(orchestra, (await start(orchestra, diamond)).id)).status
            )
    assert cut_s < 5.0 + undisturbed_s
