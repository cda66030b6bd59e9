"""The lease, files and their bytes, and what a killed runner leaves."""

from __future__ import annotations

import asyncio
import os
import subprocess
import uuid
from pathlib import Path
from typing import Any, cast

import pytest

from services.kit.ids import uuid7
from services.kit.pg import Pool, open_pool, transaction
from services.orchestrator.storage.members import lost_runners
from services.runner.domain.attempts import AttemptRequest
from services.runner.domain.limits import Limits
from services.runner.gateways.file_port import FileCorruptError
from services.runner.gateways.file_store import FileStore
from services.runner.gateways.sandbox.cgroups import CgroupHost, hand_down
from services.runner.storage.members import join as members_join
from services.runner.usecases.files import remove_deleted, remove_unknown
from services.runner.usecases.membership import LeaseLost, Membership, Offer
from services.runner.usecases.outputs import Outputs
from services.standalone.process import wait_until
from tests import factories
from tests.support.database import Database

OFFER = Offer(host="here", tier="T2", slots=1, pythons=["3.11"])


async def test_a_lease_is_held_while_there_is_work_and_rests_without(database: Database) -> None:
    """Idle is silent: no heartbeat without attempts."""
    pool = await open_pool(database.url("qflow_runner_engine"), application_name="t", size_max=2)
    member = Membership(pool, OFFER, ttl_s=2, heartbeat_s=0.1)
    await member.begin()
    stop = asyncio.Event()
    work = True

    async def on_lost() -> None:
        raise AssertionError

    keeping = asyncio.create_task(member.keep(stop, busy=lambda: work, on_lost=on_lost))
    try:
        with database.connect() as sql:

            def held() -> bool:
                return member.held

            def state() -> str:
                [(found,)] = sql.execute("SELECT state FROM runner_members").fetchall()
                return str(found)

            assert "idle" == state()
            await member.hold()
            assert held()
            assert "live" == state()
            await asyncio.sleep(2.5)  # longer than the lease: only renewals keep it
            assert held()
            [(fresh,)] = sql.execute(
                "SELECT expires_at > clock_timestamp() FROM runner_members"
            ).fetchall()
            assert fresh
            work = False
            async with asyncio.timeout(30):
                while state() != "idle":  # noqa: ASYNC110 - the database tells
                    await asyncio.sleep(0.02)
            assert not held()
            await member.hold()
            assert "live" == state()
    finally:
        stop.set()
        await keeping
        await pool.close()


async def test_without_renewal_everything_ends_before_the_lease_does(database: Database) -> None:
    """F12: at two thirds of the lease, by its own clock; then it joins as another."""
    pool = await open_pool(database.url("qflow_runner_engine"), application_name="t", size_max=2)
    ttl_s, now_s = 1.5, 1000.0
    member = Membership(pool, OFFER, ttl_s=ttl_s, heartbeat_s=0.2, clock=lambda: now_s)
    await member.begin()
    before = member.incarnation
    stop, lost = asyncio.Event(), asyncio.Event()
    late: list[asyncio.Task[None]] = []

    async def on_lost() -> None:
        late.append(asyncio.create_task(member.hold()))  # what came in before its stream ended
        await asyncio.sleep(0)
        lost.set()

    keeping = asyncio.create_task(
        member.keep(stop, busy=lambda: not lost.is_set(), on_lost=on_lost)
    )
    try:
        with database.connect() as sql:
            await member.hold()
            sql.execute("REVOKE UPDATE ON runner_members FROM qflow_runner_engine")
            sql.execute("REVOKE UPDATE (state, updated_at) ON runner_members FROM PUBLIC")
            now_s += 0.6 * ttl_s
            assert member.held
            now_s += 0.1 * ttl_s
            async with asyncio.timeout(30):
                await lost.wait()
            assert not member.joined.is_set()
            sql.execute("GRANT UPDATE ON runner_members TO qflow_runner_engine")
            async with asyncio.timeout(30):
                await member.joined.wait()
            assert member.incarnation != before
            with pytest.raises(LeaseLost):  # it was given to the incarnation that is over
                await late[0]
            rows = sql.execute("SELECT incarnation, state FROM runner_members").fetchall()
            assert {(before, "fenced"), (member.incarnation, "idle")} == set(rows)
    finally:
        stop.set()
        await keeping
        await pool.close()


async def test_a_runner_that_was_fenced_while_it_rested_comes_back_when_it_is_told(
    database: Database,
) -> None:
    """F12: its row says so; it must not be refused for ever."""
    pool = await open_pool(database.url("qflow_runner_engine"), application_name="t", size_max=2)
    member = Membership(pool, OFFER, ttl_s=0.6, heartbeat_s=0.1)
    await member.begin()
    before = member.incarnation
    stop, lost = asyncio.Event(), asyncio.Event()

    async def on_lost() -> None:
        lost.set()

    keeping = asyncio.create_task(member.keep(stop, busy=lambda: False, on_lost=on_lost))
    try:
        with database.connect() as sql:
            sql.execute("UPDATE runner_members SET state = 'fenced'")
            member.doubt()
            async with asyncio.timeout(30):
                await lost.wait()
                await member.joined.wait()
            assert member.incarnation != before
    finally:
        stop.set()
        await keeping
        await pool.close()


