"""F14: the disk of PostgreSQL is full for a while, under its rows or under its WAL."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import psycopg
import pytest
from qflow.orchestrator.v1 import execution_service_pb2 as pb
from qflow.orchestrator.v1.execution_service_pb2_grpc import ExecutionServiceStub

from services.standalone.addresses import SERVICES
from services.standalone.process import wait_until
from tests.support.client import COMPLETED, connected
from tests.support.invariants import broken
from tests.support.ledger import Ledger
from tests.support.suite import Suite
from tests.support.suite_fixtures import SuiteFactory

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]

_ROOM_MIB = 192
_REFUSED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
_WASTE = "CREATE TABLE waste AS SELECT repeat('x', 500) FROM generate_series(1, 500000)"


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


@pytest.fixture(params=["base", "pg_wal"])
def small(
    request: pytest.FixtureRequest, suite_factory: SuiteFactory, ledger: Ledger
) -> Iterator[tuple[Suite, Path]]:
    """A suite with a folder of its server on a disk of its own, which is small."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    suite = suite_factory(env=ledger.env, start=False)
    folder = suite.home.root / "postgres" / "data" / request.param
    owner, aside = folder.stat(), suite.home.root / "aside"
    folder.rename(aside)
    folder.mkdir()
    options = f"size={_ROOM_MIB}m,mode=0700,uid={owner.st_uid},gid={owner.st_gid}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        subprocess.run(["cp", "-a", f"{aside}/.", folder], check=True)
        yield suite.start(), folder
    finally:
        suite.stop()
        subprocess.run(["umount", "-l", folder], check=True)


def fill(suite: Suite, folder: Path) -> Path:
    """Leave no room, neither on the disk nor in what the server has of it, nor make it any."""
    with suite.sql() as sql:
        sql.execute("ALTER SYSTEM SET autovacuum = off")
        sql.execute("SELECT pg_reload_conf()")
    filler = folder / "filler"
    top_up(filler)
    with pytest.raises(psycopg.Error), suite.sql() as sql:  # whoever comes needs room as well
        sql.execute(_WASTE)
    return filler


def top_up(filler: Path) -> None:
    """Take the room that is there: the server gives some back, such as a catalog's cache file."""
    size_bytes = 1 << 20
    with filler.open("ab", buffering=0) as file:
        while size_bytes:
            try:
                file.write(bytes(size_bytes))
            except OSError:
                size_bytes //= 2


async def refusal(suite: Suite, workflow_id: str) -> grpc.aio.AioRpcError:
    """Start a run as a client that repeats nothing; it needs pages, not the rest of some."""
    text = json.dumps({"run": secrets.token_hex(100_000), "start": 1})
    request = pb.StartExecutionRequest(workflow_id=workflow_id, input_json=text)
    once = [("grpc.enable_retries", 0)]
    bearer = [("authorization", f"Bearer {suite.owner_token}")]
    async with grpc.aio.insecure_channel(suite.endpoints["orchestrator"], options=once) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ExecutionServiceStub(channel).StartExecution(request, timeout=30, metadata=bearer)
    return refused.value


async def test_runs_go_on_once_the_databases_disk_has_room_again(
    small: tuple[Suite, Path], ledger: Ledger
) -> None:
    """F14, I1, I39: starts are refused for now, nothing spins, and no service is started again."""
    suite, folder = small
    before = {name: suite.marks()[name] for name in SERVICES}
    orchestrator = psutil.Process(before["orchestrator"].pid)
    async with connected(suite) as client:
        workflow = await ledger.workflow(client)
        execution_id = await client.start(workflow, {"run": "full", "start": 10})
        ledger.wait_begun("full")
        filler = fill(suite, folder)
        used, began_s = orchestrator.cpu_times(), time.monotonic()
        ledger.open_gate("full")
        assert wait_until(
            lambda: "journal_outcome_unknown" in suite.log("orchestrator"), timeout_s=60
        )
        for _ in range(3):
            top_up(filler)
            refused = await refusal(suite, workflow.id)
            assert refused.code() in _REFUSED, refused.details()
            await asyncio.sleep(0.5)  # the time in which it might spin
        now = orchestrator.cpu_times()
        worked_s = now.user + now.system - used.user - used.system
        assert worked_s < (time.monotonic() - began_s) / 2
        filler.unlink()
        execution = await client.finished(execution_id, timeout_s=120)
        assert execution.status == COMPLETED, execution.error
        ledger.open_gate("after")
        after = await client.run(workflow, {"run": "after", "start": 10})
        assert after.status == COMPLETED
    assert {name: suite.marks()[name] for name in SERVICES} == before
    with suite.sql() as sql:
        assert wait_until(lambda: not broken(sql), timeout_s=30), broken(sql)
        assert [(2,)] == sql.execute("SELECT count(*) FROM workflow_executions").fetchall()
