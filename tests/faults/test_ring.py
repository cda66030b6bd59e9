"""A token that goes round a ring of nodes, lap after lap, while processes die."""

from __future__ import annotations

import asyncio
import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from tests.support.client import COMPLETED, Step, connected
from tests.support.furnished import furnish
from tests.support.invariants import broken
from tests.support.suite import Suite
from tests.support.suite_fixtures import QUICK, discard

pytestmark = [
    pytest.mark.slow,
]

RING = [f"n{at}" for at in range(10)]
VICTIMS = ("orchestrator", "runner", "orchestrator", "runner", "telemetry", "registry")
PASS = "import time\ndef step(token: int) -> int:\n    time.sleep(0.05)\n    return token + 1\n"


@pytest.fixture
def hurt() -> Iterator[Suite]:
    folder = Path(tempfile.mkdtemp(prefix="qfr-", dir="/tmp"))
    furnish(folder, QUICK)
    suite = Suite(folder, dict(QUICK))
    try:
        yield suite.start()
    finally:
        suite.stop()
        discard(folder)


async def test_what_a_ring_counts_is_conserved_while_processes_die(hurt: Suite) -> None:
    """I38, F2, F3: every node of every lap adds one to the token once, whoever is killed."""
    async with connected(hurt) as client:
        node = await client.create_node("step", PASS)
        workflow = await client.create_workflow(
            "ring",
            [Step(name, node) for name in RING],
            [
                ".token > n0.token",
                *(f"{a}.result > {b}.token" for a, b in itertools.pairwise(RING)),
            ],
            inputs={"token": "int"},
            outputs=[f"token = {RING[-1]}.result"],
        )
        token, runs = 0, []
        for victim in VICTIMS:
            runs.append(await client.start(workflow, {"token": token}))
            await asyncio.sleep(0.2)  # somewhere within the lap; wherever that is must do
            mark = hurt.kill_service(victim)
            hurt.wait_restarted(victim, mark)
            execution = await client.finished(runs[-1])
            assert COMPLETED == execution.status, execution.error
            token = json.loads(execution.output_json)["token"]
        assert len(RING) * len(VICTIMS) == token
        with hurt.sql() as db:
            row = db.execute(
                "SELECT count(*), sum((output_data::jsonb ->> 'result')::int)"
                "  FROM node_executions WHERE workflow_execution_id = ANY(%s)",
                (list(map(UUID, runs)),),
            ).fetchone()
            assert (token, token * (token + 1) // 2) == row
            assert {} == broken(db)
