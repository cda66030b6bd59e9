"""What runs leave behind once they are over: nothing, and what is planted is found."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from qflow.orchestrator.v1 import execution_service_pb2 as pb

from tests.support.client import COMPLETED, FAILED, Step, connected
from tests.support.invariants import OF_RUNS, broken
from tests.support.leaks import beyond, leaks, settled
from tests.support.suite import Suite

_LARGE = "def main(x: int) -> str:\n    return 'x' * (200_000 + x)\n"
_BREAK = "def main(x: int) -> int:\n    raise ValueError(x)\n"
_SLOW = "import time\n\ndef main(x: int) -> int:\n    time.sleep(600)\n    return x\n"


def since(suite: Suite, before: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Give what leaked since; others may have planted something in the suite that all share."""
    return beyond(before, leaks(suite))


async def test_runs_of_every_end_leave_nothing_behind(suite: Suite) -> None:
    """I18, I19, I20: completed with a file, failed, and cancelled while it ran."""
    before = leaks(suite)
    async with connected(suite) as client:
        made = {
            name: await client.create_workflow(
                name, [Step("a", await client.create_node(name, code))], [".x > a.x"],
                inputs={"x": "int"},
            )
            for name, code in (("large", _LARGE), ("break", _BREAK), ("slow", _SLOW))
        }  # fmt: skip
        assert COMPLETED == (await client.run(made["large"], {"x": 1})).status
        assert FAILED == (await client.run(made["break"], {"x": 1})).status
        run_id = await client.start(made["slow"], {"x": 1})
        with suite.sql() as db:
            async with asyncio.timeout(60):
                while not db.execute(  # noqa: ASYNC110  # rows give no signal
                    "SELECT 1 FROM node_executions WHERE workflow_execution_id = %s"
                    " AND status = 'running'",
                    (run_id,),
                ).fetchall():
                    await asyncio.sleep(0.1)
        await client.executions.CancelExecution(pb.CancelExecutionRequest(execution_id=run_id))
        await client.executions.WaitExecution(
            pb.WaitExecutionRequest(execution_id=run_id), timeout=60
        )
    assert {} == await asyncio.to_thread(settled, suite, partial(since, before=before))
    with suite.sql() as db:
        assert {} == broken(db, of=OF_RUNS)


def test_what_leaked_is_counted(suite: Suite, tmp_path: Path) -> None:
    """Each kind, planted and taken away again."""
    new = partial(since, before=leaks(suite))
    assert {} == settled(suite, new)
    with suite.sql() as db:
        [(tenant,)] = db.execute("SELECT id FROM users WHERE is_owner").fetchall()
        stray = suite.home.root / "files" / str(tenant) / str(uuid.uuid4())
        stray.parent.mkdir(parents=True, exist_ok=True)
        stray.write_bytes(b"x")
        assert {"files": [f"{tenant}/{stray.name}: no row"]} == new(suite)
        stray.unlink()
        with db.transaction(force_rollback=False):
            row = db.execute(
                "INSERT INTO containers (container_id, python_version, status, tenant_id,"
                " created_by, runner_incarnation) VALUES ('planted', '3.11', 'running', %s, %s,"
                " gen_random_uuid()) RETURNING id::text",
                (tenant, tenant),
            ).fetchone()
        assert row is not None
        assert row[0] in new(suite)["containers"]
        db.execute("DELETE FROM containers WHERE container_id = 'planted'")
        db.execute(
            "INSERT INTO environments (key, tenant_id, python_version, platform, lock_digest,"
            " state, path, ready_at) VALUES ('planted', %s, '3.11', 'p', 'd', 'ready', %s, now())",
            (tenant, str(tmp_path / "gone")),
        )
        assert {"environments": [f"{tmp_path / 'gone'}: no folder"]} == new(suite)
        db.execute("DELETE FROM environments WHERE key = 'planted'")
        db.execute(
            "INSERT INTO runner_members (incarnation, state, expires_at)"
            " VALUES (gen_random_uuid(), 'live', now() - interval '1 h')"
        )
        assert ["members"] == [*new(suite)]
        db.execute("DELETE FROM runner_members WHERE expires_at < now() - interval '30 min'")
    assert {} == new(suite)
