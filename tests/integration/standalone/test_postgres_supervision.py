from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from services.standalone.account import Account
from services.standalone.postgres import Binaries, Postgres
from services.standalone.process import ProcessMark, StandaloneError, wait_until

# Another process starts the server and is then killed: what a kill -9 of the suite leaves.
_STARTER = """
import os, sys
from pathlib import Path
from services.standalone.account import Account
from services.standalone.postgres import Binaries, Postgres
folder = Path(sys.argv[1])
server = Postgres(folder / "postgres", binaries=Binaries.find(os.environ), sockets=folder,
                  password="secret", log=folder / "postgres.log")
server.start()
print(server.child.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="qft-", dir="/tmp"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


class WithoutNamespaces(Account):
    """On a kernel that bars user namespaces."""

    def can_run_as(self, identity: str) -> bool:
        return not identity.startswith("namespace") and super().can_run_as(identity)


def server_in(folder: Path, *, tcp_port: int | None = None) -> Postgres:
    return Postgres(
        folder / "postgres",
        binaries=Binaries.find(os.environ),
        sockets=folder,
        password="secret",
        log=folder / "postgres.log",
        tcp_port=tcp_port,
    )


def answer(server: Postgres, question: str) -> object:
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        row = connection.execute(question).fetchone()
    assert row is not None
    return row[0]


def test_durability_is_on_and_nothing_listens_on_the_network(folder: Path) -> None:
    server = server_in(folder)
    server.start()
    try:
        assert [
            answer(server, f"SHOW {name}")
            for name in ("fsync", "synchronous_commit", "full_page_writes", "listen_addresses")
        ] == ["on", "on", "on", ""]
        assert answer(server, "SELECT rolname FROM pg_authid WHERE rolpassword LIKE 'SCRAM%'") == (
            "qflow"
        )
    finally:
        server.stop()


def test_a_tcp_port_is_opened_on_loopback_where_asked_for(folder: Path) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = server_in(folder, tcp_port=port)
    server.start()
    try:
        url = f"postgresql://qflow:secret@127.0.0.1:{port}/postgres"
        with psycopg.connect(url) as connection:
            row = connection.execute("SELECT host(inet_server_addr())").fetchone()
        assert row == ("127.0.0.1",)
    finally:
        server.stop()


def test_a_server_left_by_a_killed_supervisor_ends_and_the_data_stay(folder: Path) -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", _STARTER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert starter.stdout is not None
    left = ProcessMark.of(int(starter.stdout.readline()))
    assert left is not None
    server = server_in(folder)
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    starter.kill()
    starter.communicate()
    server.start()
    try:
        assert not left.is_alive()
        assert answer(server, "SELECT answer FROM kept") == 42
    finally:
        server.stop()


def test_a_server_that_outlived_everything_is_found_by_its_folder_and_stopped(
    folder: Path,
) -> None:
    first = server_in(folder)
    first.start()
    assert first.child is not None
    left = first.child  # nobody stops it: `second` must
    second = server_in(folder)
    try:
        second.start()
        assert left.wait(10.0) == 0
        assert answer(second, "SELECT 1") == 1
    finally:
        second.stop()


def test_a_stale_pid_file_naming_another_process_harms_nobody(folder: Path) -> None:
    server = server_in(folder)
    server.start()
    server.stop()
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    (server.data / "postmaster.pid").write_text(f"{bystander.pid}\n{server.data}\n1\n5432\n")
    try:
        server.start()
        assert bystander.poll() is None
        assert answer(server, "SELECT 1") == 1
    finally:
        server.stop()
        bystander.communicate()


def test_a_killed_server_recovers_what_was_committed(folder: Path) -> None:
    server = server_in(folder)
    server.start()
    try:
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
            assert server.child is not None
            server.child.send_signal(signal.SIGKILL)
            server.child.wait()
        # Its own children need a moment to notice; until then a start is refused.
        assert wait_until(lambda: _starts(server), timeout_s=30.0)
        assert answer(server, "SELECT answer FROM kept") == 42
    finally:
        server.stop()


def _starts(server: Postgres) -> bool:
    try:
        server.start()
    except StandaloneError:
        return False
    return True


def test_data_of_another_version_are_refused_with_what_to_do(folder: Path) -> None:
    server = server_in(folder)
    server.prepare()
    (server.data / "PG_VERSION").write_text("9\n")
    with pytest.raises(StandaloneError, match=r"made by PostgreSQL 9[\s\S]*QFLOW_POSTGRES_BIN"):
        server.start()


def test_an_initialisation_that_was_cut_short_is_begun_again(folder: Path) -> None:
    half_made = folder / "postgres" / "data.new"
    half_made.mkdir(parents=True)
    (half_made / "PG_VERSION").write_text("18\n")
    server = server_in(folder)
    server.start()
    try:
        assert answer(server, "SELECT 1") == 1
    finally:
        server.stop()


def test_a_folder_without_binaries_is_refused_by_the_setting_that_named_it() -> None:
    with pytest.raises(StandaloneError, match="QFLOW_POSTGRES_BIN: no usable `postgres`"):
        Binaries.find({"QFLOW_POSTGRES_BIN": "/nowhere"})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is refused by PostgreSQL")
def test_where_namespaces_are_barred_root_drops_to_another_user(folder: Path) -> None:
    folder.chmod(0o755)
    server = server_in(folder)
    postgres = server._binaries.folder / "postgres"
    server._account = WithoutNamespaces(server.folder, program=postgres, env={"PATH": os.defpath})
    if not all(path.stat().st_mode & 0o001 for path in server._binaries.folder.parents):
        pytest.skip("the binaries lie where no other user may enter")
    server.start()
    try:
        assert server.child is not None
        assert Path(f"/proc/{server.child.pid}").stat().st_uid != 0
        assert answer(server, "SELECT 1") == 1
    finally:
        server.stop()
        for left in Path("/tmp").glob("qflow-pg-*"):
            shutil.rmtree(left, ignore_errors=True)
