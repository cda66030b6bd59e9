"""Tables that change most keep to the size of what they hold, and leases are rewritten in place."""

from __future__ import annotations

import pytest

from bench import growth
from bench.flow import running

pytestmark = pytest.mark.slow


async def test_hot_tables_stay_below_twice_what_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """E10, F35, I30: an hour's rhythm at a sixtieth: work, retention and vacuum in seconds."""
    # So much is there that the 500 dead rows that vacuum lets lie are the smaller part.
    monkeypatch.setattr(growth, "_KEEP_S", 30)
    monkeypatch.setattr(growth, "_PASS_S", 1.0)
    monkeypatch.setattr(growth, "_SMALL_BYTES", 500_000)
    async with running() as flow:
        with flow.suite.sql() as db:
            db.execute("ALTER SYSTEM SET autovacuum_naptime = '1 s'")
            db.execute("SELECT pg_reload_conf()")
        found = await growth.grown(flow, span_s=75.0)
    assert found["runs"] >= 3_500
    assert {"node_executions", "workflow_executions"} <= set(found["ratios"])
    assert max(found["ratios"].values()) <= 2.0, found
    assert found["lease_updates"] >= 20
    assert found["lease_hot_share"] >= 0.9, found
