"""Runners that die at named points: what was intended, made, computed or stored is no loss."""

from __future__ import annotations

import asyncio
import json
import os
import time
import uuid

import pytest
from qflow.registry.v1 import workflow_pb2

from services.standalone.process import wait_until
from tests.faults.test_crash_points import Armory, _replaced, armory, checked, hurt, ledger
from tests.faults.test_schedule_kills import until
from tests.support.client import COMPLETED, Client, Step, connected
from tests.support.leaks import leaks
from tests.support.ledger import NODES, Ledger
from tests.support.suite import Suite

__all__ = ["armory", "checked", "hurt", "ledger"]

pytestmark = [
    pytest.mark.slow,
]

_LARGE = '''
import os


def large(run: str, total: int, folder: str) -> str:
    """Give more than travels in a message."""
    line = f"{run} large {os.urandom(4).hex()}\\n"
    descriptor = os.open(f"{folder}/ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(descriptor, line.encode())
    os.close(descriptor)
    return "x" * (200_000 + total)
'''
_LENGTH = '''
def length(text: str) -> int:
    """Count characters."""
    return len(text)
'''
# No row of a sandbox is left open by a process that is gone.
_CLOSED = """
    SELECT count(*) = 0 FROM containers c
      JOIN runner_members m ON m.incarnation = c.runner_incarnation
     WHERE c.status IN ('creating', 'running', 'removing')
       AND m.incarnation <> (SELECT incarnation FROM runner_members
                              ORDER BY started_at DESC LIMIT 1)
"""


@pytest.mark.parametrize(
    ("point", "begun"),
    [
        pytest.param("container_intended", 1, id="CP6 its row is intended and it is not there"),
        pytest.param("container_started", 1, id="CP7 it is there and its name is not in the row"),
        pytest.param("attempt_answered", 2, id="CP10 the code is done and its result is not"),
    ],
)
async def test_a_run_survives_the_death_of_its_runner(
    point: str, begun: int, hurt: Suite, ledger: Ledger, armory: Armory
) -> None:
    """F3; I10, I11, I18, I19: the next one makes the attempt; no open row is left."""
    run = f"run-{uuid.uuid4().hex}"
    async with connected(hurt) as client:
        workflow = await ledger.workflow(client)
        ledger.open_gate(run)
        before = hurt.marks()["runner"]
        armory.arm(point)
        execution = await client.finished(await client.start(workflow, {"run": run, "start": 10}))
    await _replaced(hurt, "runner", before)
    assert execution.status == COMPLETED, execution.error
    assert json.loads(execution.output_json) == {"total": 14}
    assert dict(ledger.begun(run)) == dict.fromkeys(NODES, 1) | {"first": begun}
    await until(hurt, _CLOSED)


async def test_bytes_that_were_stored_without_their_row_are_no_result(
    hurt: Suite, ledger: Ledger, armory: Armory
) -> None:
    """CP11; I19-I21: the node runs again, and what reads its result reads the second one.

    The first one's bytes stay until no attempt can bring their row: the next runner removes them.
    """
    run = f"run-{uuid.uuid4().hex}"
    async with connected(hurt) as client:
        workflow = await _large(client)
        before = hurt.marks()["runner"]
        armory.arm("output_bytes_stored")
        execution = await client.finished(await client.start(workflow, {"run": run, "start": 10}))
    await _replaced(hurt, "runner", before)
    assert execution.status == COMPLETED, execution.error
    assert json.loads(execution.output_json) == {"total": 200_010}
    assert dict(ledger.begun(run)) == {"large": 2}
    with hurt.sql() as connection:
        [(rows,)] = connection.execute(
            "SELECT count(*) FROM files WHERE workflow_execution_id = %s", (execution.id,)
        ).fetchall()
    assert 1 == rows
    [left] = leaks(hurt)["files"]
    key, said = left.split(": ")
    assert "no row" == said
    without_row = hurt.home.root / "files" / key
    two_days_ago_s = time.time() - 2 * 86_400
    os.utime(without_row, (two_days_ago_s, two_days_ago_s))
    hurt.kill_service("runner")  # the next looks at once
    assert await asyncio.to_thread(wait_until, lambda: not without_row.exists(), timeout_s=60)


@pytest.mark.parametrize("point", ["deleted_bytes_found", "deleted_bytes_removed"])
async def test_bytes_follow_the_row_that_retention_removed(
    point: str, hurt: Suite, ledger: Ledger, armory: Armory
) -> None:
    """CP22, F35; I20, I22: the event stands until they are gone, and the next runner goes on."""
    async with connected(hurt) as client:
        workflow = await _large(client)
        run = {"run": f"run-{uuid.uuid4().hex}", "start": 10}
        execution = await client.finished(await client.start(workflow, run))
    assert execution.status == COMPLETED, execution.error
    waiting = "SELECT count(*) {} 0 FROM outbox_events WHERE kind = 'file_deleted' AND sent_at IS"
    armory.arm(point)
    with hurt.sql() as connection:
        connection.execute("SELECT cleanup_old_executions('0 s')")
        left = connection.execute(
            "SELECT 1 FROM files WHERE workflow_execution_id = %s", (execution.id,)
        ).fetchall()
    assert [] == left
    hurt.kill_service("runner")  # the next looks at once, and dies as it does
    assert await asyncio.to_thread(wait_until, armory.was_reached, timeout_s=60)
    await until(hurt, f"{waiting.format('=')} NULL")
    await until(hurt, f"{waiting.format('>')} NOT NULL")
    assert "files" not in leaks(hurt)


async def _large(client: Client) -> workflow_pb2.Workflow:
    large = await client.create_node("large", _LARGE)
    length = await client.create_node("length", _LENGTH)
    return await client.create_workflow(
        "large",
        [Step("large", large, {"folder": "/ledger"}), Step("length", length, {})],
        [".run > large.run", ".start > large.total", "large.result > length.text"],
        inputs={"run": "str", "start": "int"},
        outputs=["total = length.result"],
    )
