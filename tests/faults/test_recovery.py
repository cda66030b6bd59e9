"""Going back, going over and going up: restores, replicas and upgrades with runs under way."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from qflow.telemetry.v1 import backup_service_pb2 as pb
from qflow.telemetry.v1.backup_service_pb2_grpc import BackupServiceStub

import migrations
from services.standalone.backup.at_home import server_of
from services.standalone.postgres import Binaries
from services.standalone.process import wait_until
from tests.support.client import COMPLETED, connected
from tests.support.invariants import broken
from tests.support.ledger import Ledger
from tests.support.suite import Suite
from tests.support.suite_fixtures import SuiteFactory, discard

pytestmark = pytest.mark.timeout(240)
_ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    folder = Path(tempfile.mkdtemp(prefix="qfl-", dir="/tmp"))
    yield Ledger(folder)
    discard(folder)


@pytest.fixture
def backups() -> Iterator[dict[str, str]]:
    """Give the settings of a folder for backups."""
    folder = Path(tempfile.mkdtemp(prefix="qfb-", dir="/tmp"))
    yield {"QFLOW_BACKUP_FOLDER": str(folder), "QFLOW_BACKUP_SHIP_INTERVAL_S": "1"}
    discard(folder)


@pytest.fixture
def other_home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="qff-", dir="/tmp"))
    yield folder
    discard(folder)


def begin(home: Path, *arguments: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "services.standalone", *arguments],
        env={**os.environ, "QFLOW_HOME": str(home), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def command(home: Path, *arguments: str, **env: str) -> str:
    child = begin(home, *arguments, **env)
    said, _ = child.communicate()
    assert child.returncode == 0, said
    return said


async def begun_run(suite: Suite, ledger: Ledger, run: str) -> str:
    """Start a run and give its id when its second node waits at the gate."""
    async with connected(suite) as client:
        workflow = await ledger.workflow(client)
        execution_id = await client.start(workflow, {"run": run, "start": 10})
        ledger.wait_begun(run)
    return execution_id


async def completes(suite: Suite, ledger: Ledger, run: str, execution_id: str) -> None:
    """Open the gate of a run that was under way, and see it and another to their ends."""
    async with connected(suite) as client:
        ledger.open_gate(run)
        execution = await client.finished(execution_id)
        assert execution.status == COMPLETED, execution.error
        assert json.loads(execution.output_json) == {"total": 14}
        ledger.open_gate(f"{run}-after")
        after = await client.run(
            await ledger.workflow(client), {"run": f"{run}-after", "start": 10}
        )
        assert after.status == COMPLETED
    with suite.sql() as db:
        assert broken(db) == {}


async def until_proven(suite: Suite, *, count: int = 1) -> None:
    """Wait until so many backups were taken and proven."""
    async with suite.channel("telemetry") as channel:
        stub: Any = BackupServiceStub(channel)
        for _ in range(300):
            answer = await stub.ListBackups(pb.ListBackupsRequest(), timeout=30)
            states = [each.state for each in answer.backups]
            if states.count(pb.BACKUP_STATE_VERIFIED) == count:
                return
            assert pb.BACKUP_STATE_FAILED not in states, answer.backups
            await asyncio.sleep(0.2)  # child processes work on it
    raise AssertionError(states)


def until_replicated(db: psycopg.Connection, name: str) -> None:
    row = db.execute("SELECT pg_current_wal_lsn()").fetchone()
    assert row is not None

    def has_all() -> bool:
        asked = "SELECT write_lsn >= %s FROM pg_stat_replication WHERE application_name = %s"
        return db.execute(asked, (row[0], name)).fetchone() == (True,)

    assert wait_until(has_all, timeout_s=30.0), f"{name} did not receive all"


@pytest.mark.slow
async def test_a_suite_goes_back_to_a_moment_before_a_mistake(
    suite_factory: SuiteFactory, ledger: Ledger, backups: dict[str, str]
) -> None:
    """F4, F19, E20: with a run under way at that moment, which then goes on.

    The suite takes and proves its first backup by itself, and archives what is committed after it,
    over a kill of telemetry too.
    """
    suite = suite_factory(env={**ledger.env, **backups})
    home = suite.home.root
    await until_proven(suite)
    suite.wait_restarted("telemetry", suite.kill_service("telemetry"))
    execution_id = await begun_run(suite, ledger, "back")
    with suite.sql() as db:
        moment = db.execute("SELECT clock_timestamp()").fetchone()
        assert moment is not None
        db.execute("UPDATE workflows SET deleted_at = clock_timestamp()")
        until_replicated(db, "qflow_archive")
    suite.kill()
    refused = begin(home, "recover", "--to", moment[0].isoformat(), **backups)
    assert "contains a database; --replace keeps" in refused.communicate()[0]
    assert refused.returncode == 1
    said = command(home, "recover", "--to", moment[0].isoformat(), "--replace", **backups)
    assert "the database before is kept in" in said
    suite.start()
    with suite.sql() as db:
        deleted = "SELECT count(*) FROM workflows WHERE deleted_at IS NOT NULL"
        assert db.execute(deleted).fetchone() == (0,)
    await completes(suite, ledger, "back", execution_id)
    # Backups go on from the new history by themselves.
    await until_proven(suite, count=2)


@pytest.mark.slow
async def test_a_dump_becomes_the_database_of_another_home(
    suite_factory: SuiteFactory, ledger: Ledger, backups: dict[str, str], other_home: Path
) -> None:
    """E20: its secrets are the other home's own; nothing of the first home is needed."""
    suite = suite_factory(env=ledger.env)
    ledger.open_gate("dumped")
    async with connected(suite) as client:
        workflow = await ledger.workflow(client)
        execution = await client.run(workflow, {"run": "dumped", "start": 10})
    command(suite.home.root, "backup", "--dump", **backups)
    suite.kill()
    command(other_home, "restore", **backups)
    other = suite_factory(env=ledger.env, folder=other_home)
    async with connected(other) as client:
        again = await client.get(execution.id)
        assert again.output_json == execution.output_json
    assert other.owner_token


