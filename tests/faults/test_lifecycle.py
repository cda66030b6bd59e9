"""The suite as a process of its operator: one per folder, stops when told, says what is wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from qflow.registry.v1.session_service_pb2 import SignInRequest
from qflow.registry.v1.session_service_pb2_grpc import SessionServiceStub

from migrations.__main__ import main as migrate
from services.standalone.postgres import Binaries, Postgres
from tests.support.client import COMPLETED, connected
from tests.support.invariants import broken
from tests.support.ledger import NODES, Ledger
from tests.support.suite import Suite
from tests.support.suite_fixtures import SuiteFactory


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="qff-", dir="/tmp"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def standalone(
    *arguments: str, home: Path, stdin: str = "", **settings: str
) -> subprocess.CompletedProcess[str]:
    clean = {name: v for name, v in os.environ.items() if not name.startswith("QFLOW_")}
    return subprocess.run(
        [sys.executable, "-m", "services.standalone", *arguments],
        env={**clean, "QFLOW_HOME": str(home), **settings},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def shown_python() -> Path:
    python, here = Path(sys.executable), Path.cwd()
    return python.relative_to(here) if python.is_relative_to(here) else python


def test_a_second_start_on_the_same_folder_is_refused_and_harms_nothing(suite: Suite) -> None:
    before = suite.marks()
    refused = standalone("up", "--ports", "auto", home=suite.home.root)
    assert refused.returncode == 1
    assert f"a suite already runs on {suite.home.root}" in refused.stdout
    assert f"process {suite.supervisor_pid}" in refused.stdout
    status = f"QFLOW_HOME={suite.home.root} {shown_python()} -m services.standalone status"
    assert f"`{status}`" in refused.stdout
    assert suite.marks() == before
    assert standalone("status", home=suite.home.root).returncode == 0


def test_status_names_every_service_and_whether_it_serves(suite: Suite) -> None:
    said = standalone("status", home=suite.home.root).stdout
    for name, address in suite.endpoints.items():
        if name != "attach":
            assert f"{name:<13}{address:<24}serving" in said
    metrics = json.loads((suite.home.run / "metrics.json").read_text("utf-8"))
    assert [] == [each for each in metrics.values() if f"http://{each}/metrics" not in said]


def test_the_suites_runner_is_spoken_to_over_a_lane(suite: Suite) -> None:
    """It is on the machine of its orchestrator."""
    metrics = json.loads((suite.home.run / "metrics.json").read_text("utf-8"))
    with urllib.request.urlopen(f"http://{metrics['orchestrator']}/metrics") as answer:
        told = answer.read().decode()
    assert "qflow_orchestrator_runners_connected 1" in told, told
    assert "qflow_orchestrator_runners_by_lane 1" in told


def test_the_demo_uses_the_suite_that_runs_and_leaves_it_running(suite: Suite) -> None:
    before = suite.marks()
    shown = standalone("demo", home=suite.home.root)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "Result" in shown.stdout
    assert "How to go on" in shown.stdout
    assert f"kill {suite.supervisor_pid}" in shown.stdout
    assert "make run" not in shown.stdout
    assert suite.marks() == before


def test_status_of_a_folder_without_a_suite_says_how_to_start_one(folder: Path) -> None:
    answer = standalone("status", home=folder)
    assert answer.returncode == 3
    assert "make run" in answer.stdout


def test_a_new_token_of_the_owner_lies_in_a_private_file(suite: Suite) -> None:
    before = suite.owner_token
    answer = standalone("token", home=suite.home.root)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "no longer works" in answer.stdout
    path = Path(answer.stdout.split()[-1])
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text().strip() not in answer.stdout
    assert suite.owner_token != before


async def test_a_new_token_of_the_owner_works(suite: Suite) -> None:
    assert standalone("token", home=suite.home.root).returncode == 0
    async with connected(suite) as client:
        node = await client.create_node("one", "def one() -> int:\n    return 1\n")
    assert node.main_function == "one"


async def test_a_user_is_made_while_the_suite_runs_and_signs_in(suite: Suite) -> None:
    user = {"email": f"{uuid.uuid4().hex}@example.org", "password": "correct horse"}
    made = standalone(
        *("create-user", "--email", user["email"], "--role", "viewer"),
        home=suite.home.root,
        stdin=user["password"] + "\n",
    )
    assert made.returncode == 0, made.stdout + made.stderr
    async with suite.channel("registry") as registry:
        answer = await SessionServiceStub(registry).SignIn(SignInRequest(**user), timeout=15)
    assert str(uuid.UUID(made.stdout.strip())) == answer.caller.user_id


def test_a_taken_port_is_named_with_the_setting_that_moves_it(folder: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        refused = standalone(
            "up", "--ports", "auto", home=folder, QFLOW_RUNNER_LISTEN=f"127.0.0.1:{port}"
        )
    assert refused.returncode == 1
    assert f"port {port} is taken" in refused.stdout
    assert "QFLOW_PORT_BASE" in refused.stdout


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("QFLOW_DATABASE_URL", "postgresql://qflow:secret@db.nowhere.invalid/qflow"),
        ("QFLOW_REDIS_URL", "redis://cache.nowhere.invalid:6379/0"),
        ("QFLOW_REGISTRY_LISTEN", "host.nowhere.invalid:7101"),
    ],
)
def test_a_host_that_does_not_resolve_stops_the_start_with_its_setting(
    setting: str, value: str, folder: Path
) -> None:
    """F34."""
    refused = standalone("up", "--ports", "auto", home=folder, **{setting: value})
    assert refused.returncode == 1
    assert f"{setting}: the host name" in refused.stdout
    assert "secret" not in refused.stdout + refused.stderr
    assert "Traceback" not in refused.stdout + refused.stderr


def test_a_database_that_nobody_serves_stops_the_start_with_a_plain_message(folder: Path) -> None:
    refused = standalone(
        "up",
        *("--ports", "auto"),
        home=folder,
        QFLOW_DATABASE_URL="postgresql://qflow:secret@127.0.0.1:1/qflow",
    )
    assert refused.returncode == 1
    assert "QFLOW_DATABASE_URL: " in refused.stdout
    assert "secret" not in refused.stdout + refused.stderr
    assert "Traceback" not in refused.stdout + refused.stderr


@pytest.mark.parametrize(
    ("module", "arguments", "setting"),
    [
        ("services.registry", [], "QFLOW_REGISTRY_DATABASE_URL"),
        (
            "services.registry",
            ["create-user", "ada@example.org"],
            "QFLOW_REGISTRY_AUTH_DATABASE_URL",
        ),
        ("services.orchestrator", [], "QFLOW_ORCHESTRATOR_DATABASE_URL"),
        ("services.runner", [], "QFLOW_RUNNER_DATABASE_URL"),
        ("services.telemetry", [], "QFLOW_TELEMETRY_DATABASE_URL"),
        ("migrations", ["current"], "QFLOW_DATABASE_URL"),
        ("migrations", ["upgrade"], "QFLOW_DATABASE_URL"),
    ],
)
def test_started_by_hand_each_names_the_setting_that_leads_nowhere(
    module: str, arguments: list[str], setting: str, folder: Path
) -> None:
    """F34."""
    url = "postgresql://qflow:secret@db.nowhere.invalid/qflow"
    scopes = ("", "_AUTH", "_ENGINE", "_MAINT", "_DOCTOR")
    service = module.rpartition(".")[2].upper()
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={
            **{name: v for name, v in os.environ.items() if not name.startswith("QFLOW_")},
            **{f"QFLOW_{service}{scope}_DATABASE_URL": url for scope in scopes},
            "QFLOW_DATABASE_URL": url,
            "QFLOW_HOME": str(folder),
            "QFLOW_SERVICE_TOKEN": "only-for-tests",
        },
        input="a-long-enough-password\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    [line] = said.splitlines()
    assert f"{setting}: " in line
    assert "db.nowhere.invalid" in line
    assert "secret" not in line


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://qflow:secret@127.0.0.1:1/qflow",
        "postgresql://qflow:se@cret@127.0.0.1:1/qflow",
        "postgresql://qflow:se/cret@127.0.0.1:1/qflow",
        "mysql://qflow:secret@127.0.0.1/qflow",
    ],
)
def test_migrating_a_database_that_is_not_there_is_refused_in_one_line(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    """F34."""
    monkeypatch.setenv("QFLOW_DATABASE_URL", url)
    monkeypatch.setenv("QFLOW_HOME", str(folder))
    monkeypatch.setattr(sys, "argv", ["migrations", "upgrade"])
    assert migrate() == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("migrations: QFLOW_DATABASE_URL")
    assert "cret" not in line


@pytest.mark.slow
def test_a_service_that_cannot_start_stops_the_suite_with_the_end_of_its_log(folder: Path) -> None:
    refused = standalone("up", "--ports", "auto", home=folder, QFLOW_POOL_SIZE_MAX="many")
    assert refused.returncode == 1
    assert "does not start (exit code 2)" in refused.stdout
    assert "QFLOW_POOL_SIZE_MAX must be a whole number" in refused.stdout
    assert "Traceback" not in refused.stdout + refused.stderr


async def test_sigterm_lets_a_running_node_finish_and_ends_within_thirty_seconds(
    suite_factory: SuiteFactory, folder: Path
) -> None:
    """CP27, F8: the drain loses no work, and the next start goes on with the rest."""
    ledger = Ledger(folder / "ledger")
    suite = suite_factory(env=ledger.env)
    async with connected(suite) as client:
        workflow = await ledger.workflow(client)
        execution_id = await client.start(workflow, {"run": "drain", "start": 10})
        ledger.wait_begun("drain")
    began = time.monotonic()
    os.kill(suite.supervisor_pid, signal.SIGTERM)
    ledger.open_gate("drain")
    assert suite.stop() == 0
    assert time.monotonic() - began < 32.0
    suite.start()
    async with connected(suite) as client:
        execution = await client.finished(execution_id)
    assert execution.status == COMPLETED, execution.error
    assert json.loads(execution.output_json) == {"total": 14}
    assert dict(ledger.begun("drain")) == dict.fromkeys(NODES, 1)
    with suite.sql() as connection:
        assert broken(connection) == {}


@pytest.mark.slow
def test_given_servers_are_used_instead_of_embedded_ones(
    suite_factory: SuiteFactory, folder: Path, redis_url: str
) -> None:
    # A server of its own: logins belong to a server, and a second home would change passwords.
    server = Postgres(
        folder / "postgres",
        binaries=Binaries.find(os.environ),
        sockets=folder,
        password="given",
        log=folder / "postgres.log",
    )
    server.start()
    try:
        with psycopg.connect(server.url("postgres"), autocommit=True) as admin:
            admin.execute("CREATE DATABASE given")
        suite = suite_factory(
            env={"QFLOW_DATABASE_URL": server.url("given"), "QFLOW_REDIS_URL": redis_url}
        )
        assert sorted(suite.marks()) == ["orchestrator", "registry", "runner", "telemetry"]
        assert standalone("status", home=suite.home.root).returncode == 0
        assert suite.stop() == 0
    finally:
        server.stop()


@pytest.mark.slow
def test_nothing_is_left_when_the_suite_has_stopped(suite_factory: SuiteFactory) -> None:
    suite = suite_factory()
    left = suite.marks()
    assert sorted(left) == sorted(
        ["orchestrator", "postgres", "redis", "registry", "runner", "telemetry"]
    )
    assert suite.stop() == 0
    assert [name for name, mark in left.items() if mark.is_alive()] == []
    assert sorted(path.name for path in suite.home.run.iterdir() if path.suffix == ".sock") == []
