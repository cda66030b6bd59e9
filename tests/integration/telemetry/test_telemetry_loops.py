"""What telemetry does by itself: measure each run once, sample health, forget what is due."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from uuid import UUID

import asyncpg
import psycopg
import pytest
from structlog.testing import capture_logs

from services.kit.errors import Unavailable
from services.kit.loops import pause, repeat
from services.kit.pg import Pool
from services.telemetry.domain.pace import BATCH_BUSY_MIN
from services.telemetry.domain.retention import RULES
from services.telemetry.loops.metrics import follow_finished
from services.telemetry.usecases.figures import Work
from services.telemetry.usecases.measure import (
    READER,
    measure_finished,
    measure_stopped,
    orchestrators_rest,
)
from services.telemetry.usecases.retain import forget_all
from tests import factories
from tests.integration.telemetry.conftest import Runs, Telemetry

KEEP = {rule.subject: timedelta(days=rule.keep_days) for rule in RULES if rule.keep_days}


def measured(sql: psycopg.Connection) -> dict[str, int]:
    rows = sql.execute(
        "SELECT workflow_execution_id::text, count(*) FROM performance_metrics GROUP BY 1"
    ).fetchall()
    return dict(rows)


async def test_every_finished_run_is_measured_once(
    maint: Pool, runs: Runs, sql: psycopg.Connection
) -> None:
    made = {str(runs.finished(ago=ago)) for ago in ("3 days", "1 min", "0 s")}
    assert 3 == await measure_finished(maint)
    assert 0 == await measure_finished(maint)
    assert dict.fromkeys(made, 5) == measured(sql)
    assert [(READER,)] == sql.execute("SELECT name FROM telemetry_watermarks").fetchall()


def values(sql: psycopg.Connection, run: UUID) -> dict[str, tuple[float, str]]:
    found = sql.execute(
        "SELECT metric_name, metric_value::float8, metric_unit FROM performance_metrics"
        " WHERE workflow_execution_id = %s",
        (run,),
    ).fetchall()
    return {name: (value, unit) for name, value, unit in found}


async def test_a_finished_run_is_measured_by_its_rows(
    maint: Pool, runs: Runs, sql: psycopg.Connection
) -> None:
    """B76: each by its own, and ids are in the order of the ends."""
    usage = '{"cpu_us": 2500000, "memory_peak_bytes": 1099511627776}'
    large, other = runs.finished(ago="1 s", nodes=7, usage=usage), runs.finished(nodes=0)
    assert 2 == await measure_finished(maint)
    assert {
        "execution_node_count": (7, "count"),
        "execution_retry_count": (7, "count"),
        "execution_queue_ms": (5, "ms"),
        "execution_duration_ms": (100, "ms"),
        "execution_cpu_seconds": (2.5, "s"),
        "execution_memory_peak_bytes": (2**40, "bytes"),
    } == values(sql, large)
    assert (0, "count") == values(sql, other)["execution_node_count"]
    assert [large] * 6 + [other] * 5 == [
        run
        for (run,) in sql.execute(
            "SELECT workflow_execution_id FROM performance_metrics ORDER BY id"
        )
    ]
    assert [(runs.owner.id,)] == sql.execute(
        "SELECT DISTINCT tenant_id FROM performance_metrics"
    ).fetchall()


@pytest.mark.parametrize("usage", ['{"cpu_us": null}', '{"cpu_us": "much"}', "{}", "null"])
async def test_what_a_run_does_not_say_is_left_out(
    usage: str, maint: Pool, runs: Runs, sql: psycopg.Connection
) -> None:
    never_begun = runs.finished(status="cancelled", nodes=0, begun=False, usage=usage)
    assert 1 == await measure_finished(maint)
    assert {
        "execution_node_count": (0, "count"),
        "execution_retry_count": (0, "count"),
        "execution_queue_ms": (105, "ms"),
    } == values(sql, never_begun)


async def test_a_clock_that_was_set_back_gives_no_negative_span(
    maint: Pool, runs: Runs, sql: psycopg.Connection
) -> None:
    """I6, F33."""
    run = runs.finished(queued_after="1 h")
    await measure_finished(maint)
    assert (0, "ms") == values(sql, run)["execution_queue_ms"]


async def test_a_run_that_is_removed_while_it_is_measured_takes_nothing_else_with_it(
    maint: Pool, runs: Runs, sql: psycopg.Connection
) -> None:
    """Nothing of it is kept, and the others are measured the next time."""
    stays, goes = str(runs.finished(ago="1 min")), runs.finished(ago="0 s")
    with sql.transaction():
        sql.execute("DELETE FROM workflow_executions WHERE id = %s", (goes,))
        measuring = asyncio.ensure_future(measure_finished(maint))
        waits = "SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"
        while not sql.execute(waits).fetchall():
            assert not measuring.done()
            await asyncio.sleep(0.01)
    assert 1 == await measuring
    assert 1 == await measure_finished(maint)
    assert {stays: 5} == measured(sql)


async def test_nodes_are_measured_where_that_is_asked_for(
    maint: Pool, runs: Runs, sql: psycopg.Connection
) -> None:
    """I24: each of them, by its own row; what a row does not say is left out."""
    runs.finished(nodes=3)
    await measure_finished(maint)
    assert (
        []
        == sql.execute(
            "SELECT 1 FROM performance_metrics WHERE node_execution_id IS NOT NULL"
        ).fetchall()
    )
    run = runs.finished(nodes=1)
    sql.execute(
        "INSERT INTO node_executions (workflow_execution_id, node_id, node_type, status,"
        " started_at, completed_at, execution_order, output_data, resource_usage)"
        " SELECT id, 'n1', 'python', 'completed', started_at, completed_at, 1, '{}',"
        " '{\"cpu_us\": 2000000}' FROM workflow_executions WHERE id = %s",
        (run,),
    )
    assert 1 == await measure_finished(maint, with_nodes=True)
    found = sql.execute(
        "SELECT n.node_id, m.metric_name, m.metric_value::float8, m.workflow_execution_id"
        " FROM performance_metrics m JOIN node_executions n ON n.id = m.node_execution_id"
        " ORDER BY 1, 2"
    ).fetchall()
    assert [
        ("n0", "node_duration_ms", 100.0, run),
        ("n1", "node_cpu_seconds", 2.0, run),
        ("n1", "node_duration_ms", 100.0, run),
    ] == found


async def test_a_sandbox_that_stopped_is_measured_once(
    maint: Pool, owner: factories.User, sql: psycopg.Connection
) -> None:
    assert 0 == await measure_stopped(maint)
    for name, stopped in (("over", "now()"), ("open", "NULL")):
        sql.execute(
            "INSERT INTO containers (container_id, python_version, status, tenant_id, created_by,"
            " started_at, stopped_at, resource_usage) VALUES (%s, '3.11', %s, %s, %s,"
            f" now() - interval '3 s', {stopped}, %s)",
            (
                name,
                "removed" if name == "over" else "running",
                owner.id,
                owner.id,
                '{"cpu_us": 500000, "memory_peak_bytes": 1024}',
            ),
        )
    assert 1 == await measure_stopped(maint)
    assert 0 == await measure_stopped(maint)
    assert [
        ("container_cpu_seconds", 0.5, owner.id),
        ("container_lifetime_ms", 3000.0, owner.id),
        ("container_memory_peak_bytes", 1024.0, owner.id),
    ] == sql.execute(
        "SELECT metric_name, metric_value::float8, tenant_id FROM performance_metrics ORDER BY 1"
    ).fetchall()


async def test_two_at_once_measure_each_run_once(
    maint: Pool, runs: Runs, sql: psycopg.Connection
) -> None:
    made = {str(runs.finished()) for _ in range(20)}
    await asyncio.gather(*(measure_finished(maint) for _ in range(3)))
    assert dict.fromkeys(made, 5) == measured(sql)


async def test_a_run_that_was_committed_after_one_that_ended_later_is_not_missed(
    maint: Pool, runs: Runs, sql: psycopg.Connection
) -> None:
    runs.finished(ago="1 s")
    await measure_finished(maint)
    late = runs.finished(ago="31 s")
    assert 1 == await measure_finished(maint)
    assert str(late) in measured(sql)


async def test_a_run_that_is_open_or_being_purged_is_not_measured(
    maint: Pool, runs: Runs, sql: psycopg.Connection
) -> None:
    sql.execute(
        "INSERT INTO workflow_executions (workflow_id, workflow_version, status, shard, tenant_id,"
        " created_by, started_at) VALUES (%s, 1, 'running', 0, %s, %s, now())",
        (runs.workflow_id, runs.owner.id, runs.owner.id),
    )
    purged = runs.finished()
    sql.execute("UPDATE workflow_executions SET purge_started_at = now() WHERE id = %s", (purged,))
    assert 0 == await measure_finished(maint)


async def test_the_running_service_measures_by_itself(
    telemetry: Telemetry, runs: Runs, sql: psycopg.Connection
) -> None:
    execution = runs.finished()
    async with asyncio.timeout(30):
        while str(execution) not in measured(sql):  # noqa: ASYNC110  # rows give no signal
            await asyncio.sleep(0.05)


async def test_expired_records_go_and_only_they(
    maint: Pool, runs: Runs, sql: psycopg.Connection
) -> None:
    """I22, G6."""
    old = [runs.finished(ago="31 days", status=status) for status in ("completed", "failed")]
    kept = runs.finished(ago="29 days")
    await measure_finished(maint)
    sql.execute(
        "INSERT INTO workflow_executions (workflow_id, workflow_version, status, shard, tenant_id,"
        " created_by, started_at, created_at) VALUES (%s, 1, 'running', 0, %s, %s, now(),"
        " now() - interval '60 days')",
        (runs.workflow_id, runs.owner.id, runs.owner.id),
    )
    sql.execute("UPDATE user_sessions SET expires_at = now() - interval '1 s'")
    sql.execute(
        "INSERT INTO system_health (node_name, recorded_at) SELECT 'x', now() - d * interval"
        " '1 day' FROM generate_series(0, 39) d"
    )
    removed = await forget_all(maint, keep=KEEP)
    # What the runs summed up to is of hours that are long over.
    assert {"executions", "workflow_hours", "sessions", "system_health"} == set(removed)
    assert 10 == removed["system_health"]
    # Two runs, each with two nodes and five metrics.
    assert 2 * (1 + 2 + 5) == removed["executions"]
    left = sql.execute("SELECT id, status FROM workflow_executions").fetchall()
    assert kept in {row[0] for row in left}
    assert not {*old} & {row[0] for row in left}
    assert {"completed", "running"} == {row[1] for row in left}
    assert {} == dict(await forget_all(maint, keep=KEEP))


async def test_what_does_not_fit_in_a_pass_is_told_and_left_for_the_next(
    maint: Pool, sql: psycopg.Connection
) -> None:
    """S3."""
    sql.execute(
        "INSERT INTO system_health (node_name, recorded_at)"
        " SELECT 'x', now() - interval '99 days' FROM generate_series(1, %s)",
        (BATCH_BUSY_MIN + 1,),
    )
    with capture_logs() as lines:
        assert {"system_health": BATCH_BUSY_MIN} == dict(
            await forget_all(maint, keep=KEEP, batches_max=1)
        )
    assert "retention_incomplete" in [line["event"] for line in lines]
    assert {"system_health": 1} == dict(await forget_all(maint, keep=KEEP))


async def test_a_kind_that_cannot_be_forgotten_holds_up_none_after_it(
    maint: Pool, sql: psycopg.Connection
) -> None:
    sql.execute("ALTER FUNCTION cleanup_old_executions RENAME TO gone")
    sql.execute("INSERT INTO system_health (node_name, recorded_at) VALUES ('x', '2020-01-01')")
    with capture_logs() as lines, pytest.raises(asyncpg.UndefinedFunctionError):
        await forget_all(maint, keep=KEEP)
    assert [(0,)] == sql.execute("SELECT count(*) FROM system_health").fetchall()
    [failed] = [line for line in lines if line["event"] == "retention_failed"]
    assert ("executions", "42883") == (failed["subject"], failed["sqlstate"])


async def test_nothing_more_is_tried_while_the_database_is_away(maint: Pool) -> None:
    """F11."""
    await maint.close()
    with capture_logs() as lines, pytest.raises(asyncpg.InterfaceError):
        await forget_all(maint, keep=KEEP)
    assert [] == lines


@pytest.mark.parametrize("telemetry", [{"QFLOW_RETENTION_INTERVAL_S": "1"}], indirect=True)
@pytest.mark.usefixtures("telemetry")
async def test_the_running_service_forgets_by_itself_and_again(sql: psycopg.Connection) -> None:
    """G6."""
    async with asyncio.timeout(30):
        for _ in range(2):
            sql.execute(
                "INSERT INTO system_health (node_name, recorded_at) VALUES ('old', '2020-01-01')"
            )
            while sql.execute("SELECT FROM system_health WHERE node_name = 'old'").fetchall():  # noqa: ASYNC110  # rows give no signal
                await asyncio.sleep(0.05)


async def test_one_process_forgets_at_a_time(maint: Pool, sql: psycopg.Connection) -> None:
    sql.execute(
        "INSERT INTO system_health (node_name, recorded_at)"
        " SELECT 'x', now() - interval '99 days' FROM generate_series(1, 10)"
    )
    with sql.transaction():
        sql.execute(
            "SELECT pg_advisory_xact_lock(hashtext('qflow.telemetry'), hashtext('retention'))"
        )
        assert {} == dict(await forget_all(maint, keep=KEEP))
    assert {"system_health": 10} == dict(await forget_all(maint, keep=KEEP))


async def test_a_loop_outlives_the_absence_of_the_database() -> None:
    """F11, F12."""
    stop, steps = asyncio.Event(), 0
    faults = [asyncpg.AdminShutdownError("x"), Unavailable("GONE", "x"), ConnectionRefusedError()]

    async def step() -> float:
        nonlocal steps
        steps += 1
        if steps == 1:
            raise faults[0]
        stop.set()
        return 0.0

    with capture_logs() as lines:
        await repeat(stop, step, name="x")
    assert ["loop_interrupted", "loop_resumed"] == [line["event"] for line in lines]


async def test_a_mistake_of_ours_ends_the_loop_loudly() -> None:
    async def step() -> float:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await repeat(asyncio.Event(), step, name="x")


async def test_a_waiting_loop_stops_at_once(maint: Pool) -> None:
    stop = asyncio.Event()
    loop = asyncio.create_task(follow_finished(maint, Work(), asyncio.Event(), stop))
    stop.set()
    async with asyncio.timeout(5):
        await loop
    assert await pause(stop, 60)


async def test_metrics_rest_with_the_orchestrators_and_come_back_with_them(
    maint: Pool, runs: Runs, sql: psycopg.Connection
) -> None:
    work, stirred, stop = Work(), asyncio.Event(), asyncio.Event()
    loop = asyncio.create_task(follow_finished(maint, work, stirred, stop))
    async with asyncio.timeout(30):
        while not stirred._waiters:  # noqa: ASYNC110  # it has looked, and waits
            await asyncio.sleep(0.05)
    made = runs.finished()
    stirred.set()
    async with asyncio.timeout(30):
        while not work.measured:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert [str(made)] == list(measured(sql))
    stop.set()
    await loop


async def test_sums_wait_for_more_runs_and_come_when_no_more_end(
    maint: Pool, runs: Runs, sql: psycopg.Connection
) -> None:
    """To add one run to the sums costs as much as to add hundreds."""

    def summed_up() -> int:
        return len(sql.execute("SELECT FROM rolled_up_executions").fetchall())

    work, stirred, stop = Work(), asyncio.Event(), asyncio.Event()
    runs.finished()
    loop = asyncio.create_task(follow_finished(maint, work, stirred, stop))
    async with asyncio.timeout(30):
        while not summed_up():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        runs.finished()
        stirred.set()
        while work.measured < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert 1 == summed_up()
        while summed_up() < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    stop.set()
    await loop


async def test_an_orchestrator_with_a_lease_is_at_work(
    maint: Pool, sql: psycopg.Connection
) -> None:
    sql.execute(
        "INSERT INTO engine_members (id, epoch, state, host, formats, expires_at, started_at)"
        " VALUES (gen_random_uuid(), 1, 'live', 'here', '{1}', now() + interval '9 s', now())"
    )
    assert not await orchestrators_rest(maint)
    sql.execute("UPDATE engine_members SET state = 'idle', expires_at = NULL")
    assert await orchestrators_rest(maint)


@pytest.mark.usefixtures("telemetry")
async def test_the_service_may_write_nothing_but_its_own(
    maint: Pool, sql: psycopg.Connection, runs_of: Callable[[factories.User], Runs]
) -> None:
    runs_of(factories.user(sql))
    for table in ("workflow_versions", "python_node_versions", "users", "service_tokens"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await maint.execute(f"DELETE FROM {table}")
    for table in ("workflows", "python_nodes"):  # what was deleted long ago alone
        assert "DELETE 0" == await maint.execute(f"DELETE FROM {table}")
