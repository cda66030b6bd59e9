"""The bench of backups: a gigabyte is taken and proven, by the commands an operator types."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import asyncpg

from bench.figures import figure
from bench.flow import ONE, running
from services.kit import child

_BYTES: Final = 1_000_000_000
_TARGET_S: Final = 300.0
_TIMEOUT_S: Final = 900.0
_METRICS: Final = """
    INSERT INTO performance_metrics (metric_name, metric_value, metric_unit, tenant_id,
                                     workflow_execution_id, recorded_at)
    SELECT 'm' || n % 10, n, 'ms', tenant_id, id, now() - n * interval '1 millisecond'
      FROM workflow_executions, generate_series(1, 1_000_000) n
"""
_ERRORS: Final = """
    INSERT INTO error_logs (error_type, error_message, stack_trace, tenant_id,
                            workflow_execution_id)
    SELECT 'user_error', 'n' || n,
           (SELECT string_agg(md5(n || '-' || i || random()), '') FROM generate_series(1, 128) i),
           tenant_id, id
      FROM workflow_executions, generate_series(1, 20_000) n
"""


async def backup_gigabyte() -> dict[str, Any]:
    """Seconds to take a base backup of 1 GB of rows and to prove it by restoring it."""
    async with running() as flow:
        workflow_id = await flow.workflow({"a": await flow.node(ONE)}, [("", "a", "x")], "a")
        await flow.result(await flow.start(workflow_id, 1))
        size = await _fill(flow.suite.database_url)
        home = flow.suite.home.root
        env = {
            "PATH": os.environ["PATH"],
            "QFLOW_HOME": str(home),
            "QFLOW_BACKUP_FOLDER": str(home.parent / "backups"),
        }
        taken_s = await _command(env, "backup")
        proven_s = await _command(env, "verify-backup")
        stored = sum(
            path.stat().st_size for path in (home.parent / "backups").rglob("*") if path.is_file()
        )
    told = figure([taken_s + proven_s], "s", "lower", target=_TARGET_S, floor=0.0)
    return told | {
        "taken_s": round(taken_s, 1),
        "proven_s": round(proven_s, 1),
        "database_mb": round(size / 1e6),
        "stored_mb": round(stored / 1e6),
    }


async def _fill(url: str) -> int:
    db = await asyncpg.connect(url)
    try:
        await db.execute(_METRICS, timeout=_TIMEOUT_S)
        while (size := await db.fetchval("SELECT pg_database_size(current_database())")) < _BYTES:
            await db.execute(_ERRORS, timeout=_TIMEOUT_S)
    finally:
        await db.close()
    return int(size)


async def _command(env: Mapping[str, str], name: str) -> float:
    began = time.perf_counter()
    finished = await child.run(
        [sys.executable, "-m", "services.standalone", name],
        stdin=b"",
        env=env,
        timeout_s=_TIMEOUT_S,
        output_bytes_max=1 << 20,
        cwd=Path(__file__).parents[1],
        keep_stderr=True,
    )
    assert finished.code == 0, finished
    return time.perf_counter() - began