async def test_how_a_runner_ended_is_what_the_orchestrator_reads(database: Database) -> None:
    """F8, F12: who left in order had answered all that it began; a fence stays what it is."""
    pool = await open_pool(database.url("qflow_runner_engine"), application_name="t", size_max=2)
    sweeping = await open_pool(
        database.url("qflow_orchestrator_engine"), application_name="t", size_max=1
    )
    members = [Membership(pool, OFFER, ttl_s=9.0, heartbeat_s=3.0) for _ in range(4)]
    for member in members:
        await members_join(pool, member.incarnation, "here", "T2", 1, ["3.11"])
    left, broken_off, fenced, here = members
    with database.connect() as sql:
        sql.execute(
            "UPDATE runner_members SET state = 'fenced' WHERE incarnation = %s",
            (fenced.incarnation,),
        )
    await left.end(in_order=True)
    await broken_off.end(in_order=False)
    await fenced.end(in_order=True)
    async with transaction(sweeping) as db:
        ids = [each.incarnation for each in members]
        lost = await lost_runners(db, ids, silent=[])
    assert lost == {
        left.incarnation: True,
        broken_off.incarnation: False,
        fenced.incarnation: False,
    }
    await pool.close()
    await sweeping.close()
    assert here.incarnation not in lost


async def test_a_successor_buries_those_before_it(database: Database) -> None:
    """I18: their rows and their sandboxes' rows are closed at once."""
    pool = await open_pool(database.url("qflow_runner_engine"), application_name="t", size_max=2)
    first = Membership(pool, OFFER, ttl_s=60, heartbeat_s=1)
    await first.begin()
    await first.hold()
    with database.connect() as sql:
        owner = factories.user(sql)
        sql.execute(
            "INSERT INTO containers (container_id, python_version, status, tenant_id, created_by,"
            " runner_incarnation, started_at) VALUES ('proc:1', '3.11', 'running', %s, %s, %s,"
            " now())",
            (owner.id, owner.id, first.incarnation),
        )
        await Membership(pool, OFFER, ttl_s=60, heartbeat_s=1).begin()
        states = sql.execute("SELECT state FROM runner_members ORDER BY 1").fetchall()
        assert [("fenced",), ("idle",)] == states
        assert [("stopped",)] == sql.execute("SELECT status FROM containers").fetchall()
    await pool.close()


async def test_the_bytes_of_a_deleted_file_go_after_its_row(
    database: Database, tmp_path: Path
) -> None:
    """I20, S20."""
    pool = await open_pool(database.url("qflow_runner_engine"), application_name="t", size_max=2)
    store = FileStore(tmp_path)
    file_id = uuid.uuid4()
    with database.connect() as sql:
        owner = factories.user(sql)
        size, sha256 = store.write(tenant_id=owner.id, file_id=file_id, parts=[b"1", b"2"])
        key = f"{owner.id}/{file_id}"
        sql.execute(
            "INSERT INTO files (id, filename, original_filename, file_path, file_size_bytes,"
            " hash_sha256, tenant_id, created_by) VALUES (%s, 'a', 'a', %s, %s, %s, %s, %s)",
            (file_id, key, size, sha256, owner.id, owner.id),
        )
        assert 0 == await remove_deleted(pool, store)
        assert b"12" == store.read(key, size_bytes=2, sha256=sha256)
        sql.execute("DELETE FROM files")
        assert 1 == await remove_deleted(pool, store)
        assert 0 == await remove_deleted(pool, store)
        with pytest.raises(FileCorruptError):
            store.read(key, size_bytes=2, sha256=sha256)
    await pool.close()


async def test_bytes_whose_row_a_kill_prevented_are_removed_once_they_are_old(
    database: Database, tmp_path: Path
) -> None:
    """CP11, I20: of a file, and of an upload; what has a row stays, and what is new."""
    pool = await open_pool(database.url("qflow_runner_engine"), application_name="t", size_max=2)
    store = FileStore(tmp_path)
    kept, left, partial, uploading, new = (uuid.uuid4() for _ in range(5))
    with database.connect() as sql:
        owner = factories.user(sql)
        for file_id in (kept, left, new):
            store.write(tenant_id=owner.id, file_id=file_id, parts=[b"1"])
        for file_id in (partial, uploading):
            writer = store.append(f"{owner.id}/{file_id}", offset=0, size_bytes=2)
            writer.write(b"1")
            writer.close()
        sql.execute(
            "INSERT INTO files (id, filename, original_filename, file_path, file_size_bytes,"
            " tenant_id, created_by) VALUES (%s, 'a', 'a', %s, 1, %s, %s)",
            (kept, f"{owner.id}/{kept}", owner.id, owner.id),
        )
        sql.execute(
            "INSERT INTO file_uploads (id, filename, mime_type, file_size_bytes, tenant_id,"
            " created_by, expires_at) VALUES (%s, 'a', 'a/b', 2, %s, %s, 'tomorrow')",
            (uploading, owner.id, owner.id),
        )
    folder = tmp_path / str(owner.id)
    for path in folder.iterdir():
        if str(new) not in path.name:
            os.utime(path, (1, 1))
    assert 2 == await remove_unknown(pool, store, before_s=1000)
    names = {f"{kept}", f".{uploading}.part", f"{new}"}
    assert names == {path.name for path in folder.iterdir()}
    await pool.close()