@pytest.mark.slow
async def test_a_synchronous_replica_that_is_promoted_has_every_commit(
    suite_factory: SuiteFactory, ledger: Ledger, other_home: Path
) -> None:
    """Recovery point 0: what was answered before the machine was lost is there."""
    suite = suite_factory(env=ledger.env)
    url = migrations.login_urls(suite.database_url, suite.home.root)["qflow_backup"]
    address = suite.home.secrets / "primary.url"
    address.write_text(url, "utf-8")
    replica = begin(other_home, "replica", "--of", str(address))
    try:
        assert replica.stdout is not None
        assert "following" in replica.stdout.readline()
        with suite.sql() as db:
            db.execute("ALTER SYSTEM SET synchronous_standby_names = 'qflow_replica'")
            db.execute("SELECT pg_reload_conf()")
            sync = "SELECT sync_state FROM pg_stat_replication WHERE application_name = %s"
            assert wait_until(
                lambda: db.execute(sync, ("qflow_replica",)).fetchone() == ("sync",),
                timeout_s=30.0,
            )
        execution_id = await begun_run(suite, ledger, "over")
        suite.kill_service("postgres")  # with everything, as a machine does that is lost
        suite.kill()
        command(other_home, "promote")
    finally:
        replica.kill()
        replica.communicate()
    other = suite_factory(env=ledger.env, folder=other_home)
    await completes(other, ledger, "over", execution_id)


@pytest.mark.slow
async def test_a_home_of_the_version_before_is_upgraded_with_a_run_under_way(
    suite_factory: SuiteFactory, ledger: Ledger
) -> None:
    """F37: the schema moves on below it, and the run completes."""
    suite = suite_factory(env=ledger.env)
    execution_id = await begun_run(suite, ledger, "up")
    suite.kill()
    with embedded(suite) as url:
        head = migrations.current(url)
        migrations.downgrade(url, revision="-1")
        assert migrations.current(url) != head
    suite.start()
    assert migrations.current(suite.database_url) == head
    await completes(suite, ledger, "up", execution_id)


@pytest.mark.slow
async def test_data_of_a_later_version_are_refused_and_left_as_they_are(
    suite_factory: SuiteFactory,
) -> None:
    suite = suite_factory()
    suite.stop()
    with embedded(suite) as url, psycopg.connect(url, autocommit=True) as db:
        db.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(AssertionError, match="the data are of a later version of Qflow"):
        suite.start()
    with embedded(suite) as url:
        with psycopg.connect(url) as db:
            assert db.execute("SELECT version_num FROM alembic_version").fetchone() == ("9999",)


@pytest.mark.slow
async def test_a_home_of_postgresql_15_is_taken_to_the_suites_own_with_a_run_under_way(
    suite_factory: SuiteFactory, ledger: Ledger
) -> None:
    """Refused until it is asked for; then all that was there is there, and the old folder too."""
    found = fifteen()
    if Binaries.find(os.environ).major <= 15:
        pytest.skip("the suite's own PostgreSQL is not later")
    old = {"QFLOW_POSTGRES_BIN": found}
    suite = suite_factory(env={**ledger.env, **old})
    execution_id = await begun_run(suite, ledger, "fifteen")
    suite.kill()
    now = suite_factory(env=ledger.env, folder=suite.home.root, start=False)
    with pytest.raises(AssertionError, match=r"made by PostgreSQL 15.*upgrade-postgres --from"):
        now.start()
    said = command(suite.home.root, "upgrade-postgres", "--from", found)
    assert "the one before is kept in" in said
    assert (
        "nothing to upgrade"
        in begin(
            suite.home.root, "upgrade-postgres", "--from", str(Binaries.find(os.environ).folder)
        ).communicate()[0]
    )
    now.start()
    with now.sql() as db:
        assert db.info.server_version // 10000 == Binaries.find(os.environ).major
    await completes(now, ledger, "fifteen", execution_id)


def fifteen() -> str:
    """Give the folder of PostgreSQL 15's programs."""
    program = _ROOT / ".ci" / "postgres"
    told = subprocess.run([program, "15"], check=True, capture_output=True, text=True)
    return told.stdout.strip()


@contextmanager
def embedded(suite: Suite) -> Iterator[str]:
    """Run a suite's database alone, and give its address."""
    server = server_of(suite.home, Binaries.find(os.environ))
    try:
        server.start()
        yield server.url()
    finally:
        server.stop()
