"""The primary is lost and its replica promoted: services go on there, by the address they know.

What an asynchronous replica had not received is gone. The database has gone back a little in time,
and whoever remembers more must not go on from there.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import grpc
import pytest
from qflow.orchestrator.v1 import execution_pb2
from qflow.orchestrator.v1 import execution_service_pb2 as pb
from qflow.orchestrator.v1.execution_service_pb2_grpc import ExecutionServiceStub

from services.kit.rpc.channel import open_channel
from services.orchestrator.engine.journal import FLUSH_MAX_S
from tests import factories
from tests.support.cluster import Cluster, OrchestratorProcess
from tests.support.invariants import broken
from tests.support.replicated import Replicated
from tests.support.runner_process import RunnerProcess

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]

COMPLETED = execution_pb2.EXECUTION_STATUS_COMPLETED
_RUNS = 50
_TTL_S = 15.0  # what leads to the database is the loop of the test, which waits at times
# By then a flush that waits for the replica is given up, and what follows from that.
_GIVEN_UP_S = FLUSH_MAX_S + 25
# Says that it began, and ends once its gate is open.
_GATED = """
import os, time

def main(x: int) -> int:
    ledger = os.open("/ledger/lines", os.O_WRONLY | os.O_APPEND)
    os.write(ledger, f"{x}\\n".encode())
    os.close(ledger)
    while not os.path.exists("/ledger/open"):
        time.sleep(0.01)
    return x
