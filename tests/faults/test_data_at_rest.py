"""F2 with data sealed at rest: killed orchestrators and runners, and what the disk holds after."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.standalone.postgres import Binaries
from tests.support.client import COMPLETED, connected
from tests.support.invariants import broken
from tests.support.ledger import NODES, Ledger
from tests.support.suite import Suite
from tests.support.suite_fixtures import QUICK, discard

MARKER = "marker-4e1f-of-an-input"


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    folder = Path(tempfile.mkdtemp(prefix="qfl-", dir="/tmp"))
    yield Ledger(folder)
    discard(folder)


def dumped(suite: Suite) -> bytes:
    program = Binaries.find(os.environ).folder / "pg_dump"
    return subprocess.run(
        [program, "--inserts", suite.database_url], capture_output=True, check=True
    ).stdout


@pytest.mark.parametrize("sealed", ["1", "0"])
async def test_runs_survive_kills_and_no_dump_shows_what_went_in(
    ledger: Ledger, sealed: str
) -> None:
    """F2, F3: the run is made again of sealed rows. Without the switch the dump shows it."""
    folder = Path(tempfile.mkdtemp(prefix="qff-", dir="/tmp"))
    suite = Suite(folder, {**QUICK, **ledger.env, "QFLOW_ENCRYPT_DATA": sealed})
    try:
        suite.start()
        async with connected(suite) as client:
            workflow = await ledger.workflow(client)
            execution_id = await client.start(workflow, {"run": MARKER, "start": 10})
            ledger.wait_begun(MARKER)
            for victim in ("orchestrator", "runner"):
                suite.wait_restarted(victim, suite.kill_service(victim))
            ledger.wait_begun(MARKER, times=2)
            ledger.open_gate(MARKER)
            execution = await client.finished(execution_id)
            assert execution.status == COMPLETED, execution.error
            assert json.loads(execution.output_json) == {"total": 10 + len(NODES)}
        with suite.sql() as connection:
            assert broken(connection) == {}
            [(outputs,)] = connection.execute(
                "SELECT count(*) FROM node_executions WHERE json_typeof(output_data) = 'string'"
            ).fetchall()
            assert (len(NODES) if sealed == "1" else 0) == outputs
        assert (sealed == "0") == (MARKER.encode() in dumped(suite))
    finally:
        suite.stop()
        discard(folder)
