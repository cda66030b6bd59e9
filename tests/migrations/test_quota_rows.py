"""Quotas: who sets them, who reads them, and how the last of one is given away once."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from tests.migrations.subject import Subject

_SET = (
    "INSERT INTO tenant_quotas (tenant_id, executions_running, cpu_s_per_day) VALUES (%s, %s, 10)"
)
_RESERVE = """
    SELECT refused_by, most, used, held_cpu_us, held_moved_bytes
      FROM engine_reserve(%s, %s, %s, NULL, %s, NULL, %s)
"""
_RESERVE_BEFORE = "SELECT refused_by, held_cpu_us FROM engine_reserve(%s, %s, %s, NULL, %s, NULL)"
_S = 1_000_000


def _reserve(
    s: Subject, tenant: UUID, cpu_us: int | None = None, moved_bytes: int | None = None
) -> tuple[Any, ...]:
    found = s.db.execute(_RESERVE, (tenant, uuid4(), uuid4(), cpu_us, moved_bytes)).fetchone()
    assert found is not None
    return tuple(found)


def test_a_tenant_reads_its_quota_and_only_the_deployment_sets_it(mended: Subject) -> None:
    """X14, X17, X20: no role in a tenant of one's own makes the quota larger."""
    admin, owner, other = mended.user(role="admin"), mended.user(), mended.user()
    with mended.acting(owner, "qflow_orchestrator"):
        assert not mended.does(lambda: mended.db.execute(_SET, (owner, 5)))
    with mended.acting(admin, "qflow_orchestrator", role="admin"):
        mended.db.execute(_SET, (owner, 5))
    with mended.acting(owner, "qflow_orchestrator"):
        assert 1 == mended.count("SELECT 1 FROM tenant_quotas")
        assert 0 == mended.count("UPDATE tenant_quotas SET executions_running = 6")
        assert not mended.does(lambda: mended.db.execute("DELETE FROM tenant_quotas"))
        assert not mended.does(lambda: mended.db.execute("SELECT 1 FROM tenant_usage"))
    for nobody in (other, None):
        with mended.acting(nobody, "qflow_orchestrator"):
            assert 0 == mended.count("SELECT 1 FROM tenant_quotas")


def test_what_is_left_of_a_day_is_promised_once(mended: Subject) -> None:
    """What open runs may still take is theirs; what they took of it counts for the day."""
    tenant = mended.user()
    mended.db.execute(
        "INSERT INTO tenant_quotas (tenant_id, cpu_s_per_day, updated_by) VALUES (%s, 10, %s)",
        (tenant, tenant),
    )
    with mended.acting(None, "qflow_orchestrator_engine"):
        assert (None, None, None, 6 * _S) == _reserve(mended, tenant, 6 * _S)[:4]
        assert ("cpu_seconds_per_day", 10 * _S, 6 * _S, 5 * _S) == _reserve(mended, tenant, 5 * _S)[
            :4
        ]
        mended.db.execute("UPDATE execution_budgets SET cpu_us_used = %s", (4 * _S,))
        mended.db.execute("UPDATE tenant_usage SET cpu_us = %s", (4 * _S,))
        assert "cpu_seconds_per_day" == _reserve(mended, tenant, 5 * _S)[0]
        # Over with less than it was promised: the rest is free again, and its row is swept.
        mended.db.execute("UPDATE execution_budgets SET over = true")
        assert None is _reserve(mended, tenant, 5 * _S)[0]
        assert 1 == mended.count("SELECT 1 FROM execution_budgets")


def test_a_promise_to_a_run_that_never_began_is_swept_after_a_minute(mended: Subject) -> None:
    tenant = mended.user()
    mended.db.execute(
        "INSERT INTO tenant_quotas (tenant_id, executions_running, updated_by) VALUES (%s, 1, %s)",
        (tenant, tenant),
    )
    assert None is _reserve(mended, tenant)[0]
    assert "executions_running" == _reserve(mended, tenant)[0]
    mended.db.execute("UPDATE execution_budgets SET created_at = now() - interval '2 minutes'")
    assert None is _reserve(mended, tenant)[0]


def test_the_quota_of_a_run_bounds_what_it_asks_for(mended: Subject) -> None:
    tenant = mended.user()
    mended.db.execute(
        "INSERT INTO tenant_quotas (tenant_id, execution_cpu_s, updated_by) VALUES (%s, 3, %s)",
        (tenant, tenant),
    )
    assert [3 * _S, 2 * _S, 3 * _S] == [
        _reserve(mended, tenant, asked)[3] for asked in (None, 2 * _S, 9 * _S)
    ]


def test_bytes_that_runs_move_are_promised_like_the_rest(mended: Subject) -> None:
    tenant = mended.user()
    mended.db.execute(
        "INSERT INTO tenant_quotas (tenant_id, moved_bytes_per_day, execution_moved_bytes,"
        " updated_by) VALUES (%s, 1000, 600, %s)",
        (tenant, tenant),
    )
    with mended.acting(None, "qflow_orchestrator_engine"):
        assert (None, 600) == _reserve(mended, tenant, moved_bytes=900)[::4]
        assert ("moved_bytes_per_day", 1000, 600) == _reserve(mended, tenant)[:3]
        mended.db.execute("UPDATE execution_budgets SET moved_bytes_used = 100, over = true")
        mended.db.execute("UPDATE tenant_usage SET moved_bytes = 100")
        assert (None, 600) == _reserve(mended, tenant)[::4]
        assert ("moved_bytes_per_day", 1000, 700) == _reserve(mended, tenant)[:3]


def test_the_release_before_reserves_by_the_name_that_it_knows(mended: Subject) -> None:
    """It is held to the quotas of today while both run."""
    tenant = mended.user()
    mended.db.execute(
        "INSERT INTO tenant_quotas (tenant_id, cpu_s_per_day, moved_bytes_per_day,"
        " execution_moved_bytes, updated_by) VALUES (%s, 10, 1000, 600, %s)",
        (tenant, tenant),
    )
    asked = (tenant, uuid4(), uuid4(), 2 * _S)
    with mended.acting(None, "qflow_orchestrator_engine"):
        assert (None, 2 * _S) == mended.db.execute(_RESERVE_BEFORE, asked).fetchone()
        assert 600 == mended.db.execute("SELECT moved_bytes FROM execution_budgets").fetchone()[0]  # type: ignore[index]
        again = (tenant, uuid4(), uuid4(), 2 * _S)
        assert "moved_bytes_per_day" == mended.db.execute(_RESERVE_BEFORE, again).fetchone()[0]  # type: ignore[index]