class Forgetful:
    """A pool whose first statement is committed and reported as failed."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.asked = 0

    async def execute(self, *statement: Any) -> str:
        self.asked += 1
        done = await self._pool.execute(*statement)
        if self.asked == 1:
            raise ConnectionResetError
        return done


async def test_a_large_result_whose_row_was_reported_as_failed_is_one_file(
    database: Database, tmp_path: Path
) -> None:
    """F10."""
    with database.connect() as sql:
        owner = factories.user(sql)
        node = factories.node(sql, owner)
        workflow = factories.workflow(
            sql, owner, nodes={"a": node}, edges=[("", "x", "a", "x")], outputs=[("y", "a")]
        )
        run, ref = uuid7(), uuid7()
        sql.execute(
            "INSERT INTO workflow_executions (id, workflow_id, workflow_version, status, shard,"
            " started_at, tenant_id, created_by) VALUES (%s, %s, 1, 'running', 0, now(), %s, %s)",
            (run, workflow, owner.id, owner.id),
        )
        sql.execute(
            "INSERT INTO node_executions (id, workflow_execution_id, node_id, node_type, status,"
            " started_at, execution_order) VALUES (%s, %s, 'a', 'python', 'running', now(), 0)",
            (ref, run),
        )
        pool = await open_pool(
            database.url("qflow_runner_engine"), application_name="t", size_max=2
        )
        forgetful = Forgetful(pool)
        request = AttemptRequest(
            attempt_ref=ref,
            token=1,
            execution_id=run,
            tenant_id=owner.id,
            node_id="a",
            node_version_id=node.version_id,
            attempt=1,
            inputs=[],
            outputs=["result"],
            timeout_s=1,
        )
        saved = await Outputs(FileStore(tmp_path), cast("Pool", forgetful)).save(
            request, [("result", b"1" * 70_000)]
        )
        await pool.close()
        assert 2 == forgetful.asked
        rows = sql.execute("SELECT id, file_size_bytes, hash_sha256 FROM files").fetchall()
        assert [(saved.file_id, saved.size_bytes, saved.sha256)] == rows


@pytest.mark.parametrize("key", ["../x", "/etc/passwd", "a/b", "..", ""])
def test_a_key_is_two_uuids_or_nothing(tmp_path: Path, key: str) -> None:
    """B63, B64, X24."""
    with pytest.raises(ValueError, match="UUID"):
        FileStore(tmp_path).read(key, size_bytes=0, sha256="")


def is_named(pid: int, name: str) -> bool:
    return name == Path(f"/proc/{pid}/comm").read_text().strip()


def test_what_a_killed_runner_left_is_reaped(tmp_path: Path) -> None:
    """I19, R31: processes and groups."""
    host = CgroupHost.detect(tmp_path)
    assert host is not None, "no control groups here"
    group = host.create("left", Limits())
    with subprocess.Popen(group.command(["/bin/sleep", "600"])) as sleeper:
        try:
            # It steps into one hierarchy after the other, and is the command itself after the last.
            wait_until(lambda: is_named(sleeper.pid, "sleep"), timeout_s=30.0)
            group.add(sleeper.pid)
        except BaseException:
            sleeper.kill()
            raise
        assert 1 <= host.reap()
        assert -9 == sleeper.wait(5)
    host.reap()
    assert [] == [folder for folder in group.folders if folder.exists()]
    host.close()
    assert [] == [base for base in host._bases if base.exists()]


def test_a_delegated_group_hands_the_processors_down_where_they_are_offered(
    tmp_path: Path,
) -> None:
    """Equal weights between sandboxes; without the controller memory and processes stay capped."""
    for offered, handed in (
        (["cpu", "memory", "pids"], b"+cpu+memory +pids"),
        (["memory", "pids"], b"+memory +pids"),
    ):
        group = tmp_path / "-".join(offered)
        group.mkdir()
        os.mkfifo(group / "cgroup.subtree_control")
        kept = os.open(group / "cgroup.subtree_control", os.O_RDWR | os.O_NONBLOCK)
        hand_down(group, offered)
        assert handed == os.read(kept, 100)
        os.close(kept)