"""


class Deployment:
    """Two orchestrators and a runner over a primary that a replica follows."""

    def __init__(
        self,
        both: Replicated,
        cluster: Cluster,
        orchestrators: tuple[OrchestratorProcess, OrchestratorProcess],
        runner: RunnerProcess,
    ) -> None:
        self.both = both
        self.cluster = cluster
        self.first, self.second = orchestrators
        self.runner = runner
        step = factories.node(cluster.sql, cluster.owner, code=_GATED)
        self.gated = str(
            factories.workflow(
                cluster.sql,
                cluster.owner,
                nodes={"n": step},
                edges=[("", "x", "n", "x")],
                outputs=[("out", "n")],
            )
        )
        self.chain = cluster.chain()

    async def start(self, workflow: str, count: int) -> list[str]:
        """Start runs, half of them at each."""
        each = (self.first, self.second)
        return await self.start_at(*(each * count)[:count], workflow=workflow)

    async def start_at(self, *orchestrators: OrchestratorProcess, workflow: str) -> list[str]:
        """Start a run at each of these."""
        return await asyncio.gather(
            *(
                self.cluster.start(partial(_one, each), workflow, x)
                for x, each in enumerate(orchestrators)
            )
        )

    async def completed(self, runs: list[str], *, at: OrchestratorProcess) -> None:
        ends = await asyncio.gather(*(self.cluster.finished(lambda: at, run) for run in runs))
        assert {COMPLETED} == {each.status for each in ends}

    def gate(self, *, is_open: bool) -> None:
        gate = self.cluster.ledger / "open"
        if is_open:
            gate.touch()
        else:
            gate.unlink()

    async def begun(self, count: int, *, times: int = 1) -> None:
        """Wait until so many gated runs have begun."""
        async with asyncio.timeout(90):
            while sum(n >= times for n in self.cluster.begun().values()) < count:  # noqa: ASYNC110  # other processes write
                await asyncio.sleep(0.02)

    async def fail_over(self) -> None:
        """Lose the primary and go on with the replica."""
        self.both.lose()
        self.cluster.sql.close()
        self.cluster.sql = await self.both.promote()

    async def whole(self) -> None:
        """Nothing is stuck, nobody wrote what another had: both take runs, and all is in order."""
        for each in (self.first, self.second):
            assert "flush_refused" not in each.said()
            assert "member_fenced" not in each.said()
        await self.completed(await self.start(self.chain, 8), at=self.first)
        assert broken(self.cluster.sql) == {}


def _one(one: OrchestratorProcess) -> OrchestratorProcess:
    return one


@asynccontextmanager
async def deployed() -> AsyncIterator[Deployment]:
    async with Replicated.made() as both:
        cluster = Cluster(both.database, both.database.home, both.database.connect())
        try:
            lease = {"QFLOW_LEASE_TTL_S": str(_TTL_S)}
            first = cluster.orchestrator("a", **lease)
            await first.until_said("service_started")
            runner = cluster.runner(first, **lease)
            await runner.until_said("attached", timeout_s=90)
            second = cluster.orchestrator("b", **lease)
            await second.until_said("service_started")
            await runner.until_said("attached", times=2)
            yield Deployment(both, cluster, (first, second), runner)
        finally:
            cluster.sql.close()
            await cluster.stop()


async def test_what_a_synchronous_replica_took_is_done_after_its_promotion() -> None:
    """G1, F11, E20: whatever was answered is there, and no service was started again."""
    async with deployed() as made:
        await made.both.synchronous()
        starting = asyncio.ensure_future(made.start(made.chain, _RUNS))
        async with asyncio.timeout(90):
            while sum(made.cluster.begun().values()) < _RUNS:  # noqa: ASYNC110  # other processes write
                await asyncio.sleep(0.02)
        await made.fail_over()
        await made.completed(await starting, at=made.second)
        await made.whole()


async def test_nothing_is_answered_that_a_synchronous_replica_does_not_have() -> None:
    """G1: a flush that is given up is not seen either: nobody who asks again is answered."""
    async with deployed() as made:
        await made.completed(await made.start_at(made.first, workflow=made.chain), at=made.first)
        await made.both.synchronous()
        made.both.replication.hold("down")
        starting = asyncio.ensure_future(made.start_at(made.first, workflow=made.chain))
        await asyncio.wait({starting}, timeout=_GIVEN_UP_S)
        assert not starting.done() or isinstance(starting.exception(), grpc.aio.AioRpcError)
        await made.fail_over()
        await asyncio.wait({starting})
        await made.whole()


async def test_what_a_replica_never_had_is_forgotten_by_all() -> None:
    """I13, I39: runs that ended in what is lost end again, and those that began there never did."""
    async with deployed() as made:
        runs = await made.start(made.gated, 6)
        await made.begun(6)
        await made.both.caught_up()
        made.both.replication.hold("down")
        made.gate(is_open=True)
        await made.completed(runs, at=made.first)
        lost = await made.start(made.chain, 6)
        await made.completed(lost, at=made.first)
        made.gate(is_open=False)
        await made.fail_over()
        waiting = [
            asyncio.ensure_future(made.completed(runs, at=each))
            for each in (made.first, made.second)
        ]
        await made.begun(1, times=2)  # what was lost once runs alone
        made.gate(is_open=True)
        await asyncio.gather(*waiting)
        for each in (made.first, made.second):
            assert each.said().count("PeerService/AwaitEnd") < 100, "asked again without a pause"
            async with open_channel(each.address, made.cluster.owner.token) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await ExecutionServiceStub(channel).GetExecution(
                        pb.GetExecutionRequest(execution_id=lost[0])
                    )
            assert grpc.StatusCode.NOT_FOUND == error.value.code()
        await made.whole()


async def test_shards_that_changed_hands_in_what_is_lost_have_one_owner() -> None:
    """F7, I9: the one who took them and the one who lost them both go by the promoted server."""
    async with deployed() as made:
        runs = await made.start(made.gated, 2)
        await made.begun(2)
        await made.both.caught_up()
        made.both.replication.hold("down")
        made.first.send(signal.SIGSTOP)
        await made.second.until_said("shards_taken_in", timeout_s=_TTL_S * 3)
        await made.fail_over()
        made.first.send(signal.SIGCONT)
        runs += await made.start_at(*[made.second] * _RUNS, workflow=made.chain)
        made.gate(is_open=True)
        await made.completed(runs, at=made.second)
        await made.whole()


async def test_a_runner_that_was_fenced_in_what_is_lost_takes_work() -> None:
    """F6, I39: to the promoted server it never was."""
    async with deployed() as made:
        await made.both.caught_up()
        made.both.replication.hold("down")
        lost = await made.start(made.gated, 2)
        await made.begun(2)
        made.runner.send(signal.SIGSTOP)
        for each in (made.first, made.second):
            await each.until_said("runner_lost")
        await made.fail_over()
        made.runner.send(signal.SIGCONT)
        assert lost
        await made.whole()
